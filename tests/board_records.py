"""Synthetic results and headings for the tests of the board, its page and its picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kdbench.result import Cost, Result, Teacher
from kdbench.spec import Reported
from kdbench.standing import Heading

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
        "roles": {pair: {"teacher": "resnet56", "student": "resnet8"} for pair in cells},
    }
    return Heading(**{**values, **changes})


def reported(top1: float, protocol: str) -> Reported:
    return Reported(top1=top1, protocol=protocol, source="A paper, 2020")
