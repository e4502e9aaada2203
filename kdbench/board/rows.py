"""The values of a board: what the suite says, rows, tables, and what holds across settings. `board.rank` makes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from kdbench.board.statistics import Interval
from kdbench.tasks import Metric

TEACHER = "teacher"
HEADLINE, PRELIMINARY = 5, 3  # seeds
COSTLIER = 1.05  # times the plain student's parameters or MACs, beyond which a deployed student is of another class
NO_RESULT = "no result yet"
BETTER, WORSE, NOT_SEPARABLE = "better than", "worse than", "not separable from"  # the reference, or the floor


class Reported(Protocol):
    """A paper's numbers, of the headline, and how the paper chose them."""

    @property
    def top1(self) -> float | None: ...
    @property
    def protocol(self) -> str | None: ...
    @property
    def source(self) -> str | None: ...
    @property
    def macs_percent(self) -> float | None: ...
    @property
    def prefixes(self) -> Mapping[int, float]: ...


@dataclass(frozen=True)
class Tuning:
    """What `kdbench tune` spent on one cell, and what it chose."""

    overrides: Mapping[str, Any]  # dotted key -> value; empty: the suite's own knobs won
    trials: int
    pruned: int
    failed: int
    gpu_seconds: float
    value: float | None  # of the chosen knobs, on validation
    default_value: float | None  # of the suite's own knobs
    expected_best: tuple[float, ...]  # of 1, 2, ... trials
    how: str  # metric, epochs and seeds
    sampler: str
    configurations: int | None  # where they are few enough to try them all

    @property
    def exhausted(self) -> bool:
        """Whether no further trial could add anything: its budget is then as good as any."""
        return self.configurations is not None and self.trials >= self.configurations


@dataclass(frozen=True)
class Unconverged:
    """A floor whose learning rate is too low: a multiple of it, and what that gains on validation (> 0)."""

    factor: float
    gain: float


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
    headline: Metric  # what ranks
    metrics: tuple[Metric, ...]  # all that the task measures
    followed: tuple[str, ...]  # names of those that tell two trained students apart
    floor: str = "none"  # label of the student without a teacher, over which gains are counted
    reference: str = "kd"  # label of the method that claims compare with
    reported: Mapping[tuple[str, str], Reported] = field(default_factory=dict)  # (pair, label or "teacher")
    roles: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # pair -> role -> model
    unpaired: Mapping[str, str] = field(default_factory=dict)  # label -> what it does not share with the others
    track: str = "default"
    notes: Mapping[str, str] = field(default_factory=dict)  # pair -> a sentence
    tunings: Mapping[tuple[str, str], Tuning] = field(default_factory=dict)  # of the tuned track, by cell
    example: str = "image"  # one of them: what MACs are counted of
    gpu_seconds: float | None = None  # the budget of tuning a cell, where it is not a number of trials
    unconverged: Mapping[str, Unconverged] = field(default_factory=dict)  # pair -> what its floor's rate leaves

    @property
    def further(self) -> tuple[Metric, ...]:
        """The metrics beside the headline that have a column."""
        return tuple(metric for metric in self.metrics if metric.column and metric.name != self.headline.name)

    def said(self, value: float) -> str:
        """A value of the headline, rounded: "56.78"."""
        return self.headline.number(value)

    @property
    def picture(self) -> str:
        """File name, beside the page."""
        return f"{self._stem(self.suite)}.svg"

    def claimed(self, row: Row) -> str:
        """The claim of a row in words; of one that is better than the reference only, both."""
        if not row.claim:
            return ""
        words = f"{row.claim} {self.reference}"
        return words if row.sound else f"{words}, but {row.over_floor} {self.floor}"

    def anytime_picture(self, pair: str) -> str:
        """File name of the picture of a pair that has prefixes."""
        return f"{self._stem(f'{self.suite}.{pair}')}.anytime.svg"

    def _stem(self, name: str) -> str:
        return name if self.track == "default" else f"{name}.{self.track}"


