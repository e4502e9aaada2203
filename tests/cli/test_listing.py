"""What `kdbench show results` says of records that are on no board."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from board_tracks import SUITE, finished, suite

from kdbench.cli.listing import results
from kdbench.run.store import Store
from kdbench.suite.job import expand


def test_seeds_outside_the_suite_are_outside_and_not_stale(tmp_path: Path) -> None:
    little = suite(tmp_path, SUITE.replace("seeds: [0, 1, 2]", "seeds: [0]"))
    store = Store(tmp_path, "little")
    jobs = expand(little, seeds=(0, 2))
    for job in jobs:
        store.write(finished(job, 50.0))
    (old,) = (job for job in jobs if (job.label, job.seed) == ("kd", 0))
    content = {**old.content, "recipe": {**old.content["recipe"], "epochs": 99}}
    store.write(finished(dataclasses.replace(old, content=content), 50.0))
    said = {(row["method"], row["seed"], row["shown"]) for row in results(little, store)}
    assert ("none", "2", "no: seed 2 is outside the suite's") in said
    assert ("kd", "0", "no: stale") in said
    assert ("kd", "0", "yes") in said
