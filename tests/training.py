"""Small real tasks for tests of the engine: scikit-learn's digits in little, one tiny network for each role."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from kdbench import data, models
from kdbench.data import DataSet
from kdbench.method import Method
from kdbench.streams import seeded
from kdbench.suite.fields import Data, Recipe
from kdbench.train.engine import Engine
from kdbench.train.state import State, Trained, Training

# A suite of four short jobs.
LITTLE = """
name: little
data: {name: digits, fraction: 0.2}
recipe: {epochs: 2, batch_size: 32, optimizer: {lr: 0.02}}
pairs:
  p:
    teacher: {model: cnn, options: {widths: [8, 16, 16]}, train: {epochs: 3}}
    student: {model: cnn, options: {widths: [4, 8, 8]}}
methods:
  none:
  kd:
seeds: [0, 1]
"""

SPECS = {
    "teacher": ("cnn", {"widths": [8, 16, 16]}),
    "ta": ("cnn", {"widths": [6, 8, 12]}),
    "student": ("cnn", {"widths": [4, 8, 8]}),
}


def digits(fraction: float = 0.2) -> DataSet:
    return data.load(Data(name="digits", fraction=fraction), Path("unused"))


def network(loaded: DataSet, role: str, seed: int = 0, spec: tuple[str, dict] | None = None) -> nn.Module:
    name, options = spec or SPECS.get(role, SPECS["student"])
    with seeded(seed, "init", role):
        return models.build(name, options, classes=loaded.classes, channels=loaded.channels, size=loaded.size)


def recipe(**changes: object) -> Recipe:
    return Recipe.model_validate(
        {"epochs": 2, "batch_size": 32, "optimizer": {"lr": 0.02}, "augment": {"crop": 1, "flip": True}} | changes
    )


def task(method: Method, loaded: DataSet, *, seed: int = 0, recipe_: Recipe | None = None, **specs) -> Training:
    plan = method.plan(("teacher", "student", "ta"))
    roles = {role: network(loaded, role, seed if role != "teacher" else 0, specs.get(role)) for role in plan.roles}
    for role in plan.frozen:
        roles[role].eval().requires_grad_(False)
    return Training(method, plan, roles, loaded, recipe_ or recipe(), seed)


def train(method: Method, loaded: DataSet, **options) -> Trained:
    return Engine(task(method, loaded, **options)).train()


def states(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    """Bit for bit."""
    assert list(one) == list(other)
    for name in one:
        assert torch.equal(one[name], other[name]), name


def snapshot(state: State) -> State:
    """What a checkpoint on disk would hold."""
    import copy

    return copy.deepcopy(state)
