"""Board -> markdown. Pure: the same board gives the same bytes. The picture beside it is made by `picture.svg`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

from kdbench.board.page_pair import overall, pair
from kdbench.board.page_tuned import tuned_part
from kdbench.board.rows import Board, Heading, Reported, TeacherRow
from kdbench.board.statistics import Interval
from kdbench.board.text import code, count, grid, options, prose, seeds, signed

_OPEN = "<!-- kdbench board, generated: edit nothing here. "
_CLOSE = " -->"


@dataclass(frozen=True)
class TunedSummary:
    """What the index says of a board's tuned track."""

    methods: int
    trials: tuple[int, ...]  # the different budgets
    gpu_seconds: float  # spent by all studies
    finished: int
    expected: int
    best: tuple[str, ...]


@dataclass(frozen=True)
class Summary:
    """What the index of leaderboards says of one board."""

    suite: str
    description: str
    data: str
    pairs: int
    methods: int
    seeds: int
    finished: int
    expected: int
    best: tuple[str, ...]  # "pair: method +1.20 ± 0.30 over none"
    tuned: TunedSummary | None = None
    alarms: tuple[str, ...] = ()  # "pair: The teacher (89.00) is below the floor none (90.00)", of both tracks

    @classmethod
    def of(cls, board: Board) -> Summary:
        heading = board.heading
        methods = len({label for _, label in heading.cells})
        counts = (len(heading.pairs), methods, len(heading.seeds), board.finished, board.expected)
        name = str(heading.data.get("name", ""))
        tuned = _tuned_summary(board.tuned.board) if board.tuned else None
        told = [*_alarms(board), *(_alarms(board.tuned.board, " tuned") if board.tuned else ())]
        return cls(heading.suite, heading.description, name, *counts, _leaders(board), tuned, tuple(told))

    @classmethod
    def read(cls, markdown: str) -> Summary | None:
        """The summary in the first line of a board's markdown; None where there is none."""
        line = markdown.partition("\n")[0].rstrip()
        if not (line.startswith(_OPEN) and line.endswith(_CLOSE)):
            return None
        try:
            raw = json.loads(line[len(_OPEN) : -len(_CLOSE)])
            if tuned := raw.pop("tuned", None):
                tuned = TunedSummary(**{**tuned, "best": tuple(tuned["best"]), "trials": tuple(tuned["trials"])})
            return cls(**{**raw, "best": tuple(raw["best"]), "alarms": tuple(raw.get("alarms", ())), "tuned": tuned})
        except (ValueError, TypeError, KeyError, AttributeError):
            return None

    @property
    def line(self) -> str:
        values = asdict(self)
        for name in ("tuned", "alarms"):
            if not values[name]:
                del values[name]
        return _OPEN + json.dumps(values, sort_keys=True).replace("-->", "--\\u003e") + _CLOSE


def _leaders(board: Board) -> tuple[str, ...]:
    """The first row of every pair that has ranked ones and waits for none."""
    best = []
    for table in board.tables:
        if leader := table.leader:
            gain = f" {_gained(board.heading, leader.gain)} over {board.heading.floor}" if leader.gain else ""
            best.append(f"{table.pair}: {leader.label}{gain}")
    return tuple(best)


def _gained(heading: Heading, gain: Interval) -> str:
    """ "+1.20 ± 0.30" of percent; of any other headline with its title, for boards of several tasks stand together."""
    metric = heading.headline
    return signed(gain, metric.digits) + ("" if metric.unit == "%" else f" ({metric.named})")


def _alarms(board: Board, track: str = "") -> Iterator[str]:
    """What the index must say beside a pair's first row."""
    for table in board.tables:
        costly = [f"{row.label} {row.costlier}, unranked" for row in table.rows if row.costlier]
        yield from (f"{table.pair}{track}: {text}" for text in (*table.told, *costly))


