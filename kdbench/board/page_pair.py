"""Markdown of one pair, and of what holds across settings. `render` puts the page together."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from kdbench.board.page_prefixes import sections
from kdbench.board.rows import BETTER, COSTLIER, HEADLINE, Across, Heading, Row, Table, TeacherRow
from kdbench.board.statistics import FEWEST_SETTINGS, draws, smallest_claim
from kdbench.board.text import BLANK, amount, count, gain, grid, number, percent, plain, prose, scored, seeds
from kdbench.tasks import Metric


def _legend(heading: Heading) -> str:
    floor, reference, metric = heading.floor, heading.reference, heading.headline
    unit = " in percent" if metric.unit == "%" else f" in {metric.unit}" if metric.unit else ""
    side = "" if metric.better == "up" else f", {metric.direction}"
    signs = "" if metric.better == "up" else ", + where it is better,"
    blank = f"below {metric.gap:g}{metric.points}" if metric.gap else "where the teacher is no better"
    tuned = (
        f" **trials**, **seconds**: spent on tuning this row; {floor} and {reference} are tuned too, and gains are "
        "over the tuned ones."
    )
    return (
        f"**{metric.named}**: test {metric.words}{unit}{side} after the last epoch, mean ± half-width of the "
        "95% t interval over seeds. "
        f"**over {floor}**, **over {reference}**: gain{_in(metric)}{signs} over the student without a teacher and over "
        "the reference, paired by seed, with its own 95% interval (± – : no spread between seeds, so no interval) and "
        "its own n where the two share fewer seeds. "
        f"**claim**: better or worse than {reference} only where the paired t test survives Holm's correction over "
        "this table; the intervals themselves are not corrected. A student that costs more than "
        f"{COSTLIER:g} times the plain one is of another class and has no rank. "
        f"**recovered**: gain as a share of the gap between teacher and {floor} (blank {blank}). "
        f"**n**: seeds; fewer than {HEADLINE} is preliminary. **reported**: a paper's number, see the notes."
        + (tuned if heading.tunings else "")
    )


def _in(metric: Metric) -> str:
    return f" in{metric.points}" if metric.points else ""


RARE: dict[str, tuple[str, Callable[[Row], str]]] = {  # columns that a table has where any of its rows says something
    "zeros": (
        "share of the deployed student's parameters that are 0; they are counted in params and MACs all the same",
        lambda row: percent(row.sparsity) if row.sparsity and row.sparsity >= 0.005 else BLANK,
    ),
    "queries": (
        "different examples about which the teacher was asked; where blank, it answered on every batch",
        lambda row: BLANK if row.queries is None else f"{row.queries:,}",
    ),
}


def _details_legend(heading: Heading, table: Table) -> str:
    about = {metric: metric.direction if metric.about is None else metric.about for metric in heading.further}
    return (
        "".join(f"**{metric.named}**: {text}. " for metric, text in about.items() if text)
        + f"**params**, **MACs**: of the deployed student, one {heading.example}. "
        "**trained**: parameters of all learners and heads while they train, factors of weights included. **time**: "
        f"training seconds relative to {heading.floor} on the same device (on a CPU the processor's, where counted), "
        "without the teacher's own training; **memory**: peak while training, on a CPU of the whole process (both "
        "median over seeds)."
        + "".join(f" **{t}**: {text}." for t, (text, shown) in RARE.items() if any(shown(row) for row in table.rows))
    )


def pair(heading: Heading, table: Table, level: str = "##", further: Sequence[str] = ()) -> list[str]:
    """Everything of one pair; `level` is the mark of its heading, `further` follows the main table."""
    parts = [f"{level} {table.pair}"]
    if table.note:
        parts.append(prose(table.note))
    if line := _who(heading, table):
        parts.append(line)
    parts += [f"> **WARNING: not comparable, nothing is ranked.** {prose(alarm)}." for alarm in table.alarms]
    parts += [f"> **Note**: {prose(warning)}." for warning in table.warnings]
    parts += [_main(heading, table), f"<sub>{_legend(heading)}</sub>"]
    if allowed := allows(heading, table):
        parts.append(allowed)
    unranked = [row for row in table.rows if not row.ranked]
    if troubles := [f"- `{row.label}`, {text}" for row in unranked for text in _troubles(row)]:
        parts += ["Unranked:", "\n".join(troubles)]
    parts += [
        *further,
        _details(heading, table),
        f"<sub>{_details_legend(heading, table)}</sub>",
        _every_seed(heading, table),
    ]
    return parts + sections(heading, table, f"{level}#")


def allows(heading: Heading, table: Table) -> str:
    """What the number of seeds allows to be claimed; "" where nothing is compared."""
    compared = sum(bool(row.claim) for row in table.rows)
    if not compared:
        return ""
    seeds_, needed = len(heading.seeds), smallest_claim(len(heading.seeds), compared)
    return (
        f"What {count(seeds_, 'seed')} allow: the clearest of {count(compared, 'comparison')} is a claim from a mean "
        f"difference of {needed:.1f} times its standard deviation between seeds. What is not separable may still "
        "differ."
    )


def _who(heading: Heading, table: Table) -> str:
    student, teacher = table.row(heading.floor) or next((row for row in table.rows if row.macs), None), table.teacher
    roles = ", ".join(f"{role} {prose(model)}" for role, model in table.roles.items())
    if not (student and teacher and student.parameters and student.macs and teacher.parameters and teacher.macs):
        return f"Roles: {roles}." if roles else ""
    share = f"{percent(student.parameters / teacher.parameters)} of the teacher's parameters and "
    return f"Roles: {roles or 'unnamed'}. The student has {share}{percent(student.macs / teacher.macs)} of its MACs."


def _main(heading: Heading, table: Table) -> str:
    columns = ["#", "method", heading.headline.heading, *_over(heading), "claim", "recovered", "n"]
    columns += ["trials", "seconds"] if heading.tunings else []
    reported = bool((table.teacher and table.teacher.reported) or any(row.reported for row in table.rows))
    lines, digits = [], heading.headline.digits
    if teacher := table.teacher:
        score = heading.said(teacher.score) if teacher.score is not None else BLANK
        lines.append([BLANK, "**teacher**", score, *[BLANK] * (len(columns) - 3), _reported(heading, teacher)])
    for row in table.rows:
        n = f"{row.n}, preliminary" if row.preliminary else str(row.n)
        line = [
            str(row.place) if row.place else "–",
            _name(heading, row),
            plain(row.score, digits),
            gain(row.gain, row.n, digits),
            gain(row.over_reference, row.n, digits),
            heading.claimed(row) if row.ranked else f"unranked: {row.why_unranked}",
            percent(row.recovered),
            n,
            *_spent(heading, table.pair, row.label),
            _reported(heading, row),
        ]
        lines.append(line)
    if reported:
        columns.append("reported")
    align = "rlrrrlrl" + ("rr" if heading.tunings else "") + "l"
    return grid(columns, [line[: len(columns)] for line in lines], align)


def _over(heading: Heading) -> tuple[str, str]:
    return f"over {heading.floor}", f"over {heading.reference}"


def _spent(heading: Heading, pair: str, label: str) -> list[str]:
    """Cells for the cost of tuning; none in a track without."""
    if not heading.tunings:
        return []
    tuning = heading.tunings.get((pair, label))
    return [str(tuning.trials), f"{tuning.gpu_seconds:.0f}"] if tuning else [BLANK, BLANK]


def _details(heading: Heading, table: Table) -> str:
    further = heading.further
    titles = [metric.heading for metric in further]
    rare = [title for title, (_, shown) in RARE.items() if any(shown(row) for row in table.rows)]
    columns = ["method", *titles, "params", "MACs", "trained", "time", "memory", *rare]
    lines = []
    if teacher := table.teacher:
        known = [scored(metric, teacher.scores.get(f"test/{metric.name}")) for metric in further]
        lines.append(
            ["**teacher**", *known, amount(teacher.parameters), amount(teacher.macs), *[BLANK] * (3 + len(rare))]
        )
    for row in table.rows:
        known = [scored(metric, row.metrics.get(metric.name)) for metric in further]
        size = [amount(value) for value in (row.parameters, row.macs, row.trained_parameters)]
        time = f"{row.relative_time:.2f}×" if row.relative_time is not None else BLANK
        memory = f"{row.memory_mb:,.0f} MiB" if row.memory_mb is not None else BLANK
        lines.append([_name(heading, row), *known, *size, time, memory, *(RARE[title][1](row) for title in rare)])
    return grid(columns, lines, "l" + "r" * (len(columns) - 1))


def _every_seed(heading: Heading, table: Table) -> str:
    shown: set[int] = set()
    for row in table.rows:
        shown |= set(row.seeds).union(*(hit for hit, _ in row.troubles))
    columns, lines = sorted(shown), []
    for row in table.rows:
        trouble = {seed: text.partition(":")[0] for hit, text in row.troubles for seed in hit}
        cells = [heading.said(row.seeds[seed]) if seed in row.seeds else trouble.get(seed, BLANK) for seed in columns]
        lines.append([f"`{row.label}`", *cells])
    body = grid(
        [f"test {heading.headline.heading}", *(f"seed {seed}" for seed in columns)], lines, "l" + "r" * len(columns)
    )
    return f"<details><summary>Every seed of {table.pair}</summary>\n\n{body}\n\n</details>"


def overall(heading: Heading, across: Across, level: str = "##") -> list[str]:
    """The section on what holds across settings."""
    few, digits = len(across.settings) < FEWEST_SETTINGS, heading.headline.digits
    lines = []
    for row in across.rows:
        middle = (
            [f"{row.iqm[0]:+.{digits}f}", f"[{row.iqm[1]:+.{digits}f}, {row.iqm[2]:+.{digits}f}]"]
            if row.iqm
            else [BLANK, BLANK]
        )
        p = BLANK if row.label == heading.reference else "too few settings" if few else number(row.p_holm)
        lines.append([f"`{row.label}`", f"{row.mean_rank:.2f}", *middle, p])
    many = draws(len(across.settings) * len(heading.seeds))
    drawn = "a million" if many == 1_000_000 else f"{many:,}"
    legend = (
        f"<sub>Over {count(len(across.settings), 'setting')} ({', '.join(across.settings)}). **mean rank**: 1 is best, "
        f"among the methods listed. **IQM gain**: interquartile mean of the gains over {heading.floor}, with a 95% "
        "bootstrap interval that resamples seeds within each setting (all resamples where they are few, else "
        f"{drawn}). **p against {heading.reference}**: Wilcoxon signed-rank over settings, Holm-corrected; not printed "
        f"below {FEWEST_SETTINGS} settings.</sub>"
    )
    columns = ["method", "mean rank", "IQM gain", "interval", f"p against {heading.reference}"]
    if across.left_out:
        names = ", ".join(f"`{label}`" for label in across.left_out)
        legend += f"\n\nNot ranked in every setting, and so not listed: {names}."
    return [f"{level} Across settings", grid(columns, lines, "lrrrr"), legend]


def _name(heading: Heading, row: Row) -> str:
    name = f"**`{row.label}`**" if row.claim == BETTER and row.sound else f"`{row.label}`"
    return name + {heading.floor: " (floor)", heading.reference: " (reference)"}.get(row.label, "")


def _reported(heading: Heading, row: Row | TeacherRow) -> str:
    return heading.said(row.reported.top1) if row.reported and row.reported.top1 is not None else BLANK


def _troubles(row: Row) -> list[str]:
    if not row.troubles:
        return [f"{row.why_unranked}."]
    return [f"seed{'s' if len(hit) > 1 else ''} {seeds(hit)}: {prose(text)}." for hit, text in row.troubles]
