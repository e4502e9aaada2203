"""All methods by family, with what they declare of themselves: rows for `kdbench show methods` and docs/methods.md."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from kdbench import plugins
from kdbench.method import Method, Needs, Paper, Refusal, Wrapper, knobs
from kdbench.tasks import Task

Rows = list[dict[str, Any]]

FAMILIES = {  # in the order in which they are listed, and what is transferred
    "logits": "What the teacher answers.",
    "features": "What the teacher computes on the way to its answer.",
    "relations": "How examples lie to each other in the teacher's features.",
    "self-distillation": "The student's own model teaches, or a part of it.",
    "online": "Networks that learn together.",
    "several teachers": "In turn, or at once.",
    "several students": "An answer of several networks.",
    "weights": "How the student's weights are written while it learns; the signal is that of any other method.",
    "examples": "Which inputs are learned from.",
    "controls": "What a gain must be measured against.",
}
OTHER = "other"  # of who declares no family
COLUMNS = ("method", "family", "title", "venue", "year", "arxiv", "wraps", "needs", "tasks", "knobs", "about")


def rows(pattern: str = "*", names: Iterable[str] | None = None) -> Rows:
    """`COLUMNS` of each method, by family: knobs with default and range, `about` the first line of the docstring.

    Args:
        pattern: a glob of names.
        names: of which methods; default: all that are installed.
    """
    found = [_row(name) for name in names or plugins.method_names() if fnmatchcase(name, pattern)]
    order = [*FAMILIES, *sorted({row["family"] for row in found} - {*FAMILIES, OTHER}), OTHER]
    return sorted(found, key=lambda row: order.index(row["family"]))


def _row(name: str) -> dict[str, Any]:
    try:
        kind = plugins.method_class(name, Path())
    except LookupError as error:  # of an installed package
        return {**dict.fromkeys(COLUMNS, ""), "method": name, "family": OTHER, "about": str(error)}
    paper: Paper | None = vars(kind).get("paper")
    about = (kind.__doc__ or "").strip().splitlines()
    return {
        "method": name,
        "family": kind.family or OTHER,
        "title": paper.title if paper else "",
        "venue": paper.venue if paper else "",
        "year": str(paper.year) if paper else "",
        "arxiv": paper.arxiv if paper else "",
        "wraps": "over another" if issubclass(kind, Wrapper) else "",
        **_asked(kind),
        "knobs": "; ".join(describe(name, knob.metadata["knob"], knob.default) for name, knob in knobs(kind).items()),
        "about": about[0] if about else "",
    }


def brief(row: dict[str, Any]) -> dict[str, object]:
    """A row that is legible on a screen: what it is about, needs and fits in one text."""
    about = re.sub(r" \([^()]*\d{4}\)\.?$", "", row["about"]).rstrip(".")
    said = [about, f"Needs {row['needs']}" if row["needs"] else "", row["tasks"].capitalize()]
    paper = f"{row['venue'] or 'arXiv'} {row['year']}" if row["year"] else ""
    return {"method": row["method"], "paper": paper, "about": ". ".join(part for part in said if part)}


def describe(name: str, knob: dict[str, Any], default: Any) -> str:
    """`temperature = 4.0 in [1, 16] (log)`"""
    text = f"{name} = {default}"
    if knob["choices"]:
        text += f" of {', '.join(map(str, knob['choices']))}"
    elif knob["low"] is not None or knob["high"] is not None:
        low, high = (("" if bound is None else f"{bound:g}") for bound in (knob["low"], knob["high"]))
        text += f" in [{low}, {high}]"
    return text + (" (log)" if knob["log"] else "")


def _asked(kind: type[Method]) -> dict[str, str]:
    """What a method with its defaults needs, and the tasks of kdbench that it fits."""
    try:
        method = kind()
        needs = method.needs()
        said = [*_roles(method), *_needs(needs)]
    except Exception as error:  # of an installed package
        return {"needs": f"cannot be made: {error}", "tasks": ""}
    tasks = [plugins.plugin_class("tasks", name, Path(), Task) for name in plugins.builtin("tasks")]  # type: ignore[type-abstract]
    fitting = [plugins.name_of(task, Task) for task in tasks if not task.misfit(needs)]
    return {"needs": ", ".join(said), "tasks": ", ".join(fitting)}


def _roles(method: Method) -> Iterator[str]:
    """Who takes part beside one teacher and one student."""
    have = ("teacher", "student")
    try:
        plan = method.plan(have)
    except Refusal as refusal:
        yield str(refusal)
        return
    if extra := [role for role in plan.roles if role not in have and role not in plan.copies]:
        yield f"roles {', '.join(extra)}"
    if copies := [f"{role} like the {model}" for role, model in plan.copies.items()]:
        yield f"trains {', '.join(copies)}"
    if "teacher" not in plan.roles and "teacher" not in plan.copies.values():
        yield "no teacher"


def _needs(needs: Needs) -> Iterator[str]:
    if needs.learner == needs.teacher and needs.learner:
        yield f"features {', '.join(needs.learner)}"
    else:
        for side, taps in (("student", needs.learner), ("teacher", needs.teacher)):
            if taps:
                yield f"{side}'s features {', '.join(taps)}"
    if needs.views > 1:
        yield f"{needs.views} views"
    if needs.hard_labels:
        yield "labels that are not mixed"
    if needs.probe:
        yield "answers on the whole training set"
    if needs.draws:
        yield f"{needs.draws} draws of the teacher's dropout"
    if needs.survey:
        yield f"a survey of the teacher ({', '.join(survey.name for survey in needs.survey)})"
    if needs.on_policy:
        yield "the student's own samples"
