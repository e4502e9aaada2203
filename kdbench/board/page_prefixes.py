"""Markdown of answer prefixes and early exits: what a ladder of roles is worth if one stops early."""

from __future__ import annotations

from kdbench.board.rows import Anytime, ExitRow, Heading, PrefixRow, Table
from kdbench.board.text import BLANK, amount, code, count, grid, number, percent, plain

LEGEND = (
    "**k**: the first k roles answer together; **alone**: the k-th without the others, test top-1 in percent. "
    "**MACs %**: cumulative, of the teacher's. NLL, ECE, params and MACs are those of the first k together."
)
EXITS_LEGEND = (
    "An image goes on to the next role while its most probable class has less than the threshold. **MACs %**: expected "
    "for a test image, of the teacher's. The thresholds are a fixed list: choose among them by **val top-1**. "
    "**after k**: test images that leave there."
)


def sections(heading: Heading, table: Table, level: str) -> list[str]:
    """The picture, then the tables of every method that has prefixes; `level` is the mark of their headings."""
    if not table.anytime:
        return []
    parts = [
        f"{level} Accuracy of {table.pair} if one stops early",
        f"![Test accuracy against the share of the teacher's MACs]({heading.anytime_picture(table.pair)})",
    ]
    for found in table.anytime:
        parts += [_about(table, found), _prefixes(found), f"<sub>{LEGEND}</sub>"]
        if found.exits:
            body = f"{_exits(found)}\n\n<sub>{EXITS_LEGEND}</sub>"
            parts.append(f"<details><summary>Early exit of {found.label}</summary>\n\n{body}\n\n</details>")
    return parts


def _about(table: Table, found: Anytime) -> str:
    row = table.row(found.label)
    words = f"Prefixes of `{found.label}`, {count(found.prefixes[0].top1.n, 'seed')}"
    if row and not row.ranked:
        return f"{words} (unranked: {row.why_unranked}):"
    return f"{words}{' (preliminary)' if row and row.preliminary else ''}:"


def _prefixes(found: Anytime) -> str:
    columns = ["k", "role", "MACs %", "top-1 (%)", "alone", "NLL", "ECE", "params", "MACs", "reported"]
    if not any(prefix.reported is not None for prefix in found.prefixes):
        columns.pop()
    lines = [
        [
            str(prefix.k),
            code(prefix.role),
            percent(prefix.share, 1),
            plain(prefix.top1),
            plain(prefix.alone),
            *(number(prefix.metrics.get(name)) for name in ("nll", "ece")),
            amount(prefix.parameters),
            amount(prefix.macs),
            _reported(prefix),
        ][: len(columns)]
        for prefix in found.prefixes
    ]
    return grid(columns, lines, "rlrrrrrrrr")


def _reported(prefix: PrefixRow) -> str:
    if prefix.reported is None:
        return BLANK
    at = f" at {percent(prefix.reported_share)} MACs" if prefix.reported_share is not None else ""
    return f"{prefix.reported:.2f}{at}"


def _exits(found: Anytime) -> str:
    ends = max(len(leave.leaving) for leave in found.exits)
    columns = ["threshold", "MACs %", "top-1 (%)", "val top-1", *(f"after {k}" for k in range(1, ends + 1))]
    lines = [
        [
            _threshold(leave),
            percent(leave.share, 1),
            plain(leave.top1),
            f"{leave.val_top1:.2f}" if leave.val_top1 is not None else BLANK,
            *(percent(share) for share in leave.leaving),
            *[BLANK] * (ends - len(leave.leaving)),
        ]
        for leave in found.exits
    ]
    return grid(columns, lines, "r" * len(columns))


def _threshold(leave: ExitRow) -> str:
    low, high = leave.thresholds
    return f"{low:.4g}" if low == high else f"{low:.4g} to {high:.4g}"