def _tuned_summary(board: Board) -> TunedSummary:
    tunings = board.heading.tunings.values()
    return TunedSummary(
        methods=len({label for _, label in board.heading.cells}),
        trials=tuple(sorted({tuning.trials for tuning in tunings if not tuning.exhausted})),
        gpu_seconds=round(sum(tuning.gpu_seconds for tuning in tunings), 1),
        finished=board.finished,
        expected=board.expected,
        best=_leaders(board),
    )


def markdown(board: Board) -> str:
    """The page `leaderboard/<suite>.md`; it links to `<suite>.svg` beside it."""
    heading = board.heading
    parts = [Summary.of(board).line, f"# {heading.suite}"]
    if heading.description:
        parts.append(prose(heading.description))
    counts = [
        count(len(heading.pairs), "pair"),
        count(len({label for _, label in heading.cells}), "method"),
        f"{count(len(heading.seeds), 'seed')} ({seeds(heading.seeds)})",
        f"{board.finished} of {board.expected} results",
        f"track `{heading.track}`",
        f"suite version {heading.version}",
    ]
    tuned = " The [tuned track](#tuned-track) has tables of its own, below." if board.tuned else ""
    parts.append(", ".join(counts) + "." + tuned)
    parts.append(f"![Test {heading.headline.words} of every method with its 95% interval]({heading.picture})")
    for table in board.tables:
        parts += pair(heading, table)
    if board.across:
        parts += overall(heading, board.across)
    parts += ["## Notes", _notes(board)]
    if board.tuned:
        parts += tuned_part(board.tuned)
    return "\n\n".join(parts) + "\n"


def _notes(board: Board) -> str:
    heading, data = board.heading, board.heading.data
    labels = {label for _, label in heading.cells}
    prints, splits = (prose(", ".join(names)) or "unknown" for names in (board.fingerprints, board.splits))
    lines = [
        f"Data: {options(data)}; fingerprint {prints}; split {splits}. "
        "Validation examples are cut from the training set; the test split is read once, after the last epoch.",
        f"{_pairing(heading)} Intervals cover these seeds only: not another teacher, and not another test set.",
    ]
    lines += [
        f"There is no `{label}` in this suite: the columns that compare with it are blank."
        for label in (heading.floor, heading.reference)
        if label not in labels
    ]
    recipes = {json.dumps(table.recipe, sort_keys=True) for table in board.tables if table.recipe is not None}
    if len(recipes) > 1:
        lines += [f"Recipe of {table.pair}: {options(table.recipe)}." for table in board.tables if table.recipe]
    else:
        lines.append(f"Recipe of every row: {options(heading.recipe)}.")
    lines += [
        _teacher_note(heading, table.pair, table.teacher)
        for table in board.tables
        if table.teacher and not table.alarms
    ]
    lines += [
        f"Reported, {name} `{label}`: {_further(heading, r)} ({prose(r.protocol or 'protocol not noted')}"
        f"{'; ' + prose(r.source) if r.source else ''})."
        for (name, label), r in sorted(heading.reported.items())
    ]
    lines.append(_counted(heading))
    machines = "; ".join(f"{prose(device)} in {prose(precision)}" for device, precision in board.machines) or "unknown"
    lines.append(f"Trained and timed on {machines}.")
    if len(board.machines) > 1:
        lines[-1] += " **Mixed**: a time is shown only where none of the same seed ran on the same one."
    versions = [f"{name} {' and '.join(found)}" for name, found in sorted(board.versions.items()) if found]
    lines.append(f"Versions: {prose(', '.join(versions)) or 'unknown'}.")
    knobs = [f"`{label}`: {prose(text)}" for label, text in heading.methods.items() if label in labels]
    listed = ["\n".join(f"- {line}" for line in part) for part in (lines, knobs)]
    return "\n\n".join([listed[0], "Methods, with every knob:", listed[1]])


def _pairing(heading: Heading) -> str:
    """What methods share per seed, and which of them do not."""
    labels = {label for _, label in heading.cells}
    except_: dict[str, list[str]] = {}
    for label, words in heading.unpaired.items():
        if label in labels:
            except_.setdefault(words, []).append(f"`{label}`")
    told = "; ".join(f"{', '.join(names)} ({words})" for words, names in except_.items())
    shared = "methods share the student's initial weights, the order of the data and every augmentation"
    return f"Per seed, {shared}, but for {told}." if told else f"Per seed, all {shared}."


