"""The values of a board: what the suite says, rows, tables, and what holds across settings. `board.rank` makes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from kdbench.statistics import Interval

FLOOR, REFERENCE, TEACHER = "none", "kd", "teacher"
HEADLINE, PRELIMINARY = 5, 3  # seeds
SMALLEST_GAP = 0.5  # points between teacher and floor, below which a share of the gap means nothing
BETTER, WORSE, NOT_SEPARABLE = "better than KD", "worse than KD", "not separable from KD"


class Reported(Protocol):
    """A paper's number in percent, and how the paper chose it."""

    @property
    def top1(self) -> float: ...
    @property
    def protocol(self) -> str | None: ...
    @property
    def source(self) -> str | None: ...


@dataclass(frozen=True)
class Heading:
    """What the suite says about itself, without paths."""

    suite: str
    version: int
    description: str
    data: Mapping[str, Any]
    recipe: Mapping[str, Any]
    pairs: tuple[str, ...]
    methods: Mapping[str, str]  # label -> method with its resolved knobs, "kd(temperature=4)"
    cells: tuple[tuple[str, str], ...]  # (pair, label)
    seeds: tuple[int, ...]
    reported: Mapping[tuple[str, str], Reported] = field(default_factory=dict)  # (pair, label or "teacher")
    roles: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # pair -> role -> model
    track: str = "default"


@dataclass(frozen=True)
class Row:
    """One method on one pair. Accuracies in percent; gains in points, paired by seed."""

    label: str
    seeds: Mapping[int, float]  # seed -> test top-1 of its finished jobs
    troubles: tuple[tuple[tuple[int, ...], str], ...]  # (seeds, what happened to them)
    why_unranked: str  # "" for a ranked row
    place: int | None = None
    top1: Interval | None = None
    gain: Interval | None = None  # over `none`
    over_kd: Interval | None = None
    p_holm: float | None = None
    claim: str = ""
    recovered: float | None = None  # share of the gap between floor and teacher
    metrics: Mapping[str, float] = field(default_factory=dict)  # means over seeds of test/*, without the prefix
    parameters: int | None = None
    macs: int | None = None
    head_parameters: int | None = None
    relative_time: float | None = None  # of training, relative to `none` on the same device
    reported: Reported | None = None

    @property
    def n(self) -> int:
        return len(self.seeds)

    @property
    def ranked(self) -> bool:
        return self.place is not None

    @property
    def preliminary(self) -> bool:
        return self.ranked and self.n < HEADLINE


@dataclass(frozen=True)
class TeacherRow:
    model: str
    sha256: str
    scores: Mapping[str, float]
    parameters: int | None
    macs: int | None
    reported: Reported | None

    @property
    def top1(self) -> float | None:
        return self.scores.get("test/top1")


@dataclass(frozen=True)
class Table:
    """One pair: ranked rows from the best, then the others in the suite's order."""

    pair: str
    teacher: TeacherRow | None
    rows: tuple[Row, ...]
    alarms: tuple[str, ...]  # why its rows may not be compared
    roles: Mapping[str, str]
    recipe: Mapping[str, Any] | None

    def row(self, label: str) -> Row | None:
        return next((row for row in self.rows if row.label == label), None)


@dataclass(frozen=True)
class Overall:
    """One method over all settings."""

    label: str
    mean_rank: float
    iqm: tuple[float, float, float] | None  # of gains over `none`, with its interval
    p_holm: float | None  # against `kd`; None with too few settings


@dataclass(frozen=True)
class Across:
    settings: tuple[str, ...]
    rows: tuple[Overall, ...]
    left_out: tuple[str, ...]  # methods that are not ranked in every setting


@dataclass(frozen=True)
class Board:
    heading: Heading
    tables: tuple[Table, ...]
    across: Across | None  # None below two settings
    machines: tuple[tuple[str, str], ...]  # (device, precision)
    fingerprints: tuple[str, ...]
    splits: tuple[str, ...]
    versions: Mapping[str, tuple[str, ...]]
    finished: int

    @property
    def expected(self) -> int:
        return len(self.heading.cells) * len(self.heading.seeds)
