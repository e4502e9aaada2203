"""Slots of a study: which trials stand for one unit of the budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from optuna.trial import FrozenTrial, TrialState

if TYPE_CHECKING:
    pass


MOST_LOST = 5  # attempts that ended with their worker, after which a slot counts as failed


MOST_DRAWS = 50  # proposals beyond the constraints, after which a slot counts as failed


Verdict = Literal["ok", "pruned", "failed", "diverged", "infeasible", "interrupted", "void"]


@dataclass(frozen=True)
class Outcome:
    """How an attempt ended. `seconds`: of training, by job key."""

    verdict: Verdict
    values: tuple[float, ...] = ()
    reason: str = ""
    seconds: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Slot:
    """One unit of the budget: its latest attempt, and what that means."""

    number: int
    trial: FrozenTrial  # the latest attempt's
    state: Literal["waiting", "running", "again", "done"]
    verdict: Verdict | None = None  # where it is done
    draws: int = 0  # proposals so far that broke a constraint
    lost: int = 0  # attempts so far that ended with their worker

    @property
    def attempt(self) -> int:
        return int(self.trial.user_attrs["attempt"])

    @property
    def reason(self) -> str:
        if self.lost >= MOST_LOST:
            return f"its worker died {self.lost} times"
        return str(_outcome(self.trial).get("reason", ""))


def slots(trials: Sequence[FrozenTrial]) -> dict[int, Slot]:
    """The slots that were begun, from nothing but the trials; every process comes to the same answer."""
    attempts: dict[int, dict[int, FrozenTrial]] = {}
    for trial in sorted(trials, key=lambda trial: trial.number):
        if "slot" in trial.user_attrs:
            row = attempts.setdefault(int(trial.user_attrs["slot"]), {})
            row.setdefault(int(trial.user_attrs["attempt"]), trial)
    return {number: _slot(number, [row[key] for key in sorted(row)]) for number, row in sorted(attempts.items())}


def _slot(number: int, row: Sequence[FrozenTrial]) -> Slot:
    verdicts = [_verdict(trial) for trial in row]
    draws, lost = verdicts.count("infeasible"), verdicts.count(None)
    last, verdict = row[-1], verdicts[-1]
    if last.state == TrialState.WAITING:
        return Slot(number, last, "waiting", None, draws, lost - 1)
    if last.state == TrialState.RUNNING:
        return Slot(number, last, "running", None, draws, lost - 1)
    if verdict is None and lost >= MOST_LOST:
        return Slot(number, last, "done", "failed", draws, lost)
    fixed = "overrides" in last.user_attrs and "drawn" not in last.user_attrs
    if verdict == "infeasible" and (fixed or draws >= MOST_DRAWS):
        return Slot(number, last, "done", "failed", draws, lost)
    if verdict in (None, "interrupted", "infeasible"):
        return Slot(number, last, "again", None, draws, lost)
    return Slot(number, last, "done", verdict, draws, lost)


def _outcome(trial: FrozenTrial) -> Mapping[str, Any]:
    found: Mapping[str, Any] = trial.user_attrs.get("outcome", {})
    return found


def _verdict(trial: FrozenTrial) -> Verdict | None:
    """None: not finished, or failed by others because its worker was gone."""
    said: Verdict | None = _outcome(trial).get("verdict")
    if trial.state == TrialState.COMPLETE:
        return "ok"
    if trial.state == TrialState.PRUNED:
        return said or "pruned"
    if trial.state == TrialState.FAIL and said not in ("ok", "pruned"):
        return said
    return None


def seconds_of(trials: Sequence[FrozenTrial]) -> float:
    """Training seconds of a study; a job that two trials share counts once."""
    jobs: dict[str, float] = {}
    for trial in trials:
        jobs |= _outcome(trial).get("seconds", {})
    return sum(jobs.values())