def _counted(heading: Heading) -> str:
    """What the number of MACs is made of, by the families of networks that the suite names."""
    models = " ".join(model.lower() for roles in heading.roles.values() for model in roles.values())
    plain = "MACs are multiply-accumulates of convolutions, linear layers and attention products"
    if "mamba" in models:
        return (
            f"{plain}; in Mamba networks those of the selective scan (4.5 for each channel, state and token, 2 for "
            "skip connection and gate) and of the norms before their blocks (2.5 for each number) come on top, by "
            "formula. Other norms and element-wise work are not counted."
        )
    foreign = ", and of operations that a model's own file has a formula for" if ".py" in models else ""
    return f"{plain}{foreign}. Norms and other element-wise work are not counted."


def _further(heading: Heading, reported: Reported) -> str:
    """A paper's score, and what it says beside that."""
    at = f" at {reported.macs_percent:g}% of the teacher's MACs" if reported.macs_percent is not None else ""
    first = ", ".join(f"{k}: {heading.said(score)}" for k, score in sorted(reported.prefixes.items()))
    parts = [f"{heading.said(reported.top1)}{at}" if reported.top1 is not None else ""]
    parts.append(f"by the number of roles that answer {first}" if first else "")
    return ", ".join(part for part in parts if part)


def _teacher_note(heading: Heading, pair: str, teacher: TeacherRow) -> str:
    metric = heading.headline
    names = {f"train/{metric.name}": "train", f"val/{metric.name}": "validation", f"test/{metric.name}": "test"}
    known = {name: words for name, words in names.items() if name in teacher.scores}
    told = ", ".join(f"{words} {heading.said(teacher.scores[name])}" for name, words in known.items())
    model = prose(teacher.model or "unnamed")
    return f"Teacher of {pair}: {model}, {metric.heading} {told}; sha256 {code(teacher.sha256)}."


def index(boards: Sequence[Summary]) -> str:
    """The page `leaderboard/README.md`: one line for each board, and one more in a table apart for its tuned track."""
    ordered = sorted(boards, key=lambda b: b.suite)
    lines = [
        [
            f"[{b.suite}]({b.suite}.md)",
            prose(b.data),
            *(str(n) for n in (b.pairs, b.methods, b.seeds)),
            f"{b.finished} of {b.expected}",
            "<br>".join(prose(text) for text in b.best),
        ]
        for b in ordered
    ]
    table = grid(["board", "data", "pairs", "methods", "seeds", "results", "first in each pair"], lines, "llrrrrl")
    told = [f"- [{b.suite}]({b.suite}.md), {prose(text)}." for b in ordered for text in b.alarms]
    alarms = ["## What to know before reading them", "\n".join(told)] if told else []
    about = (
        "Generated by `kdbench board` from the records in `results/`; edit nothing here. First is not the same as "
        "best: whether a method is separable from the reference stands in its board."
    )
    return "\n\n".join(["# Leaderboards", about, table, *_tuned_index(ordered), *alarms]) + "\n"


def _tuned_index(boards: Sequence[Summary]) -> list[str]:
    lines = [
        [
            f"[{b.suite}]({b.suite}.md#tuned-track)",
            str(tuned.methods),
            " or ".join(str(n) for n in tuned.trials),
            f"{tuned.gpu_seconds:.0f}",
            f"{tuned.finished} of {tuned.expected}",
            "<br>".join(prose(text) for text in tuned.best),
        ]
        for b in boards
        if (tuned := b.tuned)
    ]
    if not lines:
        return []
    columns = ["board", "methods", "trials", "seconds", "results", "first in each pair"]
    about = "Knobs chosen on validation, the same budget for every method; gains are over the tuned floor."
    return ["## Tuned track", about, grid(columns, lines, "lrrrrl")]
