"""Board -> SVG for a pair with answer prefixes: scores against the share of the teacher's MACs.

Prefixes are a curve for each method that has them, early exit a dashed one, single students dots. The bytes depend on
the board alone, as those of `picture.svg`. Heights are signed scores: higher is better.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import ceil, floor, log10
from typing import TYPE_CHECKING, NamedTuple

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, NullLocator

from kdbench.board.palette import GREEN, GREY, INK, ORANGE, key, keys, look, of
from kdbench.board.picture import ACROSS, WIDTH, short, written
from kdbench.board.picture_cost import Label, at_the_edge, frame, place
from kdbench.board.rows import TEACHER, Anytime, Board, Heading, Table
from kdbench.board.scale import axis, point, tell
from kdbench.board.text import count

if TYPE_CHECKING:
    from matplotlib.axes import Axes

HEIGHT = 6.2  # inches
FEW = 5  # single students of the same MACs, up to which every one is named
OUTLIER = 25.0  # points (`scale.point`) below every curve, beyond which a single student is drawn at the lower edge


class Dot(NamedTuple):
    """A point: percent of the teacher's MACs, signed test score."""

    share: float
    score: float
    label: str
    edge: str
    face: str
    marker: str
    alpha: float = 1.0


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
    axes = drawn.add_axes((0.85 / WIDTH, 0.62 / HEIGHT, 8.9 / WIDTH, (HEIGHT - 2.15) / HEIGHT))
    colours, sign = of(heading), heading.headline.sign
    ladders = [(found, colours[found.label]) for found in table.anytime]
    singles, alone = (
        list(_singles(heading, table)),
        [dot for found, c in ladders for dot in _alone(sign, found, c, len(ladders))],
    )
    dots = [*singles, *alone]
    claims = [*_reported(sign, table), *(dot for found, colour in ladders for dot in _claimed(sign, found, colour))]
    _fit(axes, heading, table, dots, claims)
    curves = [label for found, colour in ladders for label in _ladder(axes, sign, found, colour)]
    low = axes.get_ylim()[0]
    for dot in (*dots, *claims):
        if dot.score >= low:
            _draw(axes, dot)
    edge = at_the_edge(
        axes, heading.headline, [Label(dot.share, dot.score, dot.label, dot.edge) for dot in dots if dot.score < low]
    )
    named = {*_named(heading, singles), *claims, *(alone if len(ladders) == 1 else ())}
    labels = [Label(dot.share, dot.score, dot.label, dot.edge) for dot in (*dots, *claims) if dot in named]
    labels = [*_highest(curves), *(label for label in labels if label.score >= low), *edge]
    points = [*((label.macs, label.score) for label in (*curves, *edge)), *((dot.share, dot.score) for dot in dots)]
    place(axes, labels, [*points, *((dot.share, dot.score) for dot in claims)])
    _legend(drawn, heading, table, bool(edge))
    return drawn


def _highest(curves: Sequence[Label]) -> list[Label]:
    """Names of the points of curves: all ends, and of equal numbers of roles at equal MACs the highest alone."""
    found: dict[tuple[float, str], Label] = {}
    for label in sorted(curves, key=lambda label: -label.score):
        found.setdefault((round(label.macs, 1), label.text), label)
    several = len({label.colour for label in curves}) > 1
    return [
        label._replace(colour=GREY) if several and label.text.startswith("k=") else label for label in found.values()
    ]


def _named(heading: Heading, dots: Sequence[Dot]) -> set[Dot]:
    """The dots that carry a name: where many have the same MACs, the controls and the best alone."""
    groups: dict[float, list[Dot]] = {}
    for dot in dots:
        groups.setdefault(round(dot.share, 3), []).append(dot)
    named: set[Dot] = set()
    for group in groups.values():
        best = max(group, key=lambda dot: dot.score)
        named |= {
            dot for dot in group if len(group) <= FEW or dot is best or dot.label in (heading.floor, heading.reference)
        }
    return named


def _singles(heading: Heading, table: Table) -> Iterator[Dot]:
    """Methods that answer with one network, and the teacher."""
    ladders = {found.label for found in table.anytime}
    teacher, sign = table.teacher, heading.headline.sign
    if not teacher or not teacher.macs:
        return
    for row in sorted(table.rows, key=lambda row: row.label):
        if row.label not in ladders and row.macs and row.score:
            yield Dot(100 * row.macs / teacher.macs, sign * row.score.mean, short(row.label), *look(heading, row))
    if teacher.score is not None:
        yield Dot(100.0, sign * teacher.score, TEACHER, GREEN, GREEN, "D")


def _alone(sign: int, found: Anytime, colour: str, ladders: int) -> Iterator[Dot]:
    """The rungs of a ladder by themselves; the first is the first prefix."""
    for prefix in found.prefixes:
        if prefix.k > 1 and prefix.alone and prefix.alone_share:
            name = f"{prefix.role} alone" if ladders == 1 else ""
            yield Dot(100 * prefix.alone_share, sign * prefix.alone.mean, name, colour, "white", "d")


