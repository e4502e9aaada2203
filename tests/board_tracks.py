"""A little suite with stored results of both tracks: what tests of boards and listings share."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from board_records import record

from kdbench.result import Result
from kdbench.run.store import Store
from kdbench.suite import winners
from kdbench.suite.cell import cell_of
from kdbench.suite.job import Job, digest, expand
from kdbench.suite.load import Suite, load
from kdbench.suite.winners import Winner

SUITE = """
name: little
data: {name: digits}
recipe: {epochs: 4}
pairs:
  p: {teacher: cnn, student: {model: cnn, options: {widths: [4, 8, 8]}}, note: "claims reproduced, architecture ours"}
methods: {none: , kd: , kd-hot: {method: kd, temperature: 8.0}}
seeds: [0, 1, 2]
tune: {trials: 4}
"""
TOP1 = {"none": 70.0, "kd": 72.0, "kd-hot": 73.0}


def suite(folder: Path, text: str = SUITE) -> Suite:
    path = folder / "little.yaml"
    path.write_text(text)
    return load(path)


def finished(job: Job, top1: float, **changes: Any) -> Result:
    content = json.loads(json.dumps(job.content).replace('"fingerprint": null', '"fingerprint": "f00d"'))
    cost = dataclasses.replace(record("p", "x", 0, 0.0).cost, trials=job.trials)  # type: ignore[type-var]
    values = {"suite": job.suite, "track": job.track, "job": content, "key": digest(content), "cost": cost}
    return record(job.pair, job.label, job.seed, top1 + (0.0, 0.5, -0.3)[job.seed], **{**values, **changes})


def winner(suite: Suite, label: str, overrides: dict[str, Any], **changes: Any) -> Winner:
    values: dict[str, Any] = {
        "suite": "little",
        "pair": "p",
        "method": label,
        "space_hash": cell_of(suite, "p", label).hash,
        "overrides": overrides,
        "knobs": {},
        "trials": 1 if label == "none" else 4,
        "pruned": 1,
        "failed": 0,
        "gpu_seconds": 21.5,
        "metric": "val/top1",
        "value": 71.5,
        "values": [70.0, 71.5],
        "default_value": 70.0,
        "epochs": 4,
        "seeds": [1000],
        "sampler": "tpe",
        "objectives": ["val/top1"],
    }
    return Winner(**{**values, **changes})


OVERRIDES: Mapping[str, dict[str, Any]] = {
    "none": {}, "kd": {"temperature": 2.5}, "kd-hot": {"kd_weight": 0.5, "ce_weight": 0.5},
}  # fmt: skip


def tuned(suite: Suite, root: Path, **changes: dict[str, Any]) -> Store:
    """A folder of boards with both tracks done; `changes` are of a label's winner."""
    store = Store(root, "little")
    for job in expand(suite):
        store.write(finished(job, TOP1[job.label]))
    for label, overrides in OVERRIDES.items():
        found = winner(suite, label, overrides, **changes.get(label.replace("-", "_"), {}))
        winners.write(found, root)
        for seed in suite.file.seeds if found.overrides == overrides else ():
            job = winners.tuned_job(suite, found, None, seed=seed)
            store.write(finished(job, TOP1[label] + 1.0 + 0.1 * seed))
    return store
