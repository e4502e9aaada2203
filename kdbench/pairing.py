"""What a method shares, seed by seed, with every other method of a pair, as its plan and its needs say.

The engine's streams depend on seed, role, stage and epoch alone: initial weights on the role; the order of the data on
the stage and its epoch; augmentation on the epoch, counted over stages. So whoever answers with the student, trains it
in the first stage and does not draw examples itself shares all three.
"""

from __future__ import annotations

from dataclasses import dataclass

from kdbench.method import Method, Plan, Refusal, changes

STUDENT = "student"


@dataclass(frozen=True)
class Pairing:
    """Whether it has the others' initial weights, order of the data and augmentation."""

    weights: bool = True  # the student answers, alone
    stage: bool = True  # all that answers learns in the first stage: the others' order and augmentation
    order: bool = True  # it sees every example once an epoch, and does not draw them itself

    @property
    def words(self) -> str:
        """What is not shared; "" where all is."""
        parts = [
            "" if self.weights else "other networks than the student answer, with initial weights of their own",
            "" if self.stage else "what answers learns in later stages, which have their own order and augmentation",
            "" if self.order else "it draws its examples itself",
        ]
        return "; ".join(filter(None, parts))


def pairing(method: Method, roles: tuple[str, ...]) -> Pairing:
    """Of a method on a pair with these roles; one that refuses the pair shares nothing that matters."""
    try:
        plan, probe = method.plan(roles), method.needs().probe
    except Refusal:
        return Pairing()
    return Pairing(
        weights=plan.answer == (STUDENT,),
        stage=all(_first_stage(plan, role) == 0 for role in plan.answer),
        order=not (probe and changes(method, "sample")) and not changes(method, "choose"),
    )


def _first_stage(plan: Plan, role: str) -> int:
    return next((number for number, stage in enumerate(plan.stages) if role in stage.learners), -1)
