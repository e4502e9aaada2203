"""A study of one (pair, method), shared by any number of processes without a word between them but its storage.

The budget is a row of numbered slots. A trial belongs to a slot and is one attempt at it; of several trials of the same
attempt the one with the lowest number holds, which the storage hands out one by one. So a slot is never filled twice
and never lost, whoever is killed when: its latest attempt says what is to be done (`slots`), and only the move from
WAITING to RUNNING, which storages make exclusive, decides who does it.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState, create_trial

from kdbench.streams import derive
from kdbench.suite.search import Space
from kdbench.train.lease import STALE, Owner
from kdbench.tune.slots import (
    Outcome,
    Slot,
    _verdict,
    slots,
)
from kdbench.tune.storage import HEARTBEAT

if TYPE_CHECKING:
    from optuna.pruners import BasePruner
    from optuna.samplers import BaseSampler
    from optuna.storages import BaseStorage

STARTUP = 5  # trials before a sampler leaves chance


@dataclass
class Study:
    """One study in its storage. `enumerated`: configurations to try one by one, instead of draws."""

    storage: BaseStorage
    name: str
    directions: tuple[Literal["minimize", "maximize"], ...]
    space: Space
    sampler: str
    pruner: BasePruner
    attributes: Mapping[str, Any]
    enumerated: Sequence[Mapping[str, Any]] | None = None
    trials: list[FrozenTrial] = field(default_factory=list)
    table: dict[int, Slot] = field(default_factory=dict)
    _id: int | None = None
    _seen: dict[int, tuple[Any, float]] = field(default_factory=dict)  # of running trials without a heartbeat

    @property
    def exists(self) -> bool:
        if self._id is None:
            with contextlib.suppress(KeyError):
                self._id = self.storage.get_study_id_from_name(self.name)
        return self._id is not None

    @property
    def id(self) -> int:
        """Made at first use, by whoever comes first."""
        if not self.exists:
            made = optuna.create_study(
                storage=self.storage, study_name=self.name, directions=list(self.directions), load_if_exists=True
            )
            for key, value in self.attributes.items():
                made.set_user_attr(key, value)
            self._id = self.storage.get_study_id_from_name(self.name)
        assert self._id is not None
        return self._id

    def refresh(self) -> dict[int, Slot]:
        """Read the trials; those of workers that are gone are failed."""
        self._read()
        if self._fail_stale():
            self._read()
        return self.table

    def look(self) -> None:
        """Read the trials and change nothing."""
        self._read()

    def attribute(self, name: str) -> Any:
        return self.storage.get_study_user_attrs(self.id).get(name)

    def _read(self) -> None:
        self.trials = self.storage.get_all_trials(self.id, deepcopy=False)
        self.table = slots(self.trials)

    def opened(self, sampler: BaseSampler | None = None) -> optuna.Study:
        return optuna.load_study(study_name=self.name, storage=self.storage, sampler=sampler, pruner=self.pruner)

    # claims ----------------------------------------------------------------------------------------------------------
    def next_slot(self, limit: int) -> int | None:
        """The lowest slot that somebody should begin, as last read."""
        for number in range(limit):
            if number not in self.table or self.table[number].state in ("waiting", "again"):
                return number
        return None

    def done(self, limit: int) -> bool:
        return all(number in self.table and self.table[number].state == "done" for number in range(limit))

    def claim(self, limit: int) -> Claim | None:
        """A slot for this process alone, or None where all are taken or done."""
        while (number := self.next_slot(limit)) is not None:
            slot = self.table.get(number)
            if slot is None or slot.state == "again":
                mine = self.storage.create_new_trial(self.id, self._template(number, slot))
                self._read()
                if self.table[number].trial._trial_id != mine:  # another process was faster by a number
                    self._end(mine, Outcome("void"))
                    self._read()
                    continue
            held = self._hold(self.table[number])
            if held is not None:
                return held
            self._read()
        return None

    def _template(self, number: int, before: Slot | None) -> FrozenTrial:
        """The next attempt at a slot: the same configuration once more, or a fresh one."""
        attributes: dict[str, Any] = {"slot": number, "attempt": before.attempt + 1 if before else 0, "owner": _me()}
        last = before.trial if before else None
        chosen: Mapping[str, Any] | None = None
        values: dict[int, float] = {}
        if last is not None and "overrides" in last.user_attrs and _verdict(last) != "infeasible":
            chosen, values = last.user_attrs["overrides"], last.intermediate_values
            attributes |= {"drawn": True} if "drawn" in last.user_attrs else {}
        elif self.enumerated is not None:
            chosen = self.enumerated[number]
        elif number == 0:
            chosen = {}
        if chosen is None:
            return create_trial(state=TrialState.WAITING, user_attrs={**attributes, "drawn": True})
        params = self.space.params(chosen)
        attributes["overrides"] = dict(chosen)
        return create_trial(
            state=TrialState.WAITING,
            params=params,
            distributions=self.space.distributions(params),
            user_attrs=attributes,
            intermediate_values=values,
        )

    def _hold(self, slot: Slot) -> Claim | None:
        identifier = slot.trial._trial_id
        if self._beats:
            self.storage.record_heartbeat(identifier)  # type: ignore[attr-defined]  # before: so it always has one
        try:
            if not self.storage.set_trial_state_values(identifier, TrialState.RUNNING):
                return None
        except (UpdateFinishedTrialError, RuntimeError):
            return None
        if slot.trial.user_attrs.get("owner") != _me():
            self.storage.set_trial_user_attr(identifier, "owner", _me())
        seed = derive(0, self.name, slot.number, slot.draws) % 2**32
        trial = optuna.trial.Trial(self.opened(sampler_of(self.sampler, seed)), identifier)
        chosen = slot.trial.user_attrs.get("overrides")
        if chosen is None:
            chosen = self.space.draw(trial)
            self.storage.set_trial_user_attr(identifier, "overrides", chosen)
        return Claim(self, slot.number, slot.attempt, trial, chosen)

    def _end(self, identifier: int, outcome: Outcome) -> None:
        with contextlib.suppress(UpdateFinishedTrialError, RuntimeError):
            self.storage.set_trial_user_attr(identifier, "outcome", {"verdict": outcome.verdict})
            self.storage.set_trial_state_values(identifier, TrialState.FAIL)

    # signs of life ---------------------------------------------------------------------------------------------------
    @property
    def _beats(self) -> bool:
        interval = getattr(self.storage, "get_heartbeat_interval", None)
        return interval is not None and interval() is not None

    def beat(self, identifier: int, count: int) -> None:
        if self._beats:
            self.storage.record_heartbeat(identifier)  # type: ignore[attr-defined]
        else:
            self.storage.set_trial_user_attr(identifier, "beat", count)

    def _fail_stale(self) -> bool:
        """Fail running trials whose worker is gone: a dead process of this machine at once, others by their silence."""
        running = [trial for trial in self.trials if trial.state == TrialState.RUNNING]
        if not running:
            return False
        failed = False
        for trial in running:
            owner = trial.user_attrs.get("owner")
            gone = owner is not None and Owner(token="", host="", **owner).gone
            if gone or (not self._beats and self._silent(trial)):
                with contextlib.suppress(UpdateFinishedTrialError, RuntimeError):
                    self.storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
                failed = True
        if self._beats:
            optuna.storages.fail_stale_trials(self.opened())
            return True
        return failed

    def _silent(self, trial: FrozenTrial) -> bool:
        """Whether this process has seen no sign of it for STALE seconds of its own clock."""
        sign, now = trial.user_attrs.get("beat"), time.monotonic()
        if trial._trial_id not in self._seen or self._seen[trial._trial_id][0] != sign:
            self._seen[trial._trial_id] = (sign, now)
        return now - self._seen[trial._trial_id][1] > STALE


@dataclass
class Claim:
    """A slot that this process holds, and the configuration to try."""

    study: Study
    slot: int
    attempt: int
    trial: optuna.trial.Trial
    overrides: Mapping[str, Any]

    @contextlib.contextmanager
    def alive(self) -> Iterator[None]:
        """Signs of life while the trial runs."""
        stop = threading.Event()

        def beat() -> None:
            count = 0
            while not stop.wait(HEARTBEAT):
                count += 1
                with contextlib.suppress(Exception):  # the storage may be away for a moment
                    self.study.beat(self.trial._trial_id, count)

        thread = threading.Thread(target=beat, daemon=True, name="trial")
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def tell(self, outcome: Outcome) -> bool:
        """Close the trial; False where another process has taken it for lost, and its slot."""
        storage, identifier = self.study.storage, self.trial._trial_id
        told = {"verdict": outcome.verdict, "reason": outcome.reason, "seconds": dict(outcome.seconds)}
        state = {
            "ok": TrialState.COMPLETE,
            "pruned": TrialState.PRUNED,
            "diverged": TrialState.PRUNED,  # samplers learn from pruned trials, not from failed ones
            "infeasible": TrialState.PRUNED,
        }.get(outcome.verdict, TrialState.FAIL)
        try:
            storage.set_trial_user_attr(identifier, "outcome", told)
            values = list(outcome.values) if state == TrialState.COMPLETE else None
            # Not study.tell: it reads the trial several times, for samplers that keep a state; these keep none.
            storage.set_trial_state_values(identifier, state, values)
        except UpdateFinishedTrialError:
            return False
        return True


def _me() -> dict[str, Any]:
    """This process, as far as others of this machine need to tell whether it lives."""
    me = Owner.me()
    return {"machine": me.machine, "pid": me.pid, "started": me.started}


def sampler_of(name: str, seed: int) -> BaseSampler:
    """A sampler for one draw: what it proposes depends on the seed and on the study's finished trials alone."""
    samplers = optuna.samplers
    if name == "tpe":
        return samplers.TPESampler(seed=seed, n_startup_trials=STARTUP)
    if name == "gp":
        return samplers.GPSampler(seed=seed, n_startup_trials=STARTUP, warn_independent_sampling=False)
    if name == "cmaes":
        return samplers.CmaEsSampler(seed=seed, n_startup_trials=STARTUP, warn_independent_sampling=False)
    return samplers.RandomSampler(seed=seed)  # a grid draws nothing