def _reported(sign: int, table: Table) -> Iterator[Dot]:
    """Papers' numbers of the teacher and of single students, at the MACs they give, else at those measured here."""
    ladders = {found.label for found in table.anytime}
    if not table.teacher or not table.teacher.macs:
        return
    claim = table.teacher.reported
    if claim and claim.top1 is not None:
        yield Dot(100.0, sign * claim.top1, f"{TEACHER}, reported", GREEN, "white", "*")
    for row in table.rows:
        if row.reported and row.reported.top1 is not None and row.macs and row.label not in ladders:
            share = row.reported.macs_percent or 100 * row.macs / table.teacher.macs
            yield Dot(share, sign * row.reported.top1, f"{short(row.label)}, reported", GREY, "white", "*")


def _claimed(sign: int, found: Anytime, colour: str) -> Iterator[Dot]:
    for prefix in found.prefixes:
        share = prefix.reported_share or prefix.share
        if prefix.reported is not None and share:
            yield Dot(100 * share, sign * prefix.reported, f"k={prefix.k}, reported", colour, "white", "*")


def _ladder(axes: Axes, sign: int, found: Anytime, colour: str) -> list[Label]:
    """Draw a method's prefixes as a curve with the band of its seeds, and its early exits; the names of its points."""
    known = [(prefix, 100 * prefix.share) for prefix in found.prefixes if prefix.share]
    shares = [share for _, share in known]
    lows = [min(sign * score for score in prefix.seeds.values()) for prefix, _ in known]
    highs = [max(sign * score for score in prefix.seeds.values()) for prefix, _ in known]
    means = [sign * prefix.score.mean for prefix, _ in known]
    axes.fill_between(shares, lows, highs, color=colour, alpha=0.15, linewidth=0, zorder=1)
    axes.plot(shares, means, color=colour, marker="o", ms=6, linewidth=1.8, zorder=3)
    exits = sorted((100 * leave.share, sign * leave.score.mean) for leave in found.exits if leave.share)
    if exits:
        axes.plot(*zip(*exits, strict=True), color=colour, linestyle=(0, (4, 2)), linewidth=1.4, zorder=2)
    last = len(known) - 1
    name = short(found.label)
    return [
        Label(share, sign * prefix.score.mean, name if i == last else f"k={prefix.k}", colour)
        for i, (prefix, share) in enumerate(known)
    ]


def _draw(axes: Axes, dot: Dot) -> None:
    size = {"*": 10.0, "D": 6.5}.get(dot.marker, 6.0)
    order = 2.5 if dot.marker in "*d" else 4
    axes.plot(
        [dot.share], [dot.score], marker=dot.marker, ms=size, mec=dot.edge, mfc=dot.face, mew=1.3, alpha=dot.alpha,
        zorder=order,
    )  # fmt: skip


def _fit(axes: Axes, heading: Heading, table: Table, dots: list[Dot], claims: list[Dot]) -> None:
    frame(axes)
    axes.set_xscale("log")
    axes.grid(color="#E8E8E8", linewidth=0.8)
    axes.tick_params(axis="both", which="both", length=0)
    axes.set_xlabel(f"MACs of one {heading.example}, in percent of the teacher's (log scale)", color=GREY)
    axes.set_ylabel(axis(heading.headline), color=GREY)
    tell(axes.yaxis, heading.headline.sign)
    sign = heading.headline.sign
    y = [sign * score for found in table.anytime for prefix in found.prefixes for score in prefix.seeds.values()]
    y += [sign * leave.score.mean for found in table.anytime for leave in found.exits]
    y += [dot.score for dot in claims]
    unit = point(heading.headline, y)
    y += [dot.score for dot in dots if dot.score >= min(y) - OUTLIER * unit]
    margin = 0.08 * max(max(y) - min(y), unit)
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


def _legend(drawn: Figure, heading: Heading, table: Table, edge: bool) -> None:
    """Every mark and line that is drawn."""
    ladders = {found.label for found in table.anytime}
    singles = [row for row in table.rows if row.label not in ladders and row.macs and row.score]
    known = table.teacher and table.teacher.macs
    labels = {row.label for row in singles} if known else set()
    entries = [Line2D([], [], color=GREY, marker="o", markersize=5, linewidth=1.8, label="first k roles together")]
    if any(found.exits for found in table.anytime):
        entries.append(Line2D([], [], color=GREY, linestyle=(0, (4, 2)), linewidth=1.4, label="early exit"))
    if any(prefix.k > 1 and prefix.alone for found in table.anytime for prefix in found.prefixes):
        entries.append(key(GREY, "white", "a later role alone", "d"))
    if heading.floor in labels:
        entries.append(key(INK, "white", f"{heading.floor} (floor)", "s"))
    if heading.reference in labels:
        entries.append(key(ORANGE, ORANGE, f"{heading.reference} (reference)"))
    others = [row for row in singles if row.label not in (heading.floor, heading.reference)] if known else []
    entries += keys(heading, others)
    if known:
        entries.append(key(GREEN, GREEN, TEACHER, "D"))
    if any(row.reported for row in (table.teacher, *table.rows) if row):
        entries.append(key(GREY, "white", "reported by the paper", "*"))
        entries[-1].set(markersize=10, markeredgewidth=1.1)
    if edge:
        entries.append(key(GREY, "white", "below the scale", "v"))
    drawn.legend(
        handles=entries, loc="upper left", bbox_to_anchor=(0.17 / WIDTH, 1 - 0.72 / HEIGHT), ncols=ACROSS,
        frameon=False, fontsize=8.5, handletextpad=0.5, columnspacing=1.6, borderaxespad=0.0,
    )  # fmt: skip
