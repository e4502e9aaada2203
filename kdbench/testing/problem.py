"""What a method sees while it learns, small enough for a test: networks, their profiles, one batch, and no engine."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from kdbench.batch import Batch, Chosen, Out, Pool, Probe, Profile
from kdbench.losses import row_mean
from kdbench.method import Method, Plan, Prepared, Refusal
from kdbench.models import taps
from kdbench.targets import Targets
from kdbench.tasks import Metric, Scorer, Task
from kdbench.tasks.classification import Classification
from kdbench.testing.nets import CHANNELS, CLASSES, SIZE, STUDENTS, TRANSFORMERS, seeded, teacher

EXAMPLES, EPOCHS = 40, 10
ROLES = ("teacher", "student", "ta")  # of the pair
CLASSIFICATION = Classification(CLASSES)


@dataclasses.dataclass(frozen=True)
class Numbers(Task):
    """Several numbers for each example: what a method meets that works on more than classes."""

    kind: ClassVar[Literal["real"]] = "real"
    headline: ClassVar[Metric] = Metric("mse", better="down", bounds=(0.0, float("inf")))
    metrics: ClassVar[tuple[Metric, ...]] = (headline,)

    def targets(self, labels: Tensor) -> Targets:
        return Targets(labels)

    def supervised(self, rows: Tensor, targets: Targets) -> dict[str, Tensor]:
        return {"mse": row_mean((rows - targets.values.to(rows.dtype)).square().mean(1), targets)}

    def scorer(self) -> Scorer:
        return _Mean()


class _Mean:
    def __init__(self) -> None:
        self.sum, self.rows = 0.0, 0

    def add(self, rows: Tensor, targets: Targets, teacher_rows: Tensor | None = None) -> None:
        self.sum += (rows.double() - targets.values).square().mean(1).sum().item()
        self.rows += len(rows)

    def scores(self) -> dict[str, float]:
        return {"mse": self.sum / self.rows}


def images(count: int, made: torch.Generator, dtype: torch.dtype = torch.float32) -> Tensor:
    """Normally distributed pixels (count, 3, 8, 8); the same numbers in every dtype."""
    return torch.randn(count, CHANNELS, SIZE, SIZE, generator=made, dtype=torch.float64).to(dtype)


def labels(task: Task, count: int, made: torch.Generator) -> Tensor:
    """Classes (count,) or numbers (count, outputs), as a data set stores them."""
    if task.kind == "categorical":
        return torch.randint(task.outputs, (count,), generator=made)
    return torch.randn(count, task.outputs, generator=made, dtype=torch.float64)


def batch(
    size: int = 8,
    *,
    seed: int = 0,
    epoch: int = 0,
    dtype: torch.dtype = torch.float32,
    views: int = 1,
    task: Task = CLASSIFICATION,
) -> Batch:
    """A batch of an epoch out of ten, with `views` - 1 further views of the same examples."""
    made = torch.Generator().manual_seed(seed)
    x = images(size, made, dtype)
    targets = task.targets(labels(task, size, made))
    index = torch.randperm(EXAMPLES, generator=made)[:size]
    further = tuple(x + 0.1 * images(size, made, dtype) for _ in range(views - 1))
    rng = torch.Generator().manual_seed(seed + 1)
    return Batch(x, targets, index, task, epoch, EPOCHS, rng, views=further)


def profile(
    net: nn.Module, role: str, names: Sequence[str], examples: int = EXAMPLES, classes: int = CLASSES
) -> Profile:
    """What `heads` is told about a network."""
    return taps.profile(net, role, names, classes=classes, examples=examples, input_shape=(CHANNELS, SIZE, SIZE))


class Problem:
    """A method's answer while it learns: `student`, its teachers in its last stage, its heads.

    Args:
        student: one of `STUDENTS` or `TRANSFORMERS`; default: the first that the method does not refuse.
        same: teachers are networks with the student's own weights.

    Raises:
        Refusal: the method refuses this student; by default, every student (the sentence is about the first).
    """

    def __init__(
        self,
        method: Method,
        student: str | None = None,
        *,
        dtype: torch.dtype = torch.float32,
        same: bool = False,
        task: Task = CLASSIFICATION,
    ) -> None:
        self.method, self.needs, self.task, self.dtype = method, method.needs(), task, dtype
        self.plan = method.plan(ROLES)
        self.role = self.plan.answer[-1]
        self.kind = student if student is not None else accepted(method)
        make = (STUDENTS | TRANSFORMERS)[self.kind]
        roles = taught_by(self.plan, self.role)
        copies = {role: seeded(make, seed=1 if same else 2) for role in roles if role in self.plan.copies or same}
        self.teachers = {role: copies.get(role, teacher(self.kind)).to(dtype) for role in roles}
        for net in self.teachers.values():
            net.eval().requires_grad_(False)
        fresh = seeded(make, seed=1).to(dtype)
        with torch.random.fork_rng():
            torch.manual_seed(4)
            self.student = Prepared.of(method.prepare(fresh, self.role, self.teachers)).model
        self.profile = self._profile(self.student, self.role, self.needs.learner)
        with torch.random.fork_rng():
            torch.manual_seed(3)
            self.heads = Prepared.of(method.heads(self.profile, self.profiles())).model.to(dtype)
        self._says = taps.Tapped(self.student, self.role, self.needs.learner)
        self._say = {role: taps.Tapped(net, role, self.needs.teacher) for role, net in self.teachers.items()}

    def _profile(self, net: nn.Module, role: str, names: Sequence[str]) -> Profile:
        found = profile(net, role, names, classes=self.task.outputs)
        rows_NC = None
        if self.needs.probe and role in self.plan.frozen:
            with torch.no_grad():
                rows_NC = net(images(EXAMPLES, torch.Generator().manual_seed(8), self.dtype))
        return dataclasses.replace(found, rows_NC=rows_NC, answers=len(self.plan.answer))

    def profiles(self) -> dict[str, Profile]:
        """Of the teachers."""
        return {role: self._profile(net, role, self.needs.teacher) for role, net in self.teachers.items()}

    def batch(self, size: int = 8, *, seed: int = 0, epoch: int = 0) -> Batch:
        """A batch as this method needs it."""
        given = batch(size, seed=seed, epoch=epoch, dtype=self.dtype, views=self.needs.views, task=self.task)
        return dataclasses.replace(given, surveys=dict(self._surveys(given.x)))

    def _surveys(self, x: Tensor) -> Iterator[tuple[str, Tensor]]:
        """What the method asks of its teachers about each example, of these."""
        for asked in self.needs.survey:
            values = asked.make(self.teachers[asked.role], x).detach()
            yield asked.name, values if asked.finish is None else asked.finish(values)

    def pool(self, stage: int, chosen: Chosen | None = None) -> Pool:
        """What `choose` is given; every role answers as the student."""
        x = images(EXAMPLES, torch.Generator().manual_seed(8), self.dtype)

        def ask(role: str, of: Chosen) -> Tensor:
            share = of.share_M.to(x.dtype)[:, None, None, None]
            with torch.no_grad():
                return self.student(share * x[of.first_M] + (1 - share) * x[of.other_M])

        return Pool(stage, EXAMPLES, ask, torch.Generator().manual_seed(stage), chosen)

    def probe(self, epoch: int = 0) -> Probe:
        """What `sample` and `review` are given."""
        made = torch.Generator().manual_seed(8)
        with torch.no_grad():
            rows_NC = self.student(images(EXAMPLES, made, self.dtype))
        return Probe(rows_NC, labels(self.task, EXAMPLES, made), epoch, EPOCHS, self.role, self.heads)

    def outs(self, x: Tensor, views: Sequence[Tensor] = ()) -> tuple[Out, dict[str, Out]]:
        """What the learner says, with gradient, and what its teachers say, detached."""
        teachers = {role: self._out(tapped, x, views).detach() for role, tapped in self._say.items()}
        return self._out(self._says, x, views), teachers

    def _out(self, tapped: taps.Tapped, x: Tensor, views: Sequence[Tensor]) -> Out:
        return dataclasses.replace(tapped(x), views=tuple(tapped(view) for view in views))

    def terms(self, given: Batch) -> dict[str, Tensor]:
        """The named terms of a step."""
        given = self.method.batch(given)
        return self.loss(*self.outs(given.x, given.views), given)

    def loss(self, learner: Out, teachers: Mapping[str, Out], given: Batch) -> dict[str, Tensor]:
        return self.method.loss(learner, teachers, given, self.heads)


def taught_by(plan: Plan, role: str) -> tuple[str, ...]:
    """The teachers of a role in the last stage in which it learns."""
    return [stage for stage in plan.stages if role in stage.learners][-1].learners[role]


@lru_cache(maxsize=512)
def accepted(method: Method) -> str:
    """The first of `STUDENTS`, or else of `TRANSFORMERS`, that a method does not refuse.

    Raises:
        Refusal: the method's first, where it refuses all.
    """
    first: Refusal | None = None
    for student in (*STUDENTS, *TRANSFORMERS):
        try:
            return Problem(method, student).kind
        except Refusal as refusal:
            first = first or refusal
    assert first is not None
    raise first


def total(terms: Mapping[str, Tensor]) -> Tensor:
    """The sum that the engine minimises."""
    return torch.stack(list(terms.values())).sum()


def values(terms: Mapping[str, Tensor]) -> dict[str, float]:
    return {name: term.item() for name, term in terms.items()}
