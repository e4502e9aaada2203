"""Board -> markdown. Pure: the same board gives the same bytes. The picture beside it is made by `picture.svg`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from kdbench.cells import BLANK, amount, count, grid, number, options, percent, plain, prose, seeds, signed
from kdbench.standing import BETTER, FLOOR, REFERENCE, Across, Board, Row, Table, TeacherRow
from kdbench.statistics import FEWEST_SETTINGS

_OPEN = "<!-- kdbench board, generated: edit nothing here. "
_CLOSE = " -->"

LEGEND = (
    "**top-1**: test accuracy in percent after the last epoch, mean ± half-width of the 95% t interval over seeds. "
    "**over none**, **over kd**: gain in points over the student without a teacher and over plain KD, paired by seed, "
    "with its own 95% interval (± – : no spread between seeds, so no interval). "
    "**claim**: better or worse than KD only where the paired t test survives Holm's correction over this table; the "
    "intervals themselves are not corrected. "
    "**recovered**: gain as a share of the gap between teacher and none (blank below 0.5 points). "
    "**n**: seeds; fewer than 5 is preliminary. **reported**: a paper's number, see the notes."
)
DETAILS_LEGEND = (
    "**agree**: test images on which student and teacher give the same answer; **on errors**: the same among the "
    "teacher's mistakes. **ECE**: 15 bins. **params**, **MACs**: of the deployed student, one image. "
    "**extra**: trained parameters that are not deployed. **time**: training seconds relative to none on the same "
    "device, without the teacher's own training (median over seeds)."
)


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

    @classmethod
    def of(cls, board: Board) -> Summary:
        heading = board.heading
        best = []
        for table in board.tables:
            leader = next((row for row in table.rows if row.ranked), None)
            if leader:
                gain = f" {signed(leader.gain)} over {FLOOR}" if leader.gain else ""
                best.append(f"{table.pair}: {leader.label}{gain}")
        methods = len({label for _, label in heading.cells})
        counts = (len(heading.pairs), methods, len(heading.seeds), board.finished, board.expected)
        return cls(heading.suite, heading.description, str(heading.data.get("name", "")), *counts, tuple(best))

    @classmethod
    def read(cls, markdown: str) -> Summary | None:
        """The summary in the first line of a board's markdown; None where there is none."""
        line = markdown.partition("\n")[0].rstrip()
        if not (line.startswith(_OPEN) and line.endswith(_CLOSE)):
            return None
        try:
            raw = json.loads(line[len(_OPEN) : -len(_CLOSE)])
            return cls(**{**raw, "best": tuple(raw["best"])})
        except (ValueError, TypeError, KeyError):
            return None

    @property
    def line(self) -> str:
        return _OPEN + json.dumps(asdict(self), sort_keys=True).replace("-->", "--\\u003e") + _CLOSE


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
    parts.append(", ".join(counts) + ".")
    parts.append(f"![Test accuracy of every method with its 95% interval]({heading.suite}.svg)")
    for table in board.tables:
        parts += _pair(table)
    if board.across:
        parts += _across(board.across)
    parts += ["## Notes", _notes(board)]
    return "\n\n".join(parts) + "\n"


def _pair(table: Table) -> list[str]:
    parts = [f"## {table.pair}"]
    if line := _who(table):
        parts.append(line)
    parts += [f"> **WARNING: not comparable, nothing is ranked.** {prose(alarm)}." for alarm in table.alarms]
    parts += [_main(table), f"<sub>{LEGEND}</sub>"]
    unranked = [row for row in table.rows if not row.ranked]
    if troubles := [f"- `{row.label}`, {text}" for row in unranked for text in _troubles(row)]:
        parts += ["Unranked:", "\n".join(troubles)]
    parts += [_details(table), f"<sub>{DETAILS_LEGEND}</sub>", _every_seed(table)]
    return parts


def _who(table: Table) -> str:
    student, teacher = table.row(FLOOR) or next((row for row in table.rows if row.macs), None), table.teacher
    roles = ", ".join(f"{role} {prose(model)}" for role, model in table.roles.items())
    if not (student and teacher and student.parameters and student.macs and teacher.parameters and teacher.macs):
        return f"Roles: {roles}." if roles else ""
    share = f"{percent(student.parameters / teacher.parameters)} of the teacher's parameters and "
    return f"Roles: {roles or 'unnamed'}. The student has {share}{percent(student.macs / teacher.macs)} of its MACs."


