"""Scores against the cost of the deployed model: a panel of the board's picture, drawn where costs differ.

Heights are signed scores: higher is better, and numbers are told without the sign.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from math import ceil, floor, log10
from statistics import median_low
from typing import TYPE_CHECKING, NamedTuple

from matplotlib.ticker import NullLocator

from kdbench.board.palette import GREEN, GREY, INK, PALE, look
from kdbench.board.rows import COSTLIER, TEACHER, Heading, Row, Table
from kdbench.board.scale import axis, point, tell
from kdbench.board.text import amount, capital
from kdbench.tasks import Metric

if TYPE_CHECKING:
    from matplotlib.axes import Axes

HEIGHT = 3.9  # inches
LONG = 40  # letters of a teacher, from which on its options are left out
FEW = 3  # pairs, up to which a method that changes the deployed graph is named
TOGETHER = 70  # letters of the names at one triangle
FAR = 25.0  # points (`scale.point`) below the middle row of its pair, beyond which a row is drawn at the edge


class Label(NamedTuple):
    """A name at a point: MACs and signed score, in the units of the axes."""

    macs: float
    score: float
    text: str
    colour: str


def differ(tables: Sequence[Table]) -> bool:
    """Whether students of one pair cost differently: else MACs say nothing about methods."""
    costs = [[row.macs for row in table.rows if row.macs and row.score] for table in tables]
    return any(max(macs) > COSTLIER * min(macs) for macs in costs if macs)


class Dot(NamedTuple):
    """A row, and where it stands: its signed score."""

    row: Row
    macs: int
    score: float


def _dots(heading: Heading, table: Table) -> list[Dot]:
    sign = heading.headline.sign
    return [Dot(row, row.macs, sign * row.score.mean) for row in table.rows if row.macs and row.score]


def lowest(heading: Heading, tables: Sequence[Table]) -> float:
    """Where the scale begins: rows far below the middle of their pair do not stretch it."""
    near = []
    for table in tables:
        found = [dot.score for dot in _dots(heading, table)]
        far = FAR * point(heading.headline, found)
        near += [score for score in found if score >= median_low(found) - far]
    return min(near, default=0.0)


def beyond(heading: Heading, tables: Sequence[Table]) -> bool:
    """Whether a row is below the scale."""
    return any(dot.score < lowest(heading, tables) for table in tables for dot in _dots(heading, table))


def draw(axes: Axes, heading: Heading, tables: Sequence[Table]) -> None:
    """Every pair's rows above the MACs of their deployed students, and the teachers; a row far below at the edge."""
    frame(axes)
    axes.set_xscale("log")
    axes.grid(color="#E8E8E8", linewidth=0.8)
    axes.tick_params(axis="both", which="both", length=0)
    words = f"{capital(heading.headline.words)} against cost of the deployed model"
    axes.set_title(words, loc="left", size=10, weight="bold", color=INK, pad=6)
    axes.set_xlabel(f"MACs of one {heading.example} (log scale)", color=GREY)
    axes.set_ylabel(axis(heading.headline), color=GREY)
    tell(axes.yaxis, heading.headline.sign)
    low = lowest(heading, tables)
    teachers = _teachers(heading, tables)
    points = [(float(dot.macs), max(dot.score, low)) for table in tables for dot in _dots(heading, table)]
    points += [(macs, score) for macs, score, *_ in teachers]
    fit(axes, points, point(heading.headline, [score for _, score in points]))
    labels, far = list(teachers), []
    for label in teachers:
        axes.plot([label.macs], [label.score], marker="D", ms=7, color=GREEN, zorder=4)
    for table in tables:
        shown = [dot for dot in _dots(heading, table) if dot.score >= low]
        far += [
            Label(d.macs, d.score, d.row.label, look(heading, d.row).edge)
            for d in _dots(heading, table)
            if d.score < low
        ]
        usual = _usual(heading, table)
        labels += _students(axes, heading, Label(usual, 0.0, table.pair, INK), shown, named=len(tables) <= FEW)
    edge = at_the_edge(axes, heading.headline, far)
    place(axes, [*labels, *edge], [*points, *((label.macs, label.score) for label in edge)])


def _teachers(heading: Heading, tables: Sequence[Table]) -> list[Label]:
    known, metric = [table.teacher for table in tables if table.teacher], heading.headline
    found = {
        (float(t.macs), metric.sign * round(t.score, metric.digits), t.model or TEACHER)
        for t in known
        if t.macs and t.score is not None
    }
    names = ((m, score, name if len(name) <= LONG else name.partition("(")[0]) for m, score, name in sorted(found))
    return [Label(macs, score, name, GREEN) for macs, score, name in names]


def _usual(heading: Heading, table: Table) -> float:
    """MACs of the plain student: the floor's, else the reference's, else those of the middle row."""
    controls = [table.row(label) for label in (heading.floor, heading.reference)]
    known = [row.macs for row in controls if row and row.macs]
    return float(known[0] if known else median_low([dot.macs for dot in _dots(heading, table)] or [0]))


