"""Board -> SVG: a strip of accuracies for each pair, and accuracy against MACs over all pairs.

The bytes depend on the board alone: no date, salted ids, text as outlines of matplotlib's own font, fixed order.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from math import ceil, floor, log10
from statistics import median_low
from typing import TYPE_CHECKING, NamedTuple

from matplotlib import style
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, NullLocator

from kdbench.board.rows import BETTER, FLOOR, NOT_SEPARABLE, REFERENCE, TEACHER, WORSE, Board, Row, Table
from kdbench.board.text import amount, count

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's palette, safe for the common colour blindnesses
BLUE, ORANGE, GREEN, INK, GREY, PALE = "#0072B2", "#D55E00", "#009E73", "#222222", "#767676", "#BDBDBD"
SETTINGS = {
    "font.family": "DejaVu Sans",
    "font.size": 9.0,
    "svg.fonttype": "path",
    "svg.hashsalt": "kdbench",
    "text.parse_math": False,
}  # a `$` in a name is a `$`
NO_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # not even in a comment
WIDTH, LINE, HEADER, BOTTOM, TITLE = 10.0, 0.235, 0.52, 0.42, 0.75  # inches
LONGEST = 24  # letters of a label
LONG = 40  # letters of a teacher, from which on its options are left out
FEW = 3  # pairs, up to which a method that changes the deployed graph is named in the panel of MACs
OUTLIER = 4.0  # interquartile ranges below the first quartile, beyond which a row is drawn at the edge


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
    """Strips in two columns (one for a single pair), then the panel of MACs; to be drawn under `SETTINGS`."""
    tables = [table for table in board.tables if any(row.top1 for row in table.rows)]
    columns = 1 if len(tables) == 1 else 2
    bands = [tables[i : i + columns] for i in range(0, len(tables), columns)]
    heights = [max(len(_shown(table)) for table in band) * LINE + HEADER + BOTTOM for band in bands]
    last = 3.9 + 0.15 * len(tables) if tables else 0.0
    total = TITLE + sum(heights) + last
    drawn = Figure(figsize=(WIDTH, total), facecolor="white")
    _title(drawn, board, total)
    top, pitch = TITLE, WIDTH / columns
    for band, height in zip(bands, heights, strict=True):
        for column, table in enumerate(band):
            tall = len(_shown(table)) * LINE
            left = 0.3 + 0.075 * max(min(len(row.label), LONGEST) for row in _shown(table))
            width = pitch - left - 0.9
            box = ((column * pitch + left) / WIDTH, 1 - (top + HEADER + tall) / total, width / WIDTH, tall / total)
            _strip(drawn.add_axes(box), table, left - 0.25, width)
        top += height
    if tables:
        _macs(drawn.add_axes((0.85 / WIDTH, 0.6 / total, 8.9 / WIDTH, (last - 1.1) / total)), tables)
    return drawn


def _title(drawn: Figure, board: Board, total: float) -> None:
    track = "" if board.heading.track == "default" else f", {board.heading.track} track"
    name = board.heading.suite + track
    size = min(14, 14 * 44 / len(name))  # left of the legend, however long the name
    drawn.text(0.25 / WIDTH, 1 - 0.27 / total, name, size=size, weight="bold", color=INK, va="center")
    seeds = len(board.heading.seeds)
    words = f"test top-1 (%), last epoch: mean and 95% interval over {count(seeds, 'seed')}; small dots are seeds"
    drawn.text(0.25 / WIDTH, 1 - 0.55 / total, words, size=9, color=GREY, va="center")
    compared = [
        key(ORANGE, ORANGE, "KD"),
        key(BLUE, BLUE, BETTER),
        key(BLUE, "white", NOT_SEPARABLE),
        key(GREY, GREY, WORSE),
    ]
    with_kd = any(label == REFERENCE for _, label in board.heading.cells)
    handles = [
        *(compared if with_kd else [key(BLUE, "white", "method")]),
        key(INK, "white", "no teacher", marker="s"),
        key(GREEN, GREEN, "teacher", marker="D"),
    ]
    drawn.legend(
        handles=handles, loc="upper right", bbox_to_anchor=(1 - 0.2 / WIDTH, 1 - 0.08 / total), ncols=3, frameon=False,
        fontsize=8.5, handletextpad=0.2, columnspacing=1.2, labelspacing=0.35, borderaxespad=0.0,
    )  # fmt: skip


def key(edge: str, face: str, label: str, marker: str = "o") -> Line2D:
    """An entry of a legend."""
    return Line2D([], [], linestyle="", marker=marker, markersize=6, mec=edge, mfc=face, mew=1.4, label=label)


def _shown(table: Table) -> list[Row]:
    return [row for row in table.rows if row.top1]


def colours(row: Row) -> tuple[str, str, str]:
    """Edge, face and marker: the face is filled where the row differs from KD."""
    if row.label == FLOOR:
        return INK, "white", "s"
    if not row.ranked:
        return PALE, "white", "o"
    if row.label == REFERENCE:
        return ORANGE, ORANGE, "o"
    if row.claim == WORSE:
        return GREY, GREY, "o"
    return BLUE, BLUE if row.claim == BETTER else "white", "o"


def short(label: str) -> str:
    """A label that fits beside an axis."""
    return label if len(label) <= LONGEST else label[: LONGEST - 1] + "…"


def _strip(axes: Axes, table: Table, margin: float, width: float) -> None:
    """One line for each method, the best on top; accuracy to the right. Inches: left of the axes, and of them."""
    rows = _shown(table)
    low, high = limits(rows)
    teacher = table.teacher.top1 if table.teacher else None
    if teacher is not None and high < teacher <= high + 0.6 * (high - low):
        high = teacher + 0.04 * (teacher - low)
    frame(axes)
    axes.set_xlim(low, high)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.grid(axis="x", color="#E8E8E8", linewidth=0.8)
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    axes.set_yticks(range(len(rows)), [short(row.label) for row in rows])
    axes.tick_params(axis="both", length=0)
    for y, row in enumerate(rows):
        _line(axes, y, row, low)
    for label, colour in ((FLOOR, INK), (REFERENCE, ORANGE)):
        guide = table.row(label)
        if guide and guide.top1 and guide.top1.mean >= low:
            axes.axvline(guide.top1.mean, color=colour, linewidth=0.9, linestyle=(0, (1, 2)), zorder=1)
    if teacher is not None and low <= teacher <= high:
        axes.axvline(teacher, color=GREEN, linewidth=1.2, zorder=1)
        axes.plot([teacher], [1.0], marker="D", ms=5, color=GREEN, transform=axes.get_xaxis_transform(), clip_on=False)
    words = ""
    if teacher is not None:
        arrow = "" if low <= teacher <= high else " →" if teacher > high else " ←"
        words = f"teacher {teacher:.2f}{arrow}"
        axes.text(1.0, 1.03, words, transform=axes.transAxes, color=GREEN, size=8, ha="right", va="bottom")
    warning = " (not comparable)" if table.alarms else ""
    room = width - 0.085 * len(words)
    title = axes.set_title(
        table.pair + warning, loc="left", size=10, weight="bold", color=ORANGE if warning else INK, pad=6
    )
    long = 0.092 * len(table.pair + warning)
    if long > room:  # begins above the names of the methods, in smaller letters if need be
        title.set(x=-margin / width, size=min(10.0, 10.0 * (room + margin) / long))
    for tick, row in zip(axes.get_yticklabels(), rows, strict=True):
        tick.set_color(colours(row)[0] if row.label == REFERENCE else INK if row.ranked else GREY)
        tick.set_fontweight("bold" if row.claim == BETTER or row.label == REFERENCE else "normal")


def _line(axes: Axes, y: int, row: Row, low: float) -> None:
    assert row.top1 is not None
    edge, face, marker = colours(row)
    mean, half = row.top1.mean, row.top1.half or 0.0
    beside, colour = (f"{mean:.2f}", INK) if row.ranked else (f"{mean:.2f}  n={row.n}", GREY)
    axes.text(1.015, y, beside, transform=axes.get_yaxis_transform(), size=8, va="center", color=colour)
    if mean < low:  # far below the others: at the edge, with its number beside it
        across = axes.get_yaxis_transform()
        axes.plot([0.012], [y], marker="<", ms=6, color=edge, clip_on=False, transform=across, zorder=4)
        return
    seeds = [top1 for _, top1 in sorted(row.seeds.items())]
    axes.plot(seeds, [y] * len(seeds), linestyle="", marker="o", ms=3.2, mew=0, color=edge, alpha=0.35, zorder=2)
    axes.plot([mean - half, mean + half], [y, y], color=edge, linewidth=1.7, solid_capstyle="butt", zorder=3)
    axes.plot([mean], [y], marker=marker, ms=6.5, mec=edge, mfc=face, mew=1.5, zorder=4)


def limits(rows: Sequence[Row]) -> tuple[float, float]:
    """The range of accuracies that shows most rows; a row far below the others does not stretch it."""
    spans = []
    means = sorted(row.top1.mean for row in rows if row.top1)
    first, third = means[len(means) // 4], means[(3 * len(means)) // 4]
    fence = first - OUTLIER * max(third - first, 0.5)
    for row in rows:
        assert row.top1 is not None
        half = row.top1.half or 0.0
        if row.top1.mean >= fence:
            spans += [row.top1.mean - min(half, 20.0), row.top1.mean + min(half, 20.0), *row.seeds.values()]
    margin = 0.04 * max(max(spans) - min(spans), 0.5)
    return max(0.0, min(spans) - margin), min(100.0, max(spans)) + margin


def _macs(axes: Axes, tables: Sequence[Table]) -> None:
    """Every pair's ranked rows above the MACs of its deployed student, and the teachers."""
    frame(axes)
    axes.set_xscale("log")
    axes.grid(color="#E8E8E8", linewidth=0.8)
    axes.tick_params(axis="both", which="both", length=0)
    axes.set_title("Accuracy against cost of the deployed model", loc="left", size=10, weight="bold", color=INK, pad=6)
    axes.set_xlabel("MACs of one image (log scale)", color=GREY)
    axes.set_ylabel("test top-1 (%)", color=GREY)
    labels: list[Label] = []
    points: list[tuple[float, float]] = []
    for table in tables:
        lowest = limits(_shown(table))[0]
        measured = [(row, row.macs, row.top1.mean) for row in table.rows if row.macs and row.top1]
        rows = [(row, macs, top1) for row, macs, top1 in measured if top1 >= lowest]
        usual = median_low([macs for _, macs, _ in rows]) if rows else 0
        same = [top1 for _, macs, top1 in rows if macs == usual]
        if same:
            axes.plot([usual, usual], [min(same), max(same)], color=PALE, linewidth=1.2, zorder=1)
            labels.append(Label(usual, max(same), table.pair, INK))
        for row, macs, top1 in sorted(rows, key=lambda item: (item[0].label in (FLOOR, REFERENCE), item[0].label)):
            edge, face, marker = colours(row)
            axes.plot([macs], [top1], marker=marker, ms=6, mec=edge, mfc=face, mew=1.3, alpha=0.9, zorder=3)
            points.append((macs, top1))
            if macs != usual and len(tables) <= FEW:
                labels.append(Label(macs, top1, row.label, GREY))
    known = [table.teacher for table in tables if table.teacher]
    teachers = sorted({(t.macs, round(t.top1, 2), t.model or TEACHER) for t in known if t.macs and t.top1 is not None})
    for macs, top1, name in teachers:
        axes.plot([macs], [top1], marker="D", ms=7, color=GREEN, zorder=4)
        points.append((macs, top1))
        labels.append(Label(macs, top1, name if len(name) <= LONG else name.partition("(")[0], GREEN))
    if not points:
        axes.text(0.5, 0.5, "no finished row has MACs", transform=axes.transAxes, ha="center", color=GREY)
        return
    _fit(axes, points)
    place(axes, labels, points)


class Label(NamedTuple):
    """A name at a point: MACs and accuracy in the units of the axes."""

    macs: float
    top1: float
    text: str
    colour: str


def _fit(axes: Axes, points: Sequence[tuple[float, float]]) -> None:
    x, y = [p[0] for p in points], [p[1] for p in points]
    ratio = max(max(x) / min(x), 4.0)
    low, high = min(x) / ratio**0.06, max(x) * ratio**0.16
    axes.set_xlim(low, high)
    margin = 0.1 * max(max(y) - min(y), 1.0)
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
    for label in sorted(labels, key=lambda label: (-label.top1, label.macs, label.text)):
        x, y = axes.transData.transform((label.macs, label.top1)) * dots
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
            label.text, (label.macs, label.top1), xytext=(dx, dy), textcoords="offset points", ha=side, va="center",
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
