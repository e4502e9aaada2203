"""Board -> SVG: for each pair gains over the reference, which the claims test, beside scores; then costs.

Better is right and up: scores of which less is better are drawn with their sign changed, and told without it.
The bytes depend on the board alone: no date, salted ids, text as outlines of matplotlib's own font, fixed order.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from matplotlib import style
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from kdbench.board import picture_cost
from kdbench.board.palette import FAINT, GREEN, GREY, INK, ORANGE, PALE, Look, key, keys, look
from kdbench.board.picture_cost import frame
from kdbench.board.rows import BETTER, TEACHER, Board, Heading, Row, Table
from kdbench.board.scale import axis, point, tell
from kdbench.board.text import count

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SETTINGS = {
    "font.family": "DejaVu Sans",
    "font.size": 9.0,
    "svg.fonttype": "path",
    "svg.hashsalt": "kdbench",
    "text.parse_math": False,
}  # a `$` in a name is a `$`
NO_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # not even in a comment
WIDTH, LINE, HEADER, BOTTOM, TITLE, LEGEND = 10.0, 0.235, 0.5, 0.62, 0.78, 0.21  # inches
ACROSS = 5  # entries in a line of the legend
GAP, BESIDE = 0.3, 0.95  # inches between the two panels of a pair, and right of them
GAINS = 0.55  # share of the width that gains take
LONGEST = 24  # letters of a label
OUTLIER = 4.0  # interquartile ranges below the first quartile, beyond which a row is drawn at the edge
DOTTED = (0, (1, 2))


def svg(board: Board) -> str:
    """The picture `leaderboard/<suite>.svg`."""
    return written(lambda: figure(board))


def written(draw: Callable[[], Figure]) -> str:
    """A figure as SVG whose bytes depend on nothing else; `draw` is called under `SETTINGS`."""
    text = io.StringIO()
    with style.context(["default", SETTINGS]):
        draw().savefig(text, format="svg", metadata={"Date": None, "Creator": "kdbench"})
    whole = NO_XML.sub("\N{REPLACEMENT CHARACTER}", text.getvalue())
    return "\n".join(line.rstrip() for line in whole.splitlines()) + "\n"


def figure(board: Board) -> Figure:
    """A band for each pair, below it the panel of costs where they differ; to be drawn under `SETTINGS`."""
    tables = [table for table in board.tables if any(row.score for row in table.rows)]
    entries = _entries(board.heading, tables)
    top = TITLE + LEGEND * -(-len(entries) // ACROSS)
    heights = [len(_shown(table)) * LINE + HEADER + BOTTOM for table in tables]
    costs = picture_cost.HEIGHT + 0.15 * len(tables) if picture_cost.differ(tables) else 0.0
    total = top + sum(heights) + costs
    drawn = Figure(figsize=(WIDTH, total), facecolor="white")
    _title(drawn, board, total, entries)
    for table, height in zip(tables, heights, strict=True):
        _band(drawn, board.heading, table, top, total)
        top += height
    if costs:
        box = (0.85 / WIDTH, 0.6 / total, 8.9 / WIDTH, (costs - 1.1) / total)
        picture_cost.draw(drawn.add_axes(box), board.heading, tables)
    return drawn


def _title(drawn: Figure, board: Board, total: float, entries: Sequence[Line2D]) -> None:
    track = "" if board.heading.track == "default" else f", {board.heading.track} track"
    name = board.heading.suite + track
    size = min(14.0, 14.0 * 68 / len(name))  # one line, however long the name
    drawn.text(0.25 / WIDTH, 1 - 0.27 / total, name, size=size, weight="bold", color=INK, va="center")
    seeds = len(board.heading.seeds)
    words = f"last epoch, mean and 95% interval over {count(seeds, 'seed')}; one colour a method"
    drawn.text(0.25 / WIDTH, 1 - 0.55 / total, words, size=9, color=GREY, va="center")
    if entries:
        drawn.legend(
            handles=entries, loc="upper left", bbox_to_anchor=(0.2 / WIDTH, 1 - 0.7 / total), ncols=ACROSS,
            frameon=False, fontsize=8.5, handletextpad=0.5, columnspacing=1.4, labelspacing=0.35, borderaxespad=0.0,
        )  # fmt: skip


def _entries(heading: Heading, tables: Sequence[Table]) -> list[Line2D]:
    """The legend: every mark and line that is drawn."""
    rows = [row for table in tables for row in _shown(table)]
    labels = {row.label for row in rows}
    found = keys(heading, rows)
    if heading.reference in labels:
        found.append(key(ORANGE, ORANGE, f"{heading.reference} (reference)", line=DOTTED))
    if heading.floor in labels:
        found.append(key(INK, "white", f"{heading.floor} (floor)", "s", DOTTED))
    if any(table.teacher and table.teacher.score is not None for table in tables):
        found.append(key(GREEN, GREEN, TEACHER, "D", "-"))
    if rows:
        found.append(Line2D([], [], color=GREY, linewidth=1.7, label="95% interval"))
        found.append(Line2D([], [], color=GREY, linestyle="", marker="o", ms=3.2, mew=0, alpha=FAINT, label="one seed"))
    if any(panel.beyond for table in tables for panel in _panels(heading, table)):
        found.append(key(GREY, "white", "below the scale", "<"))
    if picture_cost.differ(tables):
        found.append(Line2D([], [], color=PALE, linewidth=1.2, label="of the plain student's cost"))
        found += [key(GREY, "white", "below the scale of costs", "v")] if picture_cost.beyond(heading, tables) else []
    return found


def _shown(table: Table) -> list[Row]:
    return [row for row in table.rows if row.score]


def short(label: str) -> str:
    """A label that fits beside an axis."""
    return label if len(label) <= LONGEST else label[: LONGEST - 1] + "…"


# the panels of a pair ------------------------------------------------------------------------------------------------
class Spot(NamedTuple):
    """One row in a panel: mean, half-width of its interval, and its seeds; higher is better."""

    mean: float
    half: float
    seeds: tuple[float, ...]


@dataclass(frozen=True)
class Panel:
    """One quantity of the rows of a pair; rows without it are left empty."""

    words: str
    spots: Mapping[str, Spot]
    guides: Mapping[float, str]  # where -> colour
    low: float
    high: float
    sign: int = 1  # of the numbers at the axis

    @property
    def beyond(self) -> bool:
        """Whether a row is below the scale."""
        return any(spot.mean < self.low for spot in self.spots.values())


def _panels(heading: Heading, table: Table) -> list[Panel]:
    """Gains over the reference (else over the floor; none where nothing is compared), and scores."""
    metric = heading.headline
    scores = {
        row.label: Spot(
            metric.sign * row.score.mean,
            row.score.half or 0.0,
            tuple(metric.sign * score for _, score in sorted(row.seeds.items())),
        )
        for row in _shown(table)
        if row.score
    }
    unit = point(metric, [spot.mean for spot in scores.values()])
    low, high = limits(list(scores.values()), unit)
    worst, best = sorted(metric.sign * bound for bound in metric.bounds)
    guides = {scores[label].mean: colour for label, colour in _controls(heading).items() if label in scores}
    found = [Panel(axis(metric), scores, guides, max(worst, low), min(best, high), metric.sign)]
    over_reference = {row.label: row.over_reference for row in _shown(table)}
    over_floor = {row.label: row.gain for row in _shown(table)}
    for base, gains in ((heading.reference, over_reference), (heading.floor, over_floor)):
        other = table.row(base)
        if other is None or not any(gains.values()):
            continue
        spots = {base: Spot(0.0, 0.0, ())}
        for row in _shown(table):
            if gain := gains[row.label]:
                shared = tuple(
                    metric.sign * (row.seeds[seed] - other.seeds[seed])
                    for seed in sorted(set(row.seeds) & set(other.seeds))
                )
                spots[row.label] = Spot(gain.mean, gain.half or 0.0, shared)
        within = f" in{metric.points}" if metric.points else ""
        words = f"gain over {base}{within}, paired by seed"
        return [Panel(words, spots, {0.0: _controls(heading)[base]}, *limits(list(spots.values()), unit)), *found]
    return found


def _controls(heading: Heading) -> dict[str, str]:
    return {heading.floor: INK, heading.reference: ORANGE}


def limits(spots: Sequence[Spot], unit: float = 1.0) -> tuple[float, float]:
    """The range that shows most rows; a row far below the others does not stretch it. `unit`: see `point`."""
    means = sorted(spot.mean for spot in spots)
    first, third = means[len(means) // 4], means[(3 * len(means)) // 4]
    fence = first - OUTLIER * max(third - first, 0.5 * unit)
    spans = [
        value
        for spot in spots
        if spot.mean >= fence
        for value in (spot.mean - min(spot.half, 20.0 * unit), spot.mean + min(spot.half, 20.0 * unit), *spot.seeds)
    ]
    margin = 0.04 * max(max(spans) - min(spans), 0.5 * unit)
    return min(spans) - margin, max(spans) + margin


def _band(drawn: Figure, heading: Heading, table: Table, top: float, total: float) -> None:
    """One line for each method, the best on top: its gain, then its score. `top`, `total`: inches."""
    rows, panels = _shown(table), _panels(heading, table)
    tall = len(rows) * LINE
    left = 0.3 + 0.075 * max(min(len(row.label), LONGEST) for row in rows)
    room = WIDTH - left - BESIDE - GAP * (len(panels) - 1)
    widths = [room] if len(panels) == 1 else [GAINS * room, (1 - GAINS) * room]
    at = left
    for number, (panel, width) in enumerate(zip(panels, widths, strict=True)):
        box = (at / WIDTH, 1 - (top + HEADER + tall) / total, width / WIDTH, tall / total)
        axes = drawn.add_axes(box)
        _panel(axes, heading, rows, panel)
        if number == 0:
            axes.set_yticks(range(len(rows)), [short(row.label) for row in rows])
            for tick, row in zip(axes.yaxis.get_major_ticks(), rows, strict=True):
                name = tick.label1
                name.set_color(ORANGE if row.label == heading.reference else INK if row.ranked else GREY)
                strong = (row.claim == BETTER and row.sound) or row.label == heading.reference
                name.set_fontweight("bold" if strong else "normal")
            spare = width if len(panels) > 1 else width - 1.3
            _name(axes, table, left - 0.25, width, spare)
        at += width + GAP
    _scores(axes, heading, rows, panels[-1], table)


def _name(axes: Axes, table: Table, margin: float, width: float, room: float) -> None:
    """The pair above its band, from the left edge of the names of methods if it is long. Inches."""
    name = table.pair + (" (not comparable)" if table.alarms else "")
    title = axes.set_title(name, loc="left", size=10, weight="bold", color=ORANGE if table.alarms else INK, pad=6)
    long = 0.092 * len(name)
    if long > room:  # in smaller letters if need be
        title.set(x=-margin / width, size=min(10.0, 10.0 * (room + margin) / long))


def _panel(axes: Axes, heading: Heading, rows: Sequence[Row], panel: Panel) -> None:
    frame(axes)
    axes.set_xlim(panel.low, panel.high)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.grid(axis="x", color="#E8E8E8", linewidth=0.8)
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    axes.set_yticks([])
    tell(axes.xaxis, panel.sign)
    axes.set_xlabel(panel.words, color=GREY, size=8.5, labelpad=3)
    axes.tick_params(axis="both", length=0)
    for where, colour in panel.guides.items():
        if where >= panel.low:
            axes.axvline(where, color=colour, linewidth=1.1, linestyle=DOTTED, zorder=1)
    for y, row in enumerate(rows):
        if spot := panel.spots.get(row.label):
            _spot(axes, y, spot, look(heading, row), panel.low)


def _spot(axes: Axes, y: int, spot: Spot, mark: Look, low: float) -> None:
    if spot.mean < low:  # far below the others: at the edge, filled as its claim is
        across = axes.get_yaxis_transform()
        axes.plot([0.012], [y], marker="<", ms=6, mec=mark.edge, mfc="white", mew=1.3, alpha=mark.alpha, clip_on=False,
                  transform=across, zorder=4)  # fmt: skip
        return
    # Added, not plotted: `plot` looks at the range of each, and takes ten times as long.
    dots = {"linestyle": "", "marker": "o", "ms": 3.2, "mew": 0, "color": mark.edge, "alpha": 0.35 * mark.alpha}
    axes.add_artist(Line2D(spot.seeds, [y] * len(spot.seeds), zorder=2, **dots))  # type: ignore[arg-type]
    bar = {"linewidth": 1.7, "solid_capstyle": "butt", "color": mark.edge, "alpha": mark.alpha}
    axes.add_artist(Line2D([spot.mean - spot.half, spot.mean + spot.half], [y, y], zorder=3, **bar))  # type: ignore[arg-type]
    axes.plot([spot.mean], [y], marker=mark.marker, ms=6.5, mec=mark.edge, mfc=mark.face, mew=1.5, zorder=4,
              alpha=mark.alpha)  # fmt: skip


def _scores(axes: Axes, heading: Heading, rows: Sequence[Row], panel: Panel, table: Table) -> None:
    """Numbers beside the panel of scores, and the teacher above it."""
    for y, row in enumerate(rows):
        assert row.score is not None
        text, colour = heading.said(row.score.mean), INK if row.ranked else GREY
        text += "" if row.ranked or row.why_unranked == row.costlier else f"  n={row.n}"
        axes.text(1.02, y, text, transform=axes.get_yaxis_transform(), size=8, va="center", color=colour)
    if table.teacher is None or table.teacher.score is None:
        return
    teacher = panel.sign * table.teacher.score
    low, high = panel.low, panel.high
    if high < teacher <= high + 0.6 * (high - low):
        high = teacher + 0.04 * (teacher - low)
        axes.set_xlim(low, high)
    inside = low <= teacher <= high
    if inside:
        axes.axvline(teacher, color=GREEN, linewidth=1.2, zorder=1)
        axes.plot([teacher], [1.0], marker="D", ms=5, color=GREEN, transform=axes.get_xaxis_transform(), clip_on=False)
    words = f"{TEACHER} {heading.said(table.teacher.score)}{'' if inside else ' →' if teacher > high else ' ←'}"
    axes.text(1.0, 1.0, words, transform=axes.transAxes, color=GREEN, size=8, ha="right", va="bottom").set_y(
        1.0 + 0.07 / (len(rows) * LINE)
    )