def _students(axes: Axes, heading: Heading, usual: Label, dots: Sequence[Dot], *, named: bool) -> list[Label]:
    """Draw the rows of a pair, a line through those of the usual cost; the names of the pair and of the others."""
    labels = []
    if same := [dot.score for dot in dots if dot.macs == usual.macs]:
        axes.plot([usual.macs] * 2, [min(same), max(same)], color=PALE, linewidth=1.2, zorder=1)
        labels.append(usual._replace(score=max(same)))
    for row, macs, score in dots:
        mark = look(heading, row)
        axes.plot(
            [macs], [score], marker=mark.marker, ms=6, mec=mark.edge, mfc=mark.face, mew=1.3, alpha=mark.alpha, zorder=3
        )
        if named and macs != usual.macs:
            labels.append(Label(macs, score, row.label, mark.edge))
    return labels


def at_the_edge(axes: Axes, metric: Metric, beyond: Sequence[Label]) -> list[Label]:
    """Triangles at the lower edge for what is far below; one name for all that share a triangle."""
    low = axes.get_ylim()[0]
    shared: dict[float, list[Label]] = {}
    for label in sorted(beyond, key=lambda label: (-label.score, label.text)):
        shared.setdefault(round(label.macs, 6), []).append(label)
    found = []
    for macs, labels in sorted(shared.items()):
        colour = labels[0].colour if len(labels) == 1 else GREY
        axes.plot([macs], [low], marker="v", ms=6, mec=colour, mfc="white", mew=1.3, clip_on=False, zorder=4)
        named = [f"{label.text} {metric.number(metric.sign * label.score)}" for label in labels if label.text]
        if not named:  # too many to be named: their numbers stand in the tables
            continue
        shown = max(1, sum(ends <= TOGETHER for ends in accumulate(len(name) + 2 for name in named)))
        more = [f"{len(named) - shown} more"] if len(named) > shown else []
        found.append(Label(macs, low, ", ".join([*named[:shown], *more]), colour))
    return found


def fit(axes: Axes, points: Sequence[tuple[float, float]], unit: float = 1.0) -> None:
    x, y = [p[0] for p in points], [p[1] for p in points]
    ratio = max(max(x) / min(x), 4.0)
    low, high = min(x) / ratio**0.06, max(x) * ratio**0.16
    axes.set_xlim(low, high)
    margin = 0.1 * max(max(y) - min(y), unit)
    axes.set_ylim(min(y) - margin, max(y) + margin)
    decades = range(floor(log10(low)), ceil(log10(high)) + 1)
    steps = (1, 2, 5) if len(decades) <= 4 else (1,)
    ticks = [step * 10.0**decade for decade in decades for step in steps]
    inside = [tick for tick in ticks if low <= tick <= high]
    axes.set_xticks(inside, [amount(round(tick)) for tick in inside])
    axes.xaxis.set_minor_locator(NullLocator())


def place(axes: Axes, labels: Sequence[Label], points: Sequence[tuple[float, float]]) -> None:
    """Names beside their points, moved where they would cover a point or another name; then a thin line leads back."""
    dots = 72 / axes.get_figure().get_dpi()  # type: ignore[union-attr]
    inner = axes.get_window_extent()
    left, bottom, right, top = (side * dots for side in inner.extents)
    taken = [(x * dots - 4, y * dots - 4, x * dots + 4, y * dots + 4) for x, y in map(axes.transData.transform, points)]
    for label in sorted(labels, key=lambda label: (-label.score, label.macs, label.text)):
        x, y = axes.transData.transform((label.macs, label.score)) * dots
        wide, half = 5.0 * len(label.text), 5.0  # points, generous for 8 point letters
        shifts = sorted(((dx, 11 * dy) for dy in range(-5, 6) for dx in (8, -8 - wide, 30, 60, 90)), key=_reach)
        boxes = [(x + dx, y + dy - half, x + dx + wide, y + dy + half) for dx, dy in shifts]
        inside = [box for box in boxes if left < box[0] and box[2] < right and bottom < box[1] and box[3] < top]
        free = [box for box in inside if not any(_overlap(box, other) for other in taken)]
        box = (free or inside or boxes)[0]
        taken.append(box)
        side, dx = ("left", box[0] - x) if box[0] > x else ("right", box[2] - x)
        dy = box[1] + half - y
        leader = {"arrowstyle": "-", "color": PALE, "linewidth": 0.7, "shrinkB": 4}
        axes.annotate(
            label.text, (label.macs, label.score), xytext=(dx, dy), textcoords="offset points", ha=side, va="center",
            size=8, color=label.colour, bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5, "alpha": 0.85},
            arrowprops=None if abs(dy) < 1 and abs(dx) < 10 else leader,
        )  # fmt: skip


def _reach(shift: tuple[float, float]) -> float:
    """How far a name is from its point; to the right is better than to the left."""
    return abs(shift[1]) + (shift[0] - 8 if shift[0] > 0 else 6) + (0.5 if shift[1] < 0 else 0)


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def frame(axes: Axes) -> None:
    """The look of all axes: no box, a thin line below."""
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color("#999999")
    axes.tick_params(colors=INK, labelsize=8.5)
