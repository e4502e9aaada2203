"""Studies under attack: what tests of storages share."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import optuna
from optuna.trial import TrialState

from kdbench.suite.search import Entry, Space
from kdbench.tune.slots import Outcome, seconds_of
from kdbench.tune.storage import connect
from kdbench.tune.study import Study

SPACE = Space(
    (
        Entry("x", low=-2.0, high=2.0),
        Entry("kind", choices=("a", "b")),
        Entry("y", low=0.0, high=1.0, when=(("kind", ("b",)),)),
    ),
    {"x": 1.0, "kind": "a", "y": 0.5},
)


def worth(chosen) -> float:
    """The objective of these tests."""
    return -((chosen.get("x", 1.0) - 0.7) ** 2) + chosen.get("y", 0.0) / 10


WORKER = """
import os, sys, time
sys.path.insert(0, {tests!r})
from studies import open_study, worth
from kdbench.tune.study import Outcome
from kdbench.tune.storage import connect
study = open_study(sys.argv[1])
study.refresh()
while not study.done(int(sys.argv[2])):
    claim = study.claim(int(sys.argv[2]))
    if claim is None:
        time.sleep(0.05)
        study.refresh()
        continue
    with open(sys.argv[3], "a") as log:
        log.write(f"{{os.getpid()}} {{claim.slot}}\\n")
    with claim.alive():
        time.sleep(float(sys.argv[4]))
    claim.tell(Outcome("ok", (worth(claim.overrides),), seconds={{f"job{{claim.slot}}": 1.0}}))
    study.refresh()
"""


def start(url: str, slots_: int, folder: Path, seconds: float) -> subprocess.Popen:
    code = WORKER.format(tests=str(Path(__file__).parent))
    arguments = [sys.executable, "-c", code, url, str(slots_), str(folder / "log"), str(seconds)]
    return subprocess.Popen(arguments, env=os.environ | {"OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE, text=True)


def open_study(url: str, **changes) -> Study:
    values = {
        "storage": connect(url),
        "name": "s/p/m@0",
        "directions": ("maximize",),
        "space": SPACE,
        "sampler": "tpe",
        "pruner": optuna.pruners.NopPruner(),
        "attributes": {"suite": "s"},
    }
    return Study(**{**values, **changes})


def tune(study: Study, limit: int) -> list[dict]:
    """What a lone worker does until nothing is left."""
    tried = []
    study.refresh()
    while (claim := study.claim(limit)) is not None:
        tried.append(dict(claim.overrides))
        assert claim.tell(Outcome("ok", (worth(claim.overrides),), seconds={f"job{claim.slot}": 2.0}))
        study.refresh()
    return tried


def attack(url: str, folder: Path, *, workers: int, budget: int, kills: int, seconds: float) -> Study:
    """Workers that are killed with -9 while they hold a trial, each replaced; until the budget is spent."""
    running = [start(url, budget, folder, seconds) for _ in range(workers)]
    log, deadline, killed = folder / "log", time.monotonic() + 240, 0
    hit: dict[str, int] = {}  # slot -> kills: too many on one slot, and it counts as failed
    seen = 0
    try:
        while killed < kills and time.monotonic() < deadline:
            lines = log.read_text().splitlines() if log.exists() else []
            if len(lines) > seen:
                seen = len(lines)
                pid, slot = lines[-1].split()
                victim = next((p for p in running if p.pid == int(pid) and p.poll() is None), None)
                if victim is not None and hit.get(slot, 0) < 2:
                    hit[slot] = hit.get(slot, 0) + 1
                    victim.kill()
                    victim.wait()
                    killed += 1
                    running.append(start(url, budget, folder, seconds))
            time.sleep(0.01)
        for process in running:
            _, errors = process.communicate(timeout=max(1.0, deadline - time.monotonic()))
            assert process.returncode in (0, -9), errors
    finally:
        for process in running:
            process.kill()
    assert killed == kills
    study = open_study(url)
    study.refresh()
    return study


def assert_exact(study: Study, budget: int, kills: int) -> None:
    """None lost, none counted twice."""
    assert study.done(budget)
    assert sorted(study.table) == list(range(budget))
    complete = [trial for trial in study.trials if trial.state == TrialState.COMPLETE]
    assert sorted(trial.user_attrs["slot"] for trial in complete) == list(range(budget))
    assert seconds_of(study.trials) == budget
    assert sum(trial.user_attrs["attempt"] for trial in complete) == kills
    assert not [trial for trial in study.trials if trial.state == TrialState.RUNNING]
