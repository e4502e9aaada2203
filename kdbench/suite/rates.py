"""What `kdbench recipe` found: the floor of each pair at several learning rates, on the validation split.

Most of what a method seems to gain can be the size of its steps: a floor whose rate is too low is beaten by whatever
makes the loss larger. One file a suite, `recipes/<suite>.json` beside the boards, to be committed with them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from kdbench.files import write_atomically
from kdbench.suite.job import digest, variant
from kdbench.suite.load import Suite


@dataclass(frozen=True)
class Floor:
    """The floor of one pair: validation scores by factor of the recipe's learning rate, one a seed."""

    pair: str
    hash: str  # of the floor's job without its seed: another recipe, student or data set is another floor
    metric: str
    rate: float  # the recipe's
    seeds: tuple[int, ...]
    scores: Mapping[str, tuple[float, ...]]  # factor as text -> score of each seed; only where all have one
    better: str = "up"  # the good direction of the metric: "up" or "down"

    def gains(self, factor: str) -> list[float]:
        """What a factor gains over the recipe's own rate, seed by seed, positive where it is better."""
        sign = 1 if self.better == "up" else -1
        return [sign * (own - base) for own, base in zip(self.scores[factor], self.scores["1"], strict=True)]

    def gain(self, factor: str) -> float:
        """The mean of `gains`."""
        return fmean(self.gains(factor))

    def error(self, factor: str) -> float:
        """The standard error of `gain` over the seeds; infinite from one seed."""
        gains = self.gains(factor)
        return stdev(gains) / len(gains) ** 0.5 if len(gains) > 1 else float("inf")

    @property
    def best(self) -> float:
        """The factor with the best score; of equal ones the smallest."""
        return min((-self.gain(factor), float(factor)) for factor in self.scores)[1]

    @property
    def higher(self) -> tuple[float, float] | None:
        """The higher rate that gains most over the recipe's own, as (factor, gain), of those whose gain is more than
        twice its standard error: less than that may be chance. None where there is none."""
        gains = [
            (self.gain(factor), -float(factor))
            for factor in self.scores
            if float(factor) > 1 and self.gain(factor) > 2 * self.error(factor)
        ]
        gain, factor = max(gains, default=(0.0, -1.0))
        return (-factor, gain) if gain > 0 else None

    @property
    def left(self) -> float:
        """How much a higher rate would gain over the recipe's own; 0 where none does."""
        return self.higher[1] if self.higher else 0.0


def hash_of(suite: Suite, pair: str, label: str) -> str:
    content = variant(suite, pair, label, {}).content
    return digest({name: value for name, value in content.items() if name != "seed"})


def path_of(root: Path, suite: str) -> Path:
    return root / "recipes" / f"{suite}.json"


def write(root: Path, suite: str, floors: list[Floor]) -> Path:
    path = path_of(root, suite)
    text = json.dumps([asdict(floor) for floor in floors], indent=1, sort_keys=True) + "\n"
    write_atomically(path, text.encode())
    return path


def _read(item: dict[str, Any]) -> Floor:
    scores = {factor: tuple(values) for factor, values in item["scores"].items()}
    if any(len(values) != len(item["seeds"]) for values in scores.values()):
        raise ValueError("scores and seeds differ in number")
    return Floor(**{**item, "seeds": tuple(item["seeds"]), "scores": scores})


def current(suite: Suite, root: Path, label: str) -> dict[str, Floor]:
    """The floors that were measured for the suite as it is now, by pair; what cannot be read counts as not measured."""
    try:
        stored = json.loads(path_of(root, suite.file.name).read_text(encoding="utf-8"))
        floors = [_read(item) for item in stored]
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}
    cells = set(suite.cells)
    return {
        floor.pair: floor
        for floor in floors
        if (floor.pair, label) in cells and floor.hash == hash_of(suite, floor.pair, label)
    }
