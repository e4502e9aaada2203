"""What methods declare of themselves, the list of them, and docs/methods.md."""

from __future__ import annotations

import inspect
import json
import sys
from pathlib import Path

import pytest
from commands import kdbench

from kdbench import plugins
from kdbench.cli import zoo

ROOT = Path(__file__).parents[2]
NAMES = plugins.builtin_methods()
COMMAND = ("show", "methods", "--markdown", "--reported", "suites/cifar100.yaml")


@pytest.mark.parametrize("name", NAMES)
def test_family_and_paper_are_declared_as_the_docstring_says(name: str) -> None:
    kind = plugins.method_class(name, Path())
    assert kind.family in zoo.FAMILIES
    if kind.paper is None:
        assert kind.family == "controls"
        return
    text = " ".join(f"{sys.modules[kind.__module__].__doc__} {inspect.getdoc(kind)}".split())
    assert kind.paper.title in text
    assert all(word in text for word in (*kind.paper.venue.split(), str(kind.paper.year)))
    assert kind.paper.venue or kind.paper.arxiv


def test_the_published_page_is_the_generated_one() -> None:
    done = kdbench(ROOT, *COMMAND)
    published = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    assert done.stdout == published, f"run: kdbench {' '.join(COMMAND)} > docs/methods.md"


def test_every_method_and_every_reported_number_is_on_the_page() -> None:
    page = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    assert [name for name in NAMES if f"[`{name}`](../kdbench/methods/{name}.py)" not in page] == []
    assert "arXiv [1503.02531](https://arxiv.org/abs/1503.02531)" in page
    (line,) = (line for line in page.splitlines() if line.startswith("| `dkd`"))
    assert line.split("|")[2:4] == ["               71.97 ", "                74.11 "]
    assert "Zhao et al., CVPR 2022 (best test epoch, mean of 5 runs, beta chosen for each pair)" in line


def test_needs_and_tasks_are_what_the_method_says() -> None:
    row = {row["method"]: row for row in zoo.rows()}
    assert row["at"]["needs"] == "features block*"
    assert row["none"]["needs"] == "no teacher"
    assert row["chain"]["needs"] == "roles ta"
    assert row["born_again"]["needs"] == "trains generation0 like the student, no teacher"
    assert (row["kd"]["tasks"], row["imitate"]["tasks"]) == ("classification", "classification, regression")
    assert row["ls"]["wraps"] == "over another"


def test_a_brief_row_says_the_paper_once() -> None:
    brief = {row["method"]: zoo.brief(row) for row in zoo.rows()}
    assert brief["dkd"]["paper"] == "CVPR 2022"
    assert "Zhao" not in brief["dkd"]["about"]
    assert brief["dkd"]["about"].endswith("Needs labels that are not mixed. Classification")
    assert brief["none"]["about"].count("Needs no teacher") == 1


def test_methods_without_a_family_come_last(monkeypatch: pytest.MonkeyPatch) -> None:
    kind = plugins.method_class("kd", Path())
    monkeypatch.setattr(kind, "family", "")
    monkeypatch.delattr(kind, "paper")
    last = zoo.rows()[-1]
    assert (last["method"], last["family"], last["year"], last["title"]) == ("kd", "other", "", "")


def test_the_list_is_by_family_and_a_name_shows_its_knobs() -> None:
    whole = kdbench(ROOT, "show", "methods")
    assert whole.stdout.index("\nlogits\n") < whole.stdout.index("\nfeatures\n") < whole.stdout.index("\ncontrols\n")
    one = kdbench(ROOT, "show", "methods", "ttm")
    assert "gamma = 0.1 in [0.05, 1] (log)" in one.stdout
    rows = json.loads(kdbench(ROOT, "show", "methods", "*kd", "--json").stdout)
    assert {row["method"] for row in rows} >= {"kd", "dkd", "simkd"}
    assert kdbench(ROOT, "show", "methods", "nothing").stdout == "nothing there\n"
