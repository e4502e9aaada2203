"""Board -> SVG for a pair with answer prefixes: accuracy against the share of the teacher's MACs.

Prefixes are a curve for each method that has them, early exit a dashed one, single students dots. The bytes depend on
the board alone, as those of `picture.svg`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import cycle, islice
from math import ceil, floor, log10
from typing import TYPE_CHECKING, NamedTuple

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, NullLocator

from kdbench.board.picture import BLUE, GREEN, GREY, INK, ORANGE, PALE, WIDTH, Label, frame, key, place, short, written
from kdbench.board.rows import FLOOR, REFERENCE, TEACHER, Anytime, Board, Heading, Table
from kdbench.board.text import count

if TYPE_CHECKING:
    from matplotlib.axes import Axes

HEIGHT = 5.8  # inches
LADDERS = (BLUE, "#CC79A7", "#56B4E9", "#E69F00")  # one for each curve, in the order of the rows; then again
FEW = 5  # single students of the same MACs, up to which every one is named
OUTLIER = 25.0  # points below every curve, beyond which a single student is drawn at the lower edge


class Dot(NamedTuple):
    """A point: percent of the teacher's MACs, test top-1 in percent."""

    share: float
    top1: float
    label: str
    edge: str
    face: str
    marker: str


def svg(board: Board, table: Table) -> str:
    """The picture of one pair, `leaderboard/<suite>.<pair>.anytime.svg`."""
    return written(lambda: figure(board.heading, table))


def figure(heading: Heading, table: Table) -> Figure:
    """To be drawn under `picture.SETTINGS`."""
    drawn = Figure(figsize=(WIDTH, HEIGHT), facecolor="white")
    track = "" if heading.track == "default" else f", {heading.track} track"
    warning = " (not comparable)" if table.alarms else ""
    title = f"{heading.suite}: {table.pair}{track}{warning}"
    size = min(14.0, 14.0 * 68 / len(title))  # one line, however long the names
    drawn.text(0.25 / WIDTH, 1 - 0.27 / HEIGHT, title, size=size, weight="bold", color=INK, va="center")
    seeds = count(len(heading.seeds), "seed")
    words = (
        f"what an answer is worth if it stops early: mean over {seeds}; the band goes from the lowest to the highest"
    )
    drawn.text(0.25 / WIDTH, 1 - 0.57 / HEIGHT, words, size=9, color=GREY, va="center")
    axes = drawn.add_axes((0.85 / WIDTH, 0.62 / HEIGHT, 8.9 / WIDTH, (HEIGHT - 1.75) / HEIGHT))
    ladders = list(zip(table.anytime, islice(cycle(LADDERS), len(table.anytime)), strict=True))
    dots = [*_singles(table), *(dot for found, colour in ladders for dot in _alone(found, colour))]
    claims = [*_reported(table), *(dot for found, colour in ladders for dot in _claimed(found, colour))]
    _fit(axes, table, dots, claims)
    labels: list[Label] = []
    for found, colour in ladders:
        labels += _ladder(axes, found, colour)
    points = [(label.macs, label.top1) for label in labels]
    named = _named(dots)
    for dot in (*dots, *claims):
        label = _draw(axes, dot)
        points.append((label.macs, label.top1))
        labels += [label] if dot in named or dot in claims else []
    place(axes, labels, points)
    _legend(drawn, table, bool(claims))
    return drawn


def _named(dots: Sequence[Dot]) -> set[Dot]:
    """The dots that carry a name: where many have the same MACs, the controls and the best alone."""
    groups: dict[float, list[Dot]] = {}
    for dot in dots:
        groups.setdefault(round(dot.share, 3), []).append(dot)
    named: set[Dot] = set()
    for group in groups.values():
        best = max(group, key=lambda dot: dot.top1)
        named |= {dot for dot in group if len(group) <= FEW or dot is best or dot.label in (FLOOR, REFERENCE)}
    return named


def _singles(table: Table) -> Iterator[Dot]:
    """Methods that answer with one network, and the teacher."""
    ladders = {found.label for found in table.anytime}
    teacher = table.teacher
    if not teacher or not teacher.macs:
        return
    for row in sorted(table.rows, key=lambda row: row.label):
        if row.label not in ladders and row.macs and row.top1:
            edge = PALE if not row.ranked else ORANGE if row.label == REFERENCE else INK
            face, marker = ORANGE if edge == ORANGE else "white", "s" if row.label == FLOOR else "o"
            yield Dot(100 * row.macs / teacher.macs, row.top1.mean, short(row.label), edge, face, marker)
    if teacher.top1 is not None:
        yield Dot(100.0, teacher.top1, TEACHER, GREEN, GREEN, "D")


def _alone(found: Anytime, colour: str) -> Iterator[Dot]:
    """The rungs of a ladder by themselves; the first is the first prefix."""
    for prefix in found.prefixes:
        if prefix.k > 1 and prefix.alone and prefix.alone_share:
            yield Dot(100 * prefix.alone_share, prefix.alone.mean, f"{prefix.role} alone", colour, "white", "o")


def _reported(table: Table) -> Iterator[Dot]:
    """Papers' numbers of the teacher and of single students, at the MACs they give, else at those measured here."""
    ladders = {found.label for found in table.anytime}
    if not table.teacher or not table.teacher.macs:
        return
    claim = table.teacher.reported
    if claim and claim.top1 is not None:
        yield Dot(100.0, claim.top1, f"{TEACHER}, reported", GREEN, "white", "*")
    for row in table.rows:
        if row.reported and row.reported.top1 is not None and row.macs and row.label not in ladders:
            share = row.reported.macs_percent or 100 * row.macs / table.teacher.macs
            yield Dot(share, row.reported.top1, f"{short(row.label)}, reported", GREY, "white", "*")


