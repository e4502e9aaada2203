"""How the numbers and texts of a board are written in markdown."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from tabulate import tabulate

from kdbench.board.statistics import Interval
from kdbench.errors import printable
from kdbench.tasks import Metric

BLANK = ""


def grid(columns: Sequence[str], lines: Sequence[Sequence[str]], align: str) -> str:
    """A pipe table, its raw text aligned too; `align` has a letter (l, r) for each column."""
    sides = [{"l": "left", "r": "right"}[letter] for letter in align[: len(columns)]]
    return tabulate(lines, headers=columns, tablefmt="pipe", colalign=sides, disable_numparse=True)


def plain(value: Interval | None, digits: int) -> str:
    return f"{value.mean:.{digits}f} ± {_half(value, digits)}" if value else BLANK


def signed(value: Interval | None, digits: int) -> str:
    return f"{value.mean:+.{digits}f} ± {_half(value, digits)}" if value else BLANK


def gain(value: Interval | None, n: int, digits: int) -> str:
    """A gain of a row of n seeds, with the number of those that both rows have where that is another."""
    return signed(value, digits) + (f" (n={value.n})" if value and value.n != n else "")


def _half(value: Interval, digits: int) -> str:
    return "–" if value.half is None else f"{value.half:.{digits}f}"


def percent(share: float | None, digits: int = 0) -> str:
    return BLANK if share is None else f"{100 * share:.{digits}f}%"


def number(value: float | None) -> str:
    return BLANK if value is None else f"{value:.3f}"


def scored(metric: Metric, value: float | None) -> str:
    """A value below the heading of its metric."""
    return BLANK if value is None else metric.number(value)


def amount(value: int | None) -> str:
    """1234567 -> 1.23M."""
    if value is None:
        return BLANK
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= 0.9995 * size:
            return f"{value / size:.3g}{unit}"
    return str(value)


def capital(words: str) -> str:
    """The beginning of a sentence."""
    return words[:1].upper() + words[1:]


def count(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"


def seeds(numbers: Sequence[int]) -> str:
    """0, 1, 2, 4 -> "0-2, 4"."""
    runs: list[list[int]] = []
    for seed in sorted(numbers):
        if runs and seed == runs[-1][-1] + 1:
            runs[-1].append(seed)
        else:
            runs.append([seed])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def options(values: Mapping[str, Any]) -> str:
    """Nested settings on one line; those that are not set are left out."""
    shown = {name: value for name, value in values.items() if value not in (None, {}, [], ())}
    return prose(", ".join(f"{name}={_value(value)}" for name, value in shown.items()))


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{k}={_value(v)}" for k, v in value.items() if v not in (None, {}, [], ())) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_value(item) for item in value) + "]"
    return str(value).lower() if isinstance(value, bool) else str(value)


def prose(text: str) -> str:
    """Foreign text on one line, with what markdown and HTML would take for markup escaped."""
    escaped = "".join(f"\\{letter}" if letter in "\\`*<>|[]" else letter for letter in printable(text))
    return f"\\{escaped}" if escaped[:1] in tuple("#+-=~") else escaped


def code(text: object) -> str:
    """Foreign text on one line as a code span, in a table too."""
    shown = printable(text).replace("|", "\\|")
    fence = "`" * (1 + max(map(len, re.findall("`+", shown)), default=0))
    room = " " if "`" in shown else ""
    return f"{fence}{room}{shown}{room}{fence}"
