"""Widths for a ladder of students: which value of a model's option comes nearest to a share of the teacher's MACs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from kdbench.data import DataSet
from kdbench.errors import UserError, did_you_mean
from kdbench.models.make import Sizes
from kdbench.suite.fields import Pair
from kdbench.suite.load import Suite

WIDEST = 4096


@dataclass(frozen=True)
class Proposal:
    """One rung: what differs from the student, and its share of the teacher's MACs."""

    options: dict[str, Any]
    macs: int
    share: float


def nearest(macs: Callable[[int], int], target: float, widest: int = WIDEST) -> int:
    """The width in 1..widest whose MACs are nearest to `target`; `macs` must rise with the width."""
    low, high = 1, 2
    while high < widest and macs(high) < target:
        low, high = high, min(2 * high, widest)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if macs(middle) < target else (low, middle)
    return min((low, high), key=lambda width: (abs(macs(width) - target), width))


def widened(value: Any, width: int) -> Any:
    """An option at a width: a number becomes it; a list is scaled so that its largest entry is it."""
    if isinstance(value, list | tuple):
        return [max(1, round(item * width / max(value))) for item in value]
    return width


def propose(
    suite: Suite, pair: str, fractions: Sequence[float], option: str, depths: Sequence[int], data: DataSet
) -> list[Proposal]:
    """One rung for each fraction of the teacher's MACs, made of the pair's student.

    Args:
        option: the student's option that is chosen, a number or a list of numbers.
        depths: option `depth` of each rung; empty leaves the student's.

    Raises:
        UserError: there is no such pair or option, or the numbers do not fit together.
    """
    if pair not in suite.file.pairs:
        raise UserError(f"{suite.path}: there is no pair '{pair}'{did_you_mean(pair, suite.file.pairs)}")
    if depths and len(depths) != len(fractions):
        raise UserError(f"--depths gives {len(depths)} numbers for {len(fractions)} fractions")
    roles: Pair = suite.file.pairs[pair]
    given = roles.student.options.get(option, 0)
    numbers = given if isinstance(given, list | tuple) else [given]
    if not numbers or any(type(number) is not int for number in numbers):
        raise UserError(f"--option {option}: the student's `{option}` is not a whole number, nor a list of them")
    sizes = Sizes(data, suite.folder)

    def macs(options: dict[str, Any]) -> int:
        return sizes.of(roles.student.model_copy(update={"options": options}))[1]

    _, whole = sizes.of(roles.teacher)
    found = []
    for number, fraction in enumerate(fractions):
        deep = {"depth": depths[number]} if depths else {}

        def at(width: int, deep: dict[str, Any] = deep) -> dict[str, Any]:
            return {**roles.student.options, **deep, option: widened(given, width)}

        width = nearest(lambda width, at=at: macs(at(width)), fraction * whole)  # type: ignore[misc]
        spent = macs(at(width))
        found.append(Proposal({**deep, option: widened(given, width)}, spent, spent / whole))
    return found


def text(proposals: Sequence[Proposal]) -> str:
    """YAML to paste into the pair: a rung a line, with its share and that of all so far in percent."""
    lines, together = ["ladder:"], 0.0
    rungs = [f"  - {{{', '.join(f'{name}: {value}' for name, value in p.options.items())}}}" for p in proposals]
    width = max(map(len, rungs), default=0)
    for rung, proposal in zip(rungs, proposals, strict=True):
        together += proposal.share
        lines.append(
            f"{rung:<{width}} # {100 * proposal.share:.2f}% of the teacher's MACs, {100 * together:.1f}% so far"
        )
    return "\n".join(lines)
