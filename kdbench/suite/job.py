"""Suite -> jobs. A job is one (pair, method, seed), fully resolved; its key is the hash of its semantic content.

The content holds no paths, devices, worker counts or labels: the same experiment in two suites has one key.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from kdbench.births import born, content
from kdbench.method import Method, Plan, Wrapper, knobs
from kdbench.plugins import TASK, class_sha, name_of, source_sha
from kdbench.result import TOP1, Result, Status
from kdbench.suite.fields import Data, Model, Recipe, RecipeOverride, patched
from kdbench.suite.load import Suite
from kdbench.suite.overrides import with_fields, with_knobs, with_student
from kdbench.tasks import Task

PROTOCOL = 1  # raise it when the engine's meaning changes: old results then count as stale
_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
LOCAL = (
    "download",
    "path",
    "workers",
)  # options of data that say where and how; the fingerprint says what


@dataclass(frozen=True)
class Job:
    """Everything a worker needs; `content` is what `key` hashes."""

    suite: str
    pair: str
    label: str
    seed: int
    method: Method
    plan: Plan
    data: Data
    recipe: Recipe
    roles: Mapping[str, Model]  # every role of the plan, copies resolved, and the pair's teacher
    frozen: Mapping[str, FrozenRole]
    folder: Path
    content: Mapping[str, Any]
    comparable: bool = True
    track: str = "default"
    trials: int = 0  # of tuning that led to the knobs
    task: str = TASK
    headline: Mapping[str, Any] | None = None  # for the record; None: top-1

    @cached_property
    def key(self) -> str:
        return digest(self.content)

    @property
    def name(self) -> str:
        return f"{self.pair}/{self.label}"

    @property
    def title(self) -> str:
        """What a lease says about it."""
        return f"{self.suite}: {self.name} seed {self.seed}"

    def result(self, status: Status, reason: str = "", **rest: Any) -> Result:
        """The job's record, with `rest` of its fields filled in."""
        return Result(
            key=self.key,
            suite=self.suite,
            pair=self.pair,
            method=self.label,
            seed=self.seed,
            status=status,
            reason=reason,
            comparable=self.comparable,
            job=dict(self.content),
            track=self.track,
            headline=dict(self.headline) if self.headline else None,
            **rest,
        )


@dataclass(frozen=True)
class FrozenRole:
    """A role that teaches and is not trained by the method: where its weights come from."""

    model: Model
    recipe: Recipe | None  # None: read from a file, or pretrained
    content: Mapping[str, Any]
    folder: Path
    source: FrozenRole | None = None  # the role that it starts from

    @property
    def key(self) -> str:
        return digest(self.content)


def digest(content: Mapping[str, Any]) -> str:
    """12 hex digits of the sha256 of canonical JSON."""
    return hashlib.sha256(_CANONICAL.encode(content).encode()).hexdigest()[:12]


def expand(
    suite: Suite, fingerprint: str | None = None, *, epochs: int | None = None, seeds: Iterable[int] | None = None
) -> list[Job]:
    """All jobs of a suite, seed by seed, so that comparable rows finish early.

    Args:
        fingerprint: of the data set; None leaves it open (`matches` then ignores it).
        epochs: overrides the recipe's; such jobs are marked not comparable.
        seeds: instead of the suite's.
    """
    chosen = tuple(suite.file.seeds if seeds is None else seeds)
    cells = [_cell(suite, pair, label, fingerprint, epochs) for pair, label in suite.cells]
    return [replace(job, seed=seed, content={**job.content, "seed": seed}) for seed in chosen for job in cells]


def variant(
    suite: Suite,
    pair: str,
    label: str,
    overrides: Mapping[str, Any],
    fingerprint: str | None = None,
    *,
    seed: int = 0,
    epochs: int | None = None,
) -> Job:
    """A cell's job with some of its knobs, recipe fields or the student changed; its teachers stay as they are.

    Args:
        overrides: dotted path -> value, as in the suite's `tune.space`.
        epochs: a shorter schedule for what the method trains, not for the teachers.

    Raises:
        UserError: an override names nothing that this cell has, or its value is not accepted.
    """
    job = _cell(suite, pair, label, fingerprint, None, overrides, epochs)
    return replace(job, seed=seed, content={**job.content, "seed": seed})


def _cell(
    suite: Suite,
    pair_name: str,
    label: str,
    fingerprint: str | None,
    epochs: int | None,
    overrides: Mapping[str, Any] | None = None,
    own_epochs: int | None = None,
) -> Job:
    pair, given = suite.file.pairs[pair_name], overrides or {}
    method = with_knobs(suite.methods[label], given)
    full = patched(suite.file.recipe, pair.recipe)
    whole = with_fields(full, given)
    shorter = own_epochs or epochs
    recipe = whole if shorter is None else shortened(whole, shorter)
    plan = method.plan(tuple(pair.roles))
    declared = {**pair.roles, "student": with_student(pair.student, given)}
    used = {role: declared[plan.copies.get(role, role)] for role in dict.fromkeys([*plan.roles, "teacher"])}
    roles = used | {model.init: declared[model.init] for model in used.values() if model.init is not None}
    data = data_content(suite.file.data, suite.folder, fingerprint) | task_content(suite)
    frozen = {
        role: freeze(model, full, data, suite.folder, epochs)
        for role, model in roles.items()
        if role not in plan.learners and model.init is None
    }
    frozen |= {
        role: _derived(model, frozen[model.init], suite.folder)
        for role, model in roles.items()
        if role not in plan.learners and model.init is not None
    }
    # Asking for as many epochs as the suite has changes nothing.
    trained = (whole, *(own for role in frozen if (own := own_recipe(roles[role], full)) is not None))
    said = {
        "protocol": PROTOCOL,
        "data": data,
        "recipe": recipe_content(recipe, (stage.share for stage in plan.stages)),
        "roles": {
            role: dict(frozen[role].content if role in frozen else _learner(model, frozen, suite.folder))
            for role, model in sorted(roles.items())
        },
        "method": method_content(method),
    }
    return Job(
        suite=suite.file.name,
        pair=pair_name,
        label=label,
        seed=0,
        method=method,
        plan=plan,
        data=suite.file.data,
        recipe=recipe,
        roles=roles,
        frozen=frozen,
        folder=suite.folder,
        content=said,
        comparable=epochs is None or all(own.epochs == epochs for own in trained),
        task=suite.task_name,
        headline=headline_of(suite),
    )