def _main(table: Table) -> str:
    columns = ["#", "method", "top-1 (%)", "over none", "over kd", "claim", "recovered", "n"]
    reported = bool((table.teacher and table.teacher.reported) or any(row.reported for row in table.rows))
    lines = []
    if teacher := table.teacher:
        top1 = f"{teacher.top1:.2f}" if teacher.top1 is not None else BLANK
        lines.append([BLANK, "**teacher**", top1, *[BLANK] * 5, _reported(teacher)])
    for row in table.rows:
        n = f"{row.n}, preliminary" if row.preliminary else str(row.n)
        line = [
            str(row.place) if row.place else "–",
            _name(row),
            plain(row.top1),
            signed(row.gain),
            signed(row.over_kd),
            row.claim if row.ranked else f"unranked: {row.why_unranked}",
            percent(row.recovered),
            n,
            _reported(row),
        ]
        lines.append(line)
    if reported:
        columns.append("reported")
    return grid(columns, [line[: len(columns)] for line in lines], "rlrrrlrll")


def _details(table: Table) -> str:
    columns = ["method", "agree", "on errors", "NLL", "ECE", "params", "MACs", "extra", "time"]
    lines = []
    if teacher := table.teacher:
        nll, ece = (number(teacher.scores.get(f"test/{name}")) for name in ("nll", "ece"))
        lines.append(["**teacher**", BLANK, BLANK, nll, ece, amount(teacher.parameters), amount(teacher.macs), "", ""])
    for row in table.rows:
        metric = row.metrics
        agreement = [percent(metric.get(name), 1) for name in ("agreement", "agreement_on_errors")]
        calibration = [number(metric.get(name)) for name in ("nll", "ece")]
        size = [amount(value) for value in (row.parameters, row.macs, row.head_parameters)]
        time = f"{row.relative_time:.2f}×" if row.relative_time is not None else BLANK
        lines.append([_name(row), *agreement, *calibration, *size, time])
    return grid(columns, lines, "lrrrrrrrr")


def _every_seed(table: Table) -> str:
    shown: set[int] = set()
    for row in table.rows:
        shown |= set(row.seeds).union(*(hit for hit, _ in row.troubles))
    columns, lines = sorted(shown), []
    for row in table.rows:
        trouble = {seed: text.partition(":")[0] for hit, text in row.troubles for seed in hit}
        cells = [f"{row.seeds[seed]:.2f}" if seed in row.seeds else trouble.get(seed, BLANK) for seed in columns]
        lines.append([f"`{row.label}`", *cells])
    body = grid(["test top-1 (%)", *(f"seed {seed}" for seed in columns)], lines, "l" + "r" * len(columns))
    return f"<details><summary>Every seed of {table.pair}</summary>\n\n{body}\n\n</details>"


def _across(across: Across) -> list[str]:
    few = len(across.settings) < FEWEST_SETTINGS
    lines = []
    for row in across.rows:
        middle = [f"{row.iqm[0]:+.2f}", f"[{row.iqm[1]:+.2f}, {row.iqm[2]:+.2f}]"] if row.iqm else [BLANK, BLANK]
        p = BLANK if row.label == REFERENCE else "too few settings" if few else number(row.p_holm)
        lines.append([f"`{row.label}`", f"{row.mean_rank:.2f}", *middle, p])
    legend = (
        f"<sub>Over {count(len(across.settings), 'setting')} ({', '.join(across.settings)}). **mean rank**: 1 is best, "
        "among the methods listed. **IQM gain**: interquartile mean of the gains over none, with a 95% bootstrap "
        "interval that resamples seeds within each setting. **p against kd**: Wilcoxon signed-rank over settings, "
        f"Holm-corrected; not printed below {FEWEST_SETTINGS} settings.</sub>"
    )
    columns = ["method", "mean rank", "IQM gain", "interval", "p against kd"]
    if across.left_out:
        names = ", ".join(f"`{label}`" for label in across.left_out)
        legend += f"\n\nNot ranked in every setting, and so not listed: {names}."
    return ["## Across settings", grid(columns, lines, "lrrrr"), legend]