def _claimed(found: Anytime, colour: str) -> Iterator[Dot]:
    for prefix in found.prefixes:
        share = prefix.reported_share or prefix.share
        if prefix.reported is not None and share:
            yield Dot(100 * share, prefix.reported, f"k={prefix.k}, reported", colour, "white", "*")


def _ladder(axes: Axes, found: Anytime, colour: str) -> list[Label]:
    """Draw a method's prefixes as a curve with the band of its seeds, and its early exits; the names of its points."""
    known = [(prefix, 100 * prefix.share) for prefix in found.prefixes if prefix.share]
    shares = [share for _, share in known]
    lows = [min(prefix.seeds.values()) for prefix, _ in known]
    highs = [max(prefix.seeds.values()) for prefix, _ in known]
    means = [prefix.top1.mean for prefix, _ in known]
    axes.fill_between(shares, lows, highs, color=colour, alpha=0.15, linewidth=0, zorder=1)
    axes.plot(shares, means, color=colour, marker="o", ms=6, linewidth=1.8, zorder=3)
    exits = sorted((100 * leave.share, leave.top1.mean) for leave in found.exits if leave.share)
    if exits:
        axes.plot(*zip(*exits, strict=True), color=colour, linestyle=(0, (4, 2)), linewidth=1.4, zorder=2)
    last = len(known) - 1
    name = short(found.label)
    return [
        Label(share, prefix.top1.mean, name if i == last else f"k={prefix.k}", colour)
        for i, (prefix, share) in enumerate(known)
    ]


def _draw(axes: Axes, dot: Dot) -> Label:
    """Draw a point, one far below the others at the edge; its name and where it stands."""
    low = axes.get_ylim()[0]
    size = {"*": 10.0, "D": 6.5}.get(dot.marker, 6.0)
    if dot.top1 < low:
        axes.plot([dot.share], [low], marker="v", ms=6, color=dot.edge, clip_on=False, zorder=4)
        return Label(dot.share, low, f"{dot.label} {dot.top1:.2f}", GREY)
    order = 2.5 if dot.marker == "*" else 4
    axes.plot([dot.share], [dot.top1], marker=dot.marker, ms=size, mec=dot.edge, mfc=dot.face, mew=1.3, zorder=order)
    return Label(dot.share, dot.top1, dot.label, GREY if dot.edge == PALE else dot.edge)


def _fit(axes: Axes, table: Table, dots: list[Dot], claims: list[Dot]) -> None:
    frame(axes)
    axes.set_xscale("log")
    axes.grid(color="#E8E8E8", linewidth=0.8)
    axes.tick_params(axis="both", which="both", length=0)
    axes.set_xlabel("MACs of one image, in percent of the teacher's (log scale)", color=GREY)
    axes.set_ylabel("test top-1 (%)", color=GREY)
    y = [top1 for found in table.anytime for prefix in found.prefixes for top1 in prefix.seeds.values()]
    y += [leave.top1.mean for found in table.anytime for leave in found.exits]
    y += [dot.top1 for dot in claims]
    y += [dot.top1 for dot in dots if dot.top1 >= min(y) - OUTLIER]
    margin = 0.08 * max(max(y) - min(y), 1.0)
    axes.set_ylim(min(y) - margin, max(y) + margin)
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    x = [dot.share for dot in (*dots, *claims)]
    x += [100 * prefix.share for found in table.anytime for prefix in found.prefixes if prefix.share]
    x += [100 * leave.share for found in table.anytime for leave in found.exits if leave.share]
    ratio = max(max(x) / min(x), 4.0) if x else 4.0
    low, high = (min(x) / ratio**0.06, max(x) * ratio**0.14) if x else (25.0, 100.0)
    axes.set_xlim(low, high)
    ticks = [step * 10.0**decade for decade in range(floor(log10(low)), ceil(log10(high)) + 1) for step in (1, 2, 5)]
    inside = [tick for tick in ticks if low <= tick <= high]
    axes.set_xticks(inside, [f"{tick:g}%" for tick in inside])
    axes.xaxis.set_minor_locator(NullLocator())


def _legend(drawn: Figure, table: Table, claims: bool) -> None:
    curve = Line2D([], [], color=BLUE, marker="o", markersize=5, linewidth=1.8, label="first k roles together")
    dashed = Line2D([], [], color=BLUE, linestyle=(0, (4, 2)), linewidth=1.4, label="early exit")
    handles = [
        curve,
        *([dashed] if any(found.exits for found in table.anytime) else []),
        key(INK, "white", "a single student"),
        key(GREEN, GREEN, TEACHER, marker="D"),
    ]
    if claims:
        handles.append(key(GREY, "white", "reported by the paper", marker="*"))
        handles[-1].set(markersize=10, markeredgewidth=1.1)
    drawn.legend(
        handles=handles, loc="upper left", bbox_to_anchor=(0.17 / WIDTH, 1 - 0.72 / HEIGHT), ncols=len(handles),
        frameon=False, fontsize=8.5, handletextpad=0.5, columnspacing=1.6, borderaxespad=0.0,
    )  # fmt: skip
