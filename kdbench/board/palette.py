"""What things look like in every picture of a suite: one colour a method, one mark a claim."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from matplotlib.colors import to_hex, to_rgb
from matplotlib.lines import Line2D

from kdbench.board.rows import BETTER, NOT_SEPARABLE, WORSE, Heading, Row

# Okabe and Ito's palette, safe for the common colour blindnesses; then some of Paul Tol's
BLUE, ORANGE, GREEN, INK, GREY, PALE = "#0072B2", "#D55E00", "#009E73", "#222222", "#767676", "#BDBDBD"
HUES = (
    BLUE,
    "#CC79A7",
    "#56B4E9",
    "#E69F00",
    "#6A3D9A",
    "#8C6D31",
    "#44AA99",
    "#882255",
    "#999933",
    "#332288",
    "#CC6677",
)
DARKER = 0.6  # how bright the colours are when they come round again
FAINT = 0.45  # opacity of what has no rank
MARKS = {BETTER: "o", NOT_SEPARABLE: "o", WORSE: "X"}


class Look(NamedTuple):
    edge: str
    face: str
    marker: str
    alpha: float = 1.0


def palette(labels: Iterable[str], floor: str, reference: str) -> dict[str, str]:
    """Label -> colour: floor and reference have theirs, the others one each in the suite's order."""
    chosen = {floor: INK, reference: ORANGE}
    others = (label for label in labels if label not in chosen)
    return chosen | {label: _hue(i) for i, label in enumerate(others)}


@functools.cache
def _hue(i: int) -> str:
    turn, place = divmod(i, len(HUES))
    red, green, blue = (part * DARKER**turn for part in to_rgb(HUES[place]))
    return to_hex((red, green, blue))


def of(heading: Heading) -> dict[str, str]:
    """The colours of a board's methods."""
    return palette(heading.methods, heading.floor, heading.reference)


def look(heading: Heading, row: Row) -> Look:
    """Filled: better than the reference; a cross: worse; hollow: neither. The floor is a square."""
    colour = of(heading)[row.label]
    alpha = 1.0 if row.ranked else FAINT
    if row.label == heading.floor:
        return Look(colour, "white", "s", alpha)
    filled = row.claim in (BETTER, WORSE) or (row.label == heading.reference and row.ranked)
    return Look(colour, colour if filled else "white", MARKS.get(row.claim, "o"), alpha)


def key(edge: str, face: str, label: str, marker: str = "o", line: Any = "", alpha: float = 1.0) -> Line2D:
    """An entry of a legend; `line` is a style of matplotlib's."""
    return Line2D(
        [], [], color=edge, linestyle=line, linewidth=1.1, marker=marker, markersize=6, mec=edge, mfc=face, mew=1.4,
        label=label, alpha=alpha,
    )  # fmt: skip


def keys(heading: Heading, rows: Sequence[Row]) -> list[Line2D]:
    """Entries for the marks of these rows."""
    reference = heading.reference
    claims = {row.claim for row in rows if row.label not in (heading.floor, reference)}
    found = []
    for claim, face in ((BETTER, GREY), (NOT_SEPARABLE, "white"), (WORSE, GREY)):
        if claim in claims:
            found.append(key(GREY, face, f"{claim} {reference}", MARKS[claim]))
    if "" in claims and any(row.ranked and not row.claim and row.label != reference for row in rows):
        found.append(key(GREY, "white", "ranked"))
    if any(not row.ranked for row in rows):
        found.append(key(GREY, "white", "unranked", alpha=FAINT))
    return found
