"""Synthetic results and headings for the tests of the board, its page and its picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kdbench.board.rank import rank
from kdbench.board.rows import Board, Heading, Tuning
from kdbench.result import Cost, Exit, Prefix, Result, Teacher
from kdbench.suite.fields import Reported
from kdbench.tasks.classification import Classification

TEACHER = Teacher("t" * 12, "ab" * 32, {"val/top1": 89.5, "test/top1": 90.0, "test/nll": 0.25, "test/ece": 0.03})
MACHINE = {"device_name": "Test CPU, 2 threads", "precision": "fp32", "split": "0123", "versions": {"torch": "2.11"}}


def record(pair: str, label: str, seed: int, top1: float, **changes: Any) -> Result:
    """A finished result; `seconds` and `macs` set its cost, everything else is a field of Result."""
    cost = Cost(
        train_seconds=changes.pop("seconds", 10.0),
        teacher_seconds=30.0,
        images_per_second=1000.0,
        peak_memory_mb=100.0,
        learner_parameters=1500,
        head_parameters=500 if label == "crd" else 0,
        parameters=1000,
        macs=changes.pop("macs", 40_000),
        teacher_parameters=20_000,
        teacher_macs=800_000,
        latency_ms_batch1=0.1,
        latency_ms_batch256=5.0,
        epochs=30,
    )
    scores = {"test/top1": top1, "test/nll": 0.5, "test/ece": 0.02, "test/agreement": 0.9, "val/top1": 1.0}
    values: dict[str, Any] = {
        "key": f"{pair}-{label}-{seed}",
        "suite": "demo",
        "pair": pair,
        "method": label,
        "seed": seed,
        "status": "ok",
        "job": {"data": {"fingerprint": "f00d"}, "recipe": {"epochs": 30}, "seed": seed},
        "scores": scores,
        "cost": cost,
        "teacher": TEACHER,
        "provenance": MACHINE,
    }
    return Result(**{**values, **changes})


def records(pair: str, table: Mapping[str, Sequence[float]]) -> list[Result]:
    """label -> test top-1 of seeds 0, 1, 2, ..."""
    return [record(pair, label, seed, top1) for label, row in table.items() for seed, top1 in enumerate(row)]


def heading(cells: Mapping[str, Sequence[str]], seeds: int = 5, **changes: Any) -> Heading:
    """`cells`: pair -> labels."""
    labels = list(dict.fromkeys(label for row in cells.values() for label in row))
    values: dict[str, Any] = {
        "suite": "demo",
        "version": 1,
        "description": "Made for tests.",
        "data": {"name": "digits", "val": 180},
        "recipe": {"epochs": 30, "optimizer": {"name": "sgd", "lr": 0.05}},
        "pairs": tuple(cells),
        "methods": {label: f"{label}(knob=1)" for label in labels},
        "cells": tuple((pair, label) for pair, row in cells.items() for label in row),
        "seeds": tuple(range(seeds)),
        "headline": Classification.headline,
        "metrics": Classification.metrics,
        "followed": Classification.followed,
        "roles": {pair: {"teacher": "resnet56", "student": "resnet8"} for pair in cells},
    }
    return Heading(**{**values, **changes})


def reported(top1: float, protocol: str) -> Reported:
    return Reported(top1=top1, protocol=protocol, source="A paper, 2020")


LADDER = [60.0, 68.0, 72.5]  # test top-1 of the first 1, 2, 3 roles on seed 0
ALONE = [60.0, 64.0, 66.0]


def ladder(
    pair: str, label: str, seeds: int = 5, macs: int = 80_000, shift: float = 0.0, **changes: Any
) -> list[Result]:
    """Results of a method that answers with weak1..weak3, of `macs` each, and three early exits."""
    found = []
    for seed in range(seeds):
        top1 = [value + shift + 0.5 * seed * (-1) ** seed for value in LADDER]
        prefixes = [
            Prefix(
                role=f"weak{k + 1}",
                scores={"val/top1": value - 1.0, "test/top1": value, "test/nll": 0.9 - 0.1 * k, "test/ece": 0.05},
                alone={"val/top1": alone, "test/top1": top1[0] if k == 0 else alone + shift + 0.1 * seed},
                parameters=1000 * (k + 1),
                macs=macs * (k + 1),
            )
            for k, (value, alone) in enumerate(zip(top1, ALONE, strict=True))
        ]
        exits = [
            Exit(t, {"val/top1": best - 1.0, "test/top1": best}, {"val": macs * m, "test": macs * m}, leaving)
            for t, best, m, leaving in (
                (0.5, top1[0] + 2.0, 1.25, [0.8, 0.15, 0.05]),
                (0.8, top1[1] + 1.0, 1.6, [0.5, 0.4, 0.1]),
                (0.95, top1[2], 2.2, [0.3, 0.2, 0.5]),
            )
        ]
        found.append(record(pair, label, seed, top1[-1], macs=3 * macs, prefixes=prefixes, exits=exits, **changes))
    return found


def tuning(trials: int = 16, **changes: Any) -> Tuning:
    """What `kdbench tune` chose for one cell."""
    values: dict[str, Any] = {
        "overrides": {"temperature": 2.5, "recipe.optimizer.lr": 0.02},
        "trials": trials,
        "pruned": 2,
        "failed": 0,
        "gpu_seconds": 120.0,
        "value": 71.5,
        "default_value": 70.25,
        "expected_best": tuple(70.0 + 0.1 * n for n in range(trials)),
        "how": "on val/top1, 30 epochs, seed 1000",
        "sampler": "tpe",
        "configurations": None,
    }
    return Tuning(**{**values, **changes})


NONE = [70.0, 71.0, 69.5, 70.5, 70.2]


KD = [71.1, 71.9, 70.8, 71.4, 71.3]


DKD = [73.0, 74.1, 72.9, 73.3, 73.5]


BAD = [68.0, 69.1, 67.4, 68.6, 68.1]


PAIR = {"none": NONE, "kd": KD, "bad": BAD, "dkd": DKD}


def settings(n: int) -> Board:
    """dkd beats kd everywhere by growing margins; `sp` has no row on the first pair."""
    rows = [{**PAIR, "dkd": [x + 0.1 * i for x in DKD]} for i in range(n)]
    cells = {f"p{i}": [*PAIR, *(["sp"] if i else [])] for i in range(n)}
    given = [r for i in range(n) for r in records(f"p{i}", {**rows[i], **({"sp": BAD} if i else {})})]
    return rank(heading(cells), given)
