"""Studies as rows of slots: exact budgets under any interleaving and any death, on every kind of storage."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest
from optuna.trial import TrialState
from studies import SPACE, assert_exact, attack, open_study, tune

from kdbench.suite.search import Entry
from kdbench.train.lease import Owner
from kdbench.tune import study as module
from kdbench.tune.slots import MOST_DRAWS, MOST_LOST, Outcome, seconds_of, slots
from kdbench.tune.storage import mend


def url_of(kind: str, folder: Path) -> str:
    return f"sqlite:///{folder / 'tune.db'}" if kind == "sqlite" else f"journal:{folder / 'tune.log'}"


@pytest.fixture(params=["sqlite", "journal"])
def url(request, tmp_path: Path) -> str:
    return url_of(request.param, tmp_path)


def test_a_lone_worker_fills_every_slot_once_and_begins_with_the_suites_own(url: str) -> None:
    study = open_study(url)
    tried = tune(study, 8)
    assert len(tried) == 8
    assert tried[0] == {}
    assert study.trials[0].params == {"x": 1.0, "kind": "a"}
    assert study.done(8)
    assert [slot.number for slot in study.table.values()] == list(range(8))
    assert seconds_of(study.trials) == 16.0
    assert tune(study, 8) == []
    assert len(tune(study, 11)) == 3  # an extension


@pytest.mark.parametrize("sampler", ["tpe", "random", "cmaes", "gp"])
def test_the_same_seed_gives_the_same_trials_also_when_it_was_stopped_in_between(sampler: str, tmp_path: Path) -> None:
    space = dataclasses.replace(SPACE, entries=SPACE.entries[:1] + (Entry("z", low=0.001, high=1.0, log=True),))
    space = dataclasses.replace(space, defaults={"x": 1.0, "z": 0.1})
    whole = tune(open_study(url_of("sqlite", tmp_path / "a"), sampler=sampler, space=space), 9)
    assert len({str(chosen) for chosen in whole}) == 9
    parts = []
    for limit in (3, 4, 9):  # each time a new process, as far as the study can tell
        parts += tune(open_study(url_of("sqlite", tmp_path / "b"), sampler=sampler, space=space), limit)
    assert parts == whole


def test_two_workers_never_hold_the_same_slot(url: str) -> None:
    one, two = open_study(url), open_study(url)
    held = []
    one.refresh()
    two.refresh()
    for study in (one, two, two, one):  # neither reads what the other did before it claims
        held.append(study.claim(4))
    assert sorted(claim.slot for claim in held) == [0, 1, 2, 3]
    assert one.claim(4) is None
    for claim in held:
        assert claim.tell(Outcome("ok", (1.0,)))
    one.refresh()
    assert one.done(4)
    assert sum(trial.state == TrialState.COMPLETE for trial in one.trials) == 4


def test_a_trial_of_a_dead_process_is_failed_and_redone_with_the_same_configuration(url: str, monkeypatch) -> None:
    study = open_study(url)
    tune(study, 3)
    study.refresh()
    lost = study.claim(4)
    monkeypatch.setattr(Owner, "gone", property(lambda owner: owner.pid == os.getpid()))
    study.refresh()
    monkeypatch.undo()
    assert study.trials[-1].state == TrialState.FAIL
    again = study.claim(4)
    assert (again.slot, again.attempt, again.overrides) == (3, 1, lost.overrides)
    assert not lost.tell(Outcome("ok", (9.0,)))  # it comes back from the dead: too late
    assert again.tell(Outcome("ok", (1.0,)))
    study.refresh()
    assert study.table[3].trial.values == [1.0]
    assert study.done(4)
    assert len(study.table) == 4


def test_a_slot_whose_workers_keep_dying_fails_in_the_end(url: str, monkeypatch) -> None:
    study = open_study(url)
    for _ in range(MOST_LOST):
        study.refresh()
        assert study.claim(1) is not None
        with monkeypatch.context() as patch:
            patch.setattr(Owner, "gone", property(lambda owner: True))
            study.refresh()
    assert study.claim(1) is None
    assert study.table[0].verdict == "failed"
    assert study.table[0].reason == f"its worker died {MOST_LOST} times"


def test_a_silent_worker_elsewhere_loses_its_trial(tmp_path: Path, monkeypatch) -> None:
    study = open_study(url_of("journal", tmp_path))
    study.refresh()
    claim = study.claim(1)
    elsewhere = {"machine": "another", "pid": 1, "started": "0"}
    study.storage.set_trial_user_attr(claim.trial._trial_id, "owner", elsewhere)
    now = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    for count in (1, 2):  # it beats: it lives
        study.beat(claim.trial._trial_id, count)
        now[0] += module.STALE
        assert study.refresh()[0].state == "running"
    now[0] += module.STALE + 1
    assert study.refresh()[0].state == "again"


def test_a_database_notices_a_worker_without_heartbeat(tmp_path: Path) -> None:
    import sqlalchemy

    url = url_of("sqlite", tmp_path)
    study = open_study(url)
    study.refresh()
    claim = study.claim(1)
    study.storage.set_trial_user_attr(claim.trial._trial_id, "owner", {"machine": "x", "pid": 1, "started": "0"})
    assert study.refresh()[0].state == "running"
    with sqlalchemy.create_engine(url).begin() as connection:
        connection.exec_driver_sql("UPDATE trial_heartbeats SET heartbeat = datetime('now', '-5 minutes')")
    assert study.refresh()[0].state == "again"


def test_what_breaks_a_constraint_costs_no_slot_until_there_is_too_much_of_it(url: str) -> None:
    study = open_study(url)
    tune(study, 1)
    drawn = []
    for _ in range(3):
        claim = study.claim(2)
        assert claim.slot == 1
        drawn.append(claim.overrides["x"])
        claim.tell(Outcome("infeasible", reason="macs 9 exceed 5"))
        study.refresh()
    assert len(set(drawn)) == 3
    assert not study.done(2)
    trials = [trial for trial in study.trials if trial.user_attrs["slot"] == 1]
    assert [trial.state for trial in trials] == [TrialState.PRUNED] * 3
    many = [copied(trials[0], attempt) for attempt in range(MOST_DRAWS)]
    assert slots(many)[1].verdict == "failed"


def copied(trial, attempt: int):
    import copy

    made = copy.deepcopy(trial)
    made.number = 100 + attempt
    made.user_attrs["attempt"] = attempt
    return made


def test_an_interrupted_trial_goes_on_and_is_not_counted_as_lost(url: str) -> None:
    study = open_study(url)
    tune(study, 1)
    first = study.claim(2)
    for _ in range(MOST_LOST + 1):
        claim = first if _ == 0 else study.claim(2)
        assert claim.overrides == first.overrides
        claim.tell(Outcome("interrupted"))
        study.refresh()
    assert study.next_slot(2) == 1


def test_failures_and_prunings_are_final(url: str) -> None:
    study = open_study(url)
    study.refresh()
    for verdict in ("failed", "diverged", "pruned"):
        claim = study.claim(3)
        claim.tell(Outcome(verdict, reason="because", seconds={"k": 1.0}))
        study.refresh()
    assert [slot.verdict for slot in study.table.values()] == ["failed", "diverged", "pruned"]
    assert study.table[0].reason == "because"
    assert study.done(3)
    assert seconds_of(study.trials) == 1.0  # one job, three trials


def test_enumerated_configurations_are_tried_in_order(url: str) -> None:
    configurations = [{}, {"kind": "b"}, {"x": 2.0}]
    study = open_study(url, enumerated=configurations, sampler="grid")
    assert tune(study, 3) == configurations


def test_a_torn_last_line_is_cut_off_by_the_next_writer(tmp_path: Path) -> None:
    url, path = url_of("journal", tmp_path), tmp_path / "tune.log"
    tune(open_study(url), 3)
    whole = path.read_bytes()
    for torn in (b'{"op_code": 4, "wor', b'{"op_code": 4, "wor\n', b"\x00\x00\n"):
        path.write_bytes(whole + torn)
        study = open_study(url)
        study.refresh()  # readers skip it
        assert study.done(3)
    assert len(tune(study, 5)) == 2
    text = path.read_bytes()
    assert text.startswith(whole)
    assert b"\x00" not in text
    again = open_study(url)
    again.refresh()
    assert again.done(5)


def test_mending_leaves_whole_files_alone(tmp_path: Path) -> None:
    path = tmp_path / "j"
    assert not mend(path)
    for content, left in (
        (b"", b""),
        (b'{"a": 1}\n', b'{"a": 1}\n'),
        (b'{"a', b""),
        (b'{"a": 1}\n{"b"', b'{"a": 1}\n'),
        (b'{"a": 1}\n' + b"x" * 200_000, b'{"a": 1}\n'),
        (b'{"a": "' + b"x" * 200_000 + b'"}\n', b'{"a": "' + b"x" * 200_000 + b'"}\n'),
    ):
        path.write_bytes(content)
        assert mend(path) == (content != left)
        assert path.read_bytes() == left


def test_a_killed_workers_trial_is_redone_by_another(url: str, tmp_path: Path) -> None:
    study = attack(url, tmp_path, workers=1, budget=3, kills=1, seconds=0.2)
    assert_exact(study, 3, 1)


@pytest.mark.slow
def test_four_workers_and_six_kills(url: str, tmp_path: Path) -> None:
    study = attack(url, tmp_path, workers=4, budget=24, kills=6, seconds=0.3)
    assert_exact(study, 24, 6)
