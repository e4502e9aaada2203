"""Tiny networks of every kind of feature, and what a method sees of them; no engine, no kdbench models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from kdbench.batch import Batch, Out, Profile
from kdbench.method import Method, Prepared
from kdbench.targets import Targets
from kdbench.tasks.classification import Classification

CLASSES, CHANNELS, SIZE, EXAMPLES = 5, 3, 8, 40


class Tap(NamedTuple):
    path: str
    side: str = "output"


class Net(nn.Module):
    """Blocks in turn, mean over places, one linear classifier."""

    def __init__(self, blocks: Sequence[nn.Module], features: int, classes: int = CLASSES) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*blocks)
        self.fc = nn.Linear(features, classes)
        self.kd_taps = {f"block{i + 1}": Tap(f"blocks.{i}") for i in range(len(blocks))} | {
            "pooled": Tap("fc", "input")
        }
        self.kd_classifier = "fc"

    def taps(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        found = {}
        for i, block in enumerate(self.blocks):
            x = found[f"block{i + 1}"] = block(x)
        if x.ndim > 2:
            x = x.mean((2, 3)) if x.ndim == 4 else x.mean(1)
        found["pooled"] = x
        return self.fc(x), found

    def forward(self, x: Tensor) -> Tensor:
        return self.taps(x)[0]


def maps(widths: Sequence[int] = (4, 6, 8), strides: Sequence[int] = (1, 2, 2)) -> Net:
    """Blocks answer maps (B, D, H, W); sizes 8, 4, 2 by default."""
    inputs = (CHANNELS, *widths)
    layers = zip(inputs, widths, strides, strict=False)
    return Net([nn.Sequential(nn.Conv2d(i, o, 3, s, padding=1), nn.ReLU()) for i, o, s in layers], widths[-1])


class Tokens(nn.Module):
    def __init__(self, width: int, tokens: int) -> None:
        super().__init__()
        self.embed, self.tokens = nn.Conv2d(CHANNELS, width, 4, stride=4), tokens

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.embed(x).flatten(2).transpose(1, 2)
        return torch.cat([tokens.mean(1, keepdim=True), tokens], 1)[:, -self.tokens :]


def tokens(width: int = 6, count: int = 4) -> Net:
    """Blocks answer tokens (B, L, D): 4 of them, or 5 with a class token in front, or 3, which form no square."""
    blocks = [Tokens(width, count), *(nn.Sequential(nn.Linear(width, width), nn.GELU()) for _ in range(2))]
    return Net(blocks, width)


def vectors(width: int = 6) -> Net:
    """Blocks answer vectors (B, D), like those of a multilayer perceptron."""
    first = nn.Sequential(nn.Flatten(), nn.Linear(CHANNELS * SIZE * SIZE, width), nn.ReLU())
    return Net([first, *(nn.Sequential(nn.Linear(width, width), nn.ReLU()) for _ in range(2))], width)


STUDENTS = {
    "maps": maps,
    "coarse maps": lambda: maps((4, 6, 8), (2, 2, 2)),
    "two blocks": lambda: maps((6, 8), (2, 2)),
    "tokens": tokens,
    "tokens with a class token": lambda: tokens(count=5),
    "tokens of no square": lambda: tokens(count=3),
    "vectors": vectors,
}


def seeded(make, seed: int = 0) -> Net:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make()


def teacher() -> Net:
    """Other widths and sizes than any student, one block more; its second block has weights of a student's shape."""
    return seeded(lambda: maps((6, 8, 10, 12), (1, 1, 2, 1)), seed=9).eval().requires_grad_(False)


def chosen(taps: dict, names: Sequence[str]) -> dict:
    """What the engine hands out of all taps: the wanted ones, under their real names, in the order of the model."""
    blocks = [name for name in taps if name.startswith("block")]
    wanted: set[str] = set()
    for name in names:
        if name == "block*":
            wanted.update(blocks)
        else:
            wanted.add(blocks[-int(name[6:])] if name.startswith("block-") else name)
    assert wanted <= set(taps)
    return {name: value for name, value in taps.items() if name in wanted}


def say(net: Net, role: str, x: Tensor, names: Sequence[str]) -> Out:
    logits, taps = net.taps(x)
    return Out(role, logits, chosen(taps, names))


def profile(net: Net, role: str, names: Sequence[str], examples: int = EXAMPLES) -> Profile:
    dtype = next(net.parameters()).dtype
    with torch.no_grad():
        logits, taps = net.taps(torch.zeros(2, CHANNELS, SIZE, SIZE, dtype=dtype))
    shapes = {name: tuple(value.shape[1:]) for name, value in chosen(taps, names).items()}
    return Profile(role, net, logits.shape[1], shapes, examples)


def batch(size: int = 8, *, seed: int = 0, epoch: int = 0, dtype: torch.dtype = torch.float32) -> Batch:
    made = torch.Generator().manual_seed(seed)
    x = torch.randn(size, CHANNELS, SIZE, SIZE, generator=made, dtype=torch.float64).to(dtype)
    labels = torch.randint(CLASSES, (size,), generator=made)
    index = torch.randperm(EXAMPLES, generator=made)[:size]
    rng = torch.Generator().manual_seed(seed + 1)
    return Batch(x, Targets(labels, CLASSES), index, Classification(CLASSES), epoch, 10, rng)


class Problem:
    """A method's answer while it learns: `student`, its teachers in its last stage, its heads."""

    def __init__(
        self, method: Method, student: str = "maps", *, dtype: torch.dtype = torch.float32, same: bool = False
    ) -> None:
        self.method, self.needs = method, method.needs()
        plan = method.plan(("teacher", "student", "ta"))
        self.role = plan.answer[-1]
        roles = [stage for stage in plan.stages if self.role in stage.learners][-1].learners[self.role]
        copies = {
            role: seeded(STUDENTS[student], seed=1 if same else 2) for role in roles if role in plan.copies or same
        }
        self.teachers = {role: copies.get(role, teacher()).to(dtype) for role in roles}
        for net in self.teachers.values():
            net.eval().requires_grad_(False)
        with torch.random.fork_rng():
            torch.manual_seed(4)
            self.student = Prepared.of(
                method.prepare(seeded(STUDENTS[student], seed=1).to(dtype), self.role, self.teachers)
            ).model
        learner = profile(self.student, self.role, self.needs.learner)
        teachers = {role: profile(net, role, self.needs.teacher) for role, net in self.teachers.items()}
        with torch.random.fork_rng():
            torch.manual_seed(3)
            self.heads = method.heads(learner, teachers).to(dtype)

    def outs(self, x: Tensor) -> tuple[Out, dict[str, Out]]:
        said = {role: say(net, role, x, self.needs.teacher) for role, net in self.teachers.items()}
        return say(self.student, self.role, x, self.needs.learner), {role: out.detach() for role, out in said.items()}

    def terms(self, given: Batch) -> dict[str, Tensor]:
        given = self.method.batch(given)
        learner, teachers = self.outs(given.x)
        return self.method.loss(learner, teachers, given, self.heads)
