"""A result: everything known about one finished job, as one immutable JSON record.

Scores are named `split/metric` and are fractions, nats or numbers in the data's own unit, never percentages, except
`*/top1` and `*/top5`, which are percent. Units are in names. No user names, host names or absolute paths.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

TOP1 = {"name": "top1", "unit": "%", "better": "up", "digits": 2}  # the headline where a record names none
Status = Literal["ok", "failed", "diverged", "skipped", "pruned"]
FORMAT = 1
YOUNG = ("headline",)  # fields that records of before do not have: left out where they say nothing


@dataclass(frozen=True)
class Cost:
    """What it cost to train, and what the deployed student costs to run."""

    train_seconds: float  # training steps only, every stage, every learner
    teacher_seconds: float  # training of the frozen teachers this job used, wherever it happened
    images_per_second: float
    peak_memory_mb: float
    learner_parameters: int  # of all learners while they train
    head_parameters: int  # extra trainable parameters, kept out of the deployed student
    parameters: int  # deployed student
    macs: int  # deployed student, one image
    teacher_parameters: int
    teacher_macs: int
    latency_ms_batch1: float
    latency_ms_batch256: float
    epochs: int  # summed over stages
    trials: int = 0  # of tuning that led to the knobs
    cpu_seconds: float = 0.0  # of the processor, in `train_seconds`; 0 where nobody counted


@dataclass(frozen=True)
class Teacher:
    """The frozen teacher of the pair: the same checkpoint in every row."""

    key: str
    sha256: str
    scores: dict[str, float]


@dataclass(frozen=True)
class Prefix:
    """The answer of the first k roles of a plan that answers with several: what it is worth if one stops there."""

    role: str  # the k-th
    scores: dict[str, float]  # val/*, test/* of the first k together
    alone: dict[str, float]  # val/*, test/* of the k-th alone
    parameters: int  # of the first k together
    macs: int  # of the first k together, one image


@dataclass(frozen=True)
class Exit:
    """Early exit: an image goes on to the next role while the most probable class has less than `threshold`."""

    threshold: float
    scores: dict[str, float]  # val/top1, test/top1
    macs: dict[str, float]  # expected for one image: {"val": ..., "test": ...}
    leaving: list[float]  # share of test images that leave at each k


@dataclass(frozen=True)
class Result:
    key: str
    suite: str
    pair: str
    method: str  # label in the suite
    seed: int
    status: Status
    reason: str = ""  # one sentence where status is not ok
    comparable: bool = True  # False where the command line changed the recipe (--epochs)
    job: dict[str, Any] = field(default_factory=dict)  # the resolved job: what `key` is the hash of
    scores: dict[str, float] = field(default_factory=dict)
    curves: dict[str, list[float | None]] = field(default_factory=dict)  # one value an epoch, stages concatenated
    cost: Cost | None = None
    teacher: Teacher | None = None
    provenance: dict[str, Any] = field(default_factory=dict)
    track: str = "default"  # "tuned": the knobs were chosen by `kdbench tune`
    prefixes: list[Prefix] = field(default_factory=list)  # empty where one role answers alone
    exits: list[Exit] = field(default_factory=list)  # by rising threshold
    notes: list[str] = field(default_factory=list)  # sentences of the method about a finished job
    headline: dict[str, Any] | None = None  # {name, unit, better, digits} of the score that ranks; None: `TOP1`
    format: int = FORMAT

    @property
    def main(self) -> dict[str, Any]:
        """The headline, whichever it is."""
        return self.headline or dict(TOP1)

    def to_json(self) -> str:
        """Canonical text: sorted keys, non-finite numbers as null, newline at the end."""
        values = {name: value for name, value in asdict(self).items() if name not in YOUNG or value is not None}
        return json.dumps(_finite(values), indent=1, sort_keys=True, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Result:
        """Raises ValueError when the text is not a result of this format."""
        try:
            raw = json.loads(text)
            if not isinstance(raw, dict) or raw.get("format") != FORMAT:
                raise ValueError(f"not a kdbench result of format {FORMAT}")
            known = {f.name for f in fields(cls)}
            if extra := set(raw) - known:
                raise ValueError(f"unknown fields {sorted(extra)}")
            raw["cost"] = Cost(**raw["cost"]) if raw.get("cost") else None
            raw["teacher"] = Teacher(**raw["teacher"]) if raw.get("teacher") else None
            raw["prefixes"] = [Prefix(**prefix) for prefix in raw.get("prefixes", ())]
            raw["exits"] = [Exit(**leave) for leave in raw.get("exits", ())]
            return cls(**raw)
        except (TypeError, KeyError, AttributeError, json.JSONDecodeError) as error:
            raise ValueError(str(error)) from error


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