@dataclass(frozen=True)
class Row:
    """One method on one pair. Scores are of the headline; gains, paired by seed, are positive where it is better."""

    label: str
    seeds: Mapping[int, float]  # seed -> test score of its finished jobs
    troubles: tuple[tuple[tuple[int, ...], str], ...]  # (seeds, what happened to them)
    why_unranked: str  # "" for a ranked row
    place: int | None = None
    score: Interval | None = None
    gain: Interval | None = None  # over the floor
    over_reference: Interval | None = None  # over the reference
    p_holm: float | None = None
    claim: str = ""  # BETTER, WORSE or NOT_SEPARABLE: against the reference
    over_floor: str = ""  # the same against the floor
    costlier: str = ""  # how much more the deployed student costs than the plain one: then it has no rank
    recovered: float | None = None  # share of the gap between floor and teacher
    metrics: Mapping[str, float] = field(default_factory=dict)  # means over seeds of test/*, without the prefix
    parameters: int | None = None
    macs: int | None = None
    queries: int | None = None  # questions to frozen roles, where the method counts them
    sparsity: float | None = None  # share of the deployed student's numbers that are 0, mean over seeds
    trained_parameters: int | None = None  # of all learners and heads, while they train
    memory_mb: float | None = None  # peak of a training, median over seeds
    relative_time: float | None = None  # of training, relative to the floor on the same device
    reported: Reported | None = None

    @property
    def n(self) -> int:
        return len(self.seeds)

    @property
    def ranked(self) -> bool:
        return self.place is not None

    @property
    def waits(self) -> bool:
        """Whether some of its seeds have no result yet, not even a failure."""
        return any(text == NO_RESULT for _, text in self.troubles)

    @property
    def sound(self) -> bool:
        """False where it is better than the reference, but not than the floor."""
        return self.claim != BETTER or self.over_floor in ("", BETTER)

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
    score: float | None = None  # of the headline on the test split


@dataclass(frozen=True)
class PrefixRow:
    """The first k roles answering together."""

    k: int
    role: str  # the k-th
    seeds: Mapping[int, float]  # seed -> test score
    score: Interval
    alone: Interval | None  # the k-th without the others
    metrics: Mapping[str, float]  # means over seeds, of those with a column
    parameters: int
    macs: int
    share: float | None  # of the teacher's MACs
    alone_share: float | None  # the k-th's own
    reported: float | None
    reported_share: float | None


@dataclass(frozen=True)
class ExitRow:
    """Early exit at one threshold: expected cost and score on the test split."""

    thresholds: tuple[float, float]  # lowest and highest over seeds
    score: Interval
    val_score: float | None
    share: float | None  # expected MACs of an image, of the teacher's
    leaving: tuple[float, ...]  # share of images that leave at each k


@dataclass(frozen=True)
class Anytime:
    """A method whose answer may stop early."""

    label: str
    prefixes: tuple[PrefixRow, ...]
    exits: tuple[ExitRow, ...]


@dataclass(frozen=True)
class Table:
    """One pair: ranked rows from the best, then the others in the suite's order."""

    pair: str
    teacher: TeacherRow | None
    rows: tuple[Row, ...]
    alarms: tuple[str, ...]  # why its rows may not be compared
    roles: Mapping[str, str]
    recipe: Mapping[str, Any] | None
    note: str = ""
    anytime: tuple[Anytime, ...] = ()  # in the order of the rows
    warnings: tuple[str, ...] = ()  # what a reader must know although its rows may be compared

    @property
    def told(self) -> tuple[str, ...]:
        """All sentences without which its rows would be misread."""
        return (*self.alarms, *self.warnings)

    @property
    def leader(self) -> Row | None:
        """The first of the ranked rows; None while any row waits for results, or where it was not compared with all
        of the floor's seeds."""
        first = next((row for row in self.rows if row.ranked), None)
        if first is None or any(row.waits for row in self.rows) or (first.gain and first.gain.n < first.n):
            return None
        return first

    def row(self, label: str) -> Row | None:
        return next((row for row in self.rows if row.label == label), None)


@dataclass(frozen=True)
class Overall:
    """One method over all settings."""

    label: str
    mean_rank: float
    iqm: tuple[float, float, float] | None  # of gains over the floor, with its interval
    p_holm: float | None  # against the reference; None with too few settings


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
    tuned: Tuned | None = None

    @property
    def has_rows(self) -> bool:
        """Whether there is anything to draw."""
        return any(row.score for table in self.tables for row in table.rows)

    @property
    def expected(self) -> int:
        return len(self.heading.cells) * len(self.heading.seeds)


@dataclass(frozen=True)
class Worth:
    """What tuning changed for one method on one pair: across tracks, and no part of either's ranking."""

    pair: str
    label: str
    default: Interval
    tuned: Interval
    gain: Interval  # tuned minus default, paired by seed


@dataclass(frozen=True)
class Tuned:
    """The second track: a board of its own, never mixed with the first."""

    board: Board
    worth: tuple[Worth, ...]
    notes: tuple[str, ...]  # "pair/label has not been tuned": what is not in it, and why