def _notes(board: Board) -> str:
    heading, data = board.heading, board.heading.data
    labels = {label for _, label in heading.cells}
    splits = f"{', '.join(board.splits) or 'unknown'}"
    lines = [
        f"Data: {options(data)}; fingerprint {', '.join(board.fingerprints) or 'unknown'}; split {splits}. "
        "Validation examples are cut from the training set; the test split is read once, after the last epoch.",
        "Per seed, all methods share the student's initial weights, the order of the data and every augmentation. "
        "Intervals cover these seeds only: not another teacher, and not another test set.",
    ]
    lines += [
        f"There is no `{label}` in this suite: the columns that compare with it are blank."
        for label in (FLOOR, REFERENCE)
        if label not in labels
    ]
    recipes = {json.dumps(table.recipe, sort_keys=True) for table in board.tables if table.recipe is not None}
    if len(recipes) > 1:
        lines += [f"Recipe of {table.pair}: {options(table.recipe)}." for table in board.tables if table.recipe]
    else:
        lines.append(f"Recipe of every row: {options(heading.recipe)}.")
    lines += [_teacher_note(table.pair, table.teacher) for table in board.tables if table.teacher and not table.alarms]
    lines += [
        f"Reported, {pair} `{label}`: {r.top1:.2f} ({prose(r.protocol or 'protocol not noted')}"
        f"{'; ' + prose(r.source) if r.source else ''})."
        for (pair, label), r in sorted(heading.reported.items())
    ]
    lines.append("MACs are multiply-accumulates of convolutions, linear layers and attention products.")
    machines = "; ".join(f"{prose(device)} in {precision}" for device, precision in board.machines) or "unknown"
    lines.append(f"Trained and timed on {machines}.")
    if len(board.machines) > 1:
        lines[-1] += " **Mixed**: a time is shown only where none of the same seed ran on the same one."
    versions = [f"{name} {' and '.join(found)}" for name, found in sorted(board.versions.items()) if found]
    lines.append(f"Versions: {prose(', '.join(versions)) or 'unknown'}.")
    knobs = [f"`{label}`: {prose(text)}" for label, text in heading.methods.items() if label in labels]
    listed = ["\n".join(f"- {line}" for line in part) for part in (lines, knobs)]
    return "\n\n".join([listed[0], "Methods, with every knob:", listed[1]])


def _teacher_note(pair: str, teacher: TeacherRow) -> str:
    names = {"train/top1": "train", "val/top1": "validation", "test/top1": "test"}
    top1 = ", ".join(f"{words} {teacher.scores[name]:.2f}" for name, words in names.items() if name in teacher.scores)
    return f"Teacher of {pair}: {prose(teacher.model or 'unnamed')}, top-1 (%) {top1}; sha256 `{teacher.sha256}`."


def index(boards: Sequence[Summary]) -> str:
    """The page `leaderboard/README.md`: one line for each board."""
    lines = [
        [
            f"[{b.suite}]({b.suite}.md)",
            prose(b.data),
            *(str(n) for n in (b.pairs, b.methods, b.seeds)),
            f"{b.finished} of {b.expected}",
            "<br>".join(prose(text) for text in b.best),
        ]
        for b in sorted(boards, key=lambda b: b.suite)
    ]
    table = grid(["board", "data", "pairs", "methods", "seeds", "results", "first in each pair"], lines, "llrrrrl")
    about = (
        "Generated by `kdbench board` from the records in `results/`; edit nothing here. First is not the same as "
        "best: whether a method is separable from KD stands in its board."
    )
    return f"# Leaderboards\n\n{about}\n\n{table}\n"


def _name(row: Row) -> str:
    name = f"**`{row.label}`**" if row.claim == BETTER else f"`{row.label}`"
    return name + {FLOOR: " (floor)", REFERENCE: " (reference)"}.get(row.label, "")


def _reported(row: Row | TeacherRow) -> str:
    return f"{row.reported.top1:.2f}" if row.reported else BLANK


def _troubles(row: Row) -> list[str]:
    if not row.troubles:
        return [f"{row.why_unranked}."]
    return [f"seed{'s' if len(hit) > 1 else ''} {seeds(hit)}: {prose(text)}." for hit, text in row.troubles]
