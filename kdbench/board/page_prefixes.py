"""Markdown of answer prefixes and early exits: what a ladder of roles is worth if one stops early."""

from __future__ import annotations

from kdbench.board.rows import Anytime, ExitRow, Heading, PrefixRow, Table
from kdbench.board.text import BLANK, amount, capital, code, count, grid, percent, plain, scored
from kdbench.tasks import Metric


def _legend(heading: Heading) -> str:
    metric = heading.headline
    unit = " in percent" if metric.unit == "%" else ""
    named = ", ".join([*(other.named for other in _further(heading)), "params"])
    return (
        "**k**: the first k roles answer together; **alone**: the k-th without the others, test "
        f"{metric.named}{unit}. **MACs %**: cumulative, of the teacher's. {named} and MACs are those of "
        "the first k together."
    )


def _exits_legend(heading: Heading) -> str:
    return (
        "An image goes on to the next role while its most probable class has less than the threshold. **MACs %**: "
        "expected for a test image, of the teacher's. The thresholds are a fixed list: choose among them by **val "
        f"{heading.headline.named}**. **after k**: test images that leave there."
    )


def _further(heading: Heading) -> list[Metric]:
    """What prefixes have a column of."""
    return [metric for metric in heading.further if not metric.against_teacher]


def sections(heading: Heading, table: Table, level: str) -> list[str]:
    """The picture, then the tables of every method that has prefixes; `level` is the mark of their headings."""
    if not table.anytime:
        return []
    words = heading.headline.words
    parts = [
        f"{level} {capital(words)} of {table.pair} if one stops early",
        f"![Test {words} against the share of the teacher's MACs]({heading.anytime_picture(table.pair)})",
    ]
    for found in table.anytime:
        parts += [_about(table, found), _prefixes(heading, found), f"<sub>{_legend(heading)}</sub>"]
        if found.exits:
            body = f"{_exits(heading, found)}\n\n<sub>{_exits_legend(heading)}</sub>"
            parts.append(f"<details><summary>Early exit of {found.label}</summary>\n\n{body}\n\n</details>")
    return parts


def _about(table: Table, found: Anytime) -> str:
    row = table.row(found.label)
    words = f"Prefixes of `{found.label}`, {count(found.prefixes[0].score.n, 'seed')}"
    if row and not row.ranked:
        return f"{words} (unranked: {row.why_unranked}):"
    return f"{words}{' (preliminary)' if row and row.preliminary else ''}:"


def _prefixes(heading: Heading, found: Anytime) -> str:
    digits, further = heading.headline.digits, _further(heading)
    titles = [heading.headline.heading, "alone", *(metric.heading for metric in further)]
    columns = ["k", "role", "MACs %", *titles, "params", "MACs", "reported"]
    if not any(prefix.reported is not None for prefix in found.prefixes):
        columns.pop()
    lines = [
        [
            str(prefix.k),
            code(prefix.role),
            percent(prefix.share, 1),
            plain(prefix.score, digits),
            plain(prefix.alone, digits),
            *(scored(metric, prefix.metrics.get(metric.name)) for metric in further),
            amount(prefix.parameters),
            amount(prefix.macs),
            _reported(heading, prefix),
        ][: len(columns)]
        for prefix in found.prefixes
    ]
    return grid(columns, lines, "rl" + "r" * (len(columns) - 2))


def _reported(heading: Heading, prefix: PrefixRow) -> str:
    if prefix.reported is None:
        return BLANK
    at = f" at {percent(prefix.reported_share)} MACs" if prefix.reported_share is not None else ""
    return f"{heading.said(prefix.reported)}{at}"


def _exits(heading: Heading, found: Anytime) -> str:
    ends = max(len(leave.leaving) for leave in found.exits)
    metric = heading.headline
    columns = [
        "threshold",
        "MACs %",
        metric.heading,
        f"val {metric.named}",
        *(f"after {k}" for k in range(1, ends + 1)),
    ]
    lines = [
        [
            _threshold(leave),
            percent(leave.share, 1),
            plain(leave.score, metric.digits),
            scored(metric, leave.val_score),
            *(percent(share) for share in leave.leaving),
            *[BLANK] * (ends - len(leave.leaving)),
        ]
        for leave in found.exits
    ]
    return grid(columns, lines, "r" * len(columns))


def _threshold(leave: ExitRow) -> str:
    low, high = leave.thresholds
    return f"{low:.4g}" if low == high else f"{low:.4g} to {high:.4g}"