def shortened(recipe: Recipe, epochs: int) -> Recipe:
    """The recipe with another number of epochs (also one of steps); milestones and warm-up shrink with it."""
    scale = epochs / recipe.length
    milestones = sorted({max(1, round(m * scale)) for m in recipe.schedule.milestones if round(m * scale) < epochs})
    schedule = recipe.schedule.model_copy(
        update={"milestones": tuple(milestones), "warmup_epochs": recipe.schedule.warmup * scale, "warmup_steps": 0}
    )
    return recipe.model_copy(update={"epochs": epochs, "steps": None, "schedule": schedule})


def freeze(
    model: Model, recipe: Recipe, data: Mapping[str, Any], folder: Path, epochs: int | None = None
) -> FrozenRole:
    """How a frozen role comes by its weights, and its content key."""
    said = model_content(model, folder)
    for kind, file in (("weights", model.weights), ("answers", model.answers)):
        if file is not None:
            path = folder / file
            sha = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None
            return FrozenRole(model, None, {**said, kind: sha, "data": data}, folder)
    own = own_recipe(model, recipe)
    if own is None:
        return FrozenRole(model, None, {**said, "pretrained": True, "data": data}, folder)
    if epochs is not None:
        own = shortened(own, epochs)
    alone = own.model_copy(update={"teacher_logits": "live"})  # whoever learns from labels alone has no teacher
    return FrozenRole(model, own, {**said, "train": recipe_content(alone), "seed": model.seed, "data": data}, folder)


def recipe_content(recipe: Recipe, shares: Iterable[float] = (1.0,)) -> dict[str, Any]:
    """What of a recipe counts, for stages of these shares of its time.

    A warm-up that ended inside a step used to raise the rate above the recipe's in that step. Where it can, and only
    there, the content says that it no longer does, so that results from before are not taken for today's.
    """
    said, length = content(recipe), recipe.length
    ends = (recipe.schedule.warmup * max(1, round(share * length)) / length for share in shares)
    if any(abs(end - round(end)) > 1e-9 for end in ends):
        said["schedule"]["warmup_at_most"] = 1
    return said


def _learner(model: Model, frozen: Mapping[str, FrozenRole], folder: Path) -> dict[str, Any]:
    """Content of a role that learns: what it starts from is part of it."""
    start = {} if model.init is None else {"from": dict(frozen[model.init].content)}
    return model_content(model, folder) | start


def _derived(model: Model, source: FrozenRole, folder: Path) -> FrozenRole:
    return FrozenRole(model, None, model_content(model, folder) | {"from": dict(source.content)}, folder, source)


def own_recipe(model: Model, recipe: Recipe) -> Recipe | None:
    """How a frozen role is trained here, in full; None where its weights come from elsewhere."""
    if model.weights is not None or model.pretrained or model.init is not None or model.answers is not None:
        return None
    return patched(recipe, model.train) if isinstance(model.train, RecipeOverride) else recipe


def model_content(model: Model, folder: Path) -> dict[str, Any]:
    return content(model) | _source(source_sha("models", model.model, folder))


def data_content(data: Data, folder: Path, fingerprint: str | None) -> dict[str, Any]:
    said = content(data)
    options = {name: value for name, value in said["options"].items() if name not in LOCAL}
    sha = source_sha("data", data.name, folder)
    return {**said, "options": options, "fingerprint": fingerprint} | _source(sha)


def task_content(suite: Suite) -> dict[str, Any]:
    """Nothing where the task is what it always was, classification; else its name, and source where it is not ours."""
    if suite.task_name == TASK:
        return {}
    return {"task": {"name": name_of(suite.task, Task), **_source(class_sha(suite.task))}}


def headline_of(suite: Suite) -> dict[str, Any] | None:
    """The score that ranks, as a record says it; None: top-1 in percent."""
    metric = suite.task.headline
    said = {"name": metric.name, "unit": metric.unit, "better": metric.better, "digits": metric.digits}
    return None if said == TOP1 else said


def method_content(method: Method) -> dict[str, Any]:
    """Name, revision and every knob that is born, defaults included, of a method and of what it wraps."""
    values: dict[str, Any] = {"name": name_of(type(method)), "revision": type(method).revision}
    values["knobs"] = {
        name: value
        for name, field in knobs(method).items()
        if born(field.metadata["knob"]["since"], value := getattr(method, name), field.default)
    }
    if isinstance(method, Wrapper):
        values["over"] = method_content(method.over)
    return values | _source(class_sha(type(method)))


def _source(sha: str | None) -> dict[str, str]:
    """Of what is not ours: its text counts."""
    return {"source": sha} if sha else {}
