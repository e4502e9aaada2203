"""What methods say they share with the floor is what the engine does."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from training import digits, network, recipe

from kdbench import plugins
from kdbench.batch import Batch
from kdbench.method import Method, Refusal, Wrapper
from kdbench.methods.active import Active
from kdbench.methods.none import NoTeacher
from kdbench.methods.opdf import OPDF
from kdbench.methods.progressive import Progressive
from kdbench.pairing import Pairing, pairing
from kdbench.train.engine import Engine
from kdbench.train.state import Training
from kdbench.train.steps import Stepper

ROLES = ("teacher", "student", "ta", "weak1", "weak2", "control")
ALL = Pairing()
LATER = Pairing(stage=False)
OTHERS = {
    "chain": LATER,
    "born_again": LATER,
    "clusters": LATER,
    "dgkd": LATER,
    "active": Pairing(order=False),
    "active_mixup": Pairing(stage=False, order=False),
    "progressive": Pairing(weights=False, stage=False),
}
ARMS = {
    "bdistil": Pairing(weights=False, stage=False, order=False),
    "independent": Pairing(weights=False, stage=False),
    "control": Pairing(weights=False),
}


def built(name: str) -> Method:
    return OPDF(align=False) if name == "opdf" else plugins.method_class(name, Path())()


CASES = [(built(name), OTHERS.get(name, ALL)) for name in plugins.builtin_methods()]
CASES += [(Progressive(arm=arm), found) for arm, found in ARMS.items()]
CASES += [(OPDF(align=False, over=Active()), Pairing(order=False))]


@pytest.fixture(scope="module")
def loaded() -> Any:
    return digits(0.2)


def seen(method: Method, loaded: Any, monkeypatch: pytest.MonkeyPatch) -> tuple[set[str], list[Any], list[Any]]:
    """Roles that answer; order and pixels of the first epoch in which the last of them learns."""
    plan = method.plan(ROLES)
    roles = {role: network(loaded, plan.copies.get(role, role)) for role in plan.roles}
    batches: list[tuple[int, Batch]] = []

    def watched(self: Stepper, batch: Batch, run: Any) -> Mapping[str, Any]:
        if plan.answer[-1] in run.stage.learners and batch.epoch == 0:
            batches.append((batch.stage, batch))
        return {role: torch.zeros(()) for role in ("train/loss",)}

    def before(self: Method, batch: Any) -> Any:
        return batch

    monkeypatch.setattr(Stepper, "_step", watched)
    monkeypatch.setattr(type(method), "batch", before)  # mixup changes what it is given: the same for all
    for role in plan.frozen:
        roles[role].eval().requires_grad_(False)
    Engine(Training(method, plan, roles, loaded, recipe(epochs=1), 0)).train()
    order = [batch.index_B.tolist() for _, batch in batches]
    return set(plan.answer), order, [batch.x.sum().item() for _, batch in batches]


@pytest.mark.parametrize(("method", "expected"), CASES, ids=lambda case: type(case).__name__)
def test_a_method_shares_what_it_says(method: Method, expected: Pairing, loaded: Any, monkeypatch: Any) -> None:
    stated = pairing(method, ROLES)
    assert stated == expected
    assert bool(stated.words) is (stated != ALL)
    with monkeypatch.context() as patch:
        floor = seen(NoTeacher(), loaded, patch)
    with monkeypatch.context() as patch:
        try:
            answers, order, pixels = seen(method, loaded, patch)
        except Refusal as refused:
            pytest.skip(f"does not fit these networks: {refused}")
    assert (answers == floor[0]) is stated.weights
    assert (order == floor[1]) is (stated.stage and stated.order)
    if stated.stage and stated.order:
        assert pixels == floor[2]


def test_wrappers_pass_on_what_they_wrap() -> None:
    assert isinstance(Active(), Wrapper)
    assert pairing(OPDF(align=False, over=Active()), ROLES) == pairing(Active(), ROLES)
