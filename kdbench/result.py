"""A result: everything known about one finished job, as one immutable JSON record.

Scores are named `split/metric` and are fractions, nats or numbers in the data's own unit, never percentages, except
`*/top1` and `*/top5`, which are percent. Units are in names. No user names, host names or absolute paths.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, PlainValidator

from kdbench.files import STRICT, Amount, Count, Share, parsed

TOP1 = {"name": "top1", "unit": "%", "better": "up", "digits": 2}  # the headline where a record names none
Status = Literal["ok", "failed", "diverged", "skipped", "pruned"]
FORMAT = 1
YOUNG = ("headline",)  # fields that records of before do not have: left out where they say nothing
YOUNG_COSTS = {"queries": None, "zeros": 0}  # the same of `Cost`, with what says nothing

# Where a metric may lie, by the end of its name `split/metric`; any other is only finite. Sums are rounded.
ROUNDING = 1e-9
BOUNDS = {
    "top1": (0.0, 100.0),
    "top5": (0.0, 100.0),
    "agreement": (0.0, 1.0),
    "agreement_on_errors": (0.0, 1.0),
    "ece": (0.0, 1.0),
    "brier": (0.0, 2.0),
    "nll": (0.0, math.inf),
    "kl": (0.0, math.inf),
}


def _scores(value: Any) -> dict[str, float]:
    """Finite numbers within their bounds, or null: not measured."""
    if not isinstance(value, dict):
        raise ValueError("should be metrics by name")
    for name, number in value.items():
        if number is None:
            continue
        if type(number) not in (int, float) or not math.isfinite(number):
            raise ValueError(f"{name} should be a finite number")
        low, high = BOUNDS.get(name.rpartition("/")[2], (-math.inf, math.inf))
        if not low - ROUNDING <= number <= high + ROUNDING:
            raise ValueError(f"{name} should be within {low:g} and {high:g}")
    return {name: None if number is None else float(number) for name, number in value.items()}  # type: ignore[misc]


def _job(value: dict[str, Any]) -> dict[str, Any]:
    """Its parts are mappings, as far as they are there; the key says whether the content is whole."""
    for part in ("data", "recipe", "roles", "method"):
        if not isinstance(value.get(part, {}), Mapping):
            raise ValueError(f"{part} should be a mapping")
    return value


def _provenance(value: dict[str, Any]) -> dict[str, Any]:
    for name, told in value.items():
        texts = list(told.values()) if name == "versions" and isinstance(told, dict) else [told]
        if (name == "versions") != isinstance(told, dict) or not all(isinstance(text, str) for text in texts):
            raise ValueError(f"{name} should be {'texts by name' if name == 'versions' else 'a text'}")
    return value


Scores = Annotated[dict[str, float], PlainValidator(_scores)]
Content = Annotated[dict[str, Any], AfterValidator(_job)]
Provenance = Annotated[dict[str, Any], AfterValidator(_provenance)]
Label = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+-]*$")]
Curve = list[float | None]


@dataclass(frozen=True)
class Cost:
    """What it cost to train, and what the deployed student costs to run."""

    __pydantic_config__ = STRICT

    train_seconds: Amount  # training steps only, every stage, every learner
    teacher_seconds: Amount  # training of the frozen teachers this job used, wherever it happened
    images_per_second: Amount
    peak_memory_mb: Amount
    learner_parameters: Count  # of all learners while they train
    head_parameters: Count  # extra trainable parameters, kept out of the deployed student
    parameters: Count  # deployed student
    macs: Count  # deployed student, one image
    teacher_parameters: Count | None  # None: unknown, of a file of answers
    teacher_macs: Count | None
    latency_ms_batch1: Amount  # 0: not measured (of a trial), or too large for the memory
    latency_ms_batch256: Amount
    epochs: Count  # summed over stages
    trials: Count = 0  # of tuning that led to the knobs
    cpu_seconds: Amount = 0.0  # of the processor, in `train_seconds`; 0 where nobody counted
    queries: Count | None = None  # examples about which frozen roles were asked, where the method chooses them
    zeros: Count = 0  # numbers that are 0 in the deployed student's matrices and convolutions
    # Of `train_seconds`: forward passes of frozen teachers whose stored answers were looked up instead. Nobody spent
    # them; they are counted so that a row costs the same whoever came first.
    looked_up_seconds: Amount = 0.0

    @property
    def spent_seconds(self) -> float:
        """What the training took here, but for the storing of answers that other jobs use too."""
        return self.train_seconds - self.looked_up_seconds


@dataclass(frozen=True)
class Teacher:
    """The frozen teacher of the pair: the same checkpoint in every row."""

    __pydantic_config__ = STRICT

    key: str
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    scores: Scores


@dataclass(frozen=True)
class Prefix:
    """The answer of the first k roles of a plan that answers with several: what it is worth if one stops there."""

    __pydantic_config__ = STRICT

    role: str  # the k-th
    scores: Scores  # val/*, test/* of the first k together
    alone: Scores  # val/*, test/* of the k-th alone
    parameters: Count  # of the first k together
    macs: Count  # of the first k together, one image


@dataclass(frozen=True)
class Exit:
    """Early exit: an image goes on to the next role while the most probable class has less than `threshold`."""

    __pydantic_config__ = STRICT

    threshold: float
    scores: Scores  # val/top1, test/top1
    macs: dict[str, Amount]  # expected for one image: {"val": ..., "test": ...}
    leaving: list[Share]  # share of test images that leave at each k


@dataclass(frozen=True)
class Result:
    __pydantic_config__ = STRICT

    key: str
    suite: Label
    pair: Label
    method: Label  # label in the suite
    seed: Annotated[int, Field(ge=0)]
    status: Status
    reason: str = ""  # one sentence where status is not ok
    comparable: bool = True  # False where the command line changed the recipe (--epochs)
    job: Content = field(default_factory=dict)  # the resolved job: what `key` is the hash of
    scores: Scores = field(default_factory=dict)
    curves: dict[str, Curve] = field(default_factory=dict)  # one value an epoch, stages concatenated
    cost: Cost | None = None
    teacher: Teacher | None = None
    provenance: Provenance = field(default_factory=dict)
    track: Annotated[str, Field(pattern="^(default|tuned)$")] = "default"  # tuned: knobs that `tune` chose
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
        if self.cost is not None:
            values["cost"] = {k: v for k, v in values["cost"].items() if (k, v) not in YOUNG_COSTS.items()}
        return json.dumps(_finite(values), indent=1, sort_keys=True, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Result:
        """Raises ValueError, with a sentence, when the text is not a result of this format."""
        made = parsed(cls, text)
        if made.format != FORMAT:
            raise ValueError(f"not a kdbench result of format {FORMAT}")
        if made.job.get("seed", made.seed) != made.seed:
            raise ValueError("its seed is not that of its job")
        if made.status == "ok" and any(value is None and "/top1" in name for name, value in made.scores.items()):
            raise ValueError("finished without a finite accuracy")
        return made


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
