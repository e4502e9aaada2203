"""Pictures of studies as SVG; the bytes depend on the trials alone."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any, NamedTuple

from matplotlib import style
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator

from kdbench.board.palette import BLUE, GREY, INK, ORANGE, PALE
from kdbench.board.picture import SETTINGS
from kdbench.suite.winners import Winner

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH, ROW = 10.0, 2.6  # inches
ACROSS = 4  # slices in a row
STROKES = ("-", (0, (4, 2)), (0, (1, 1.5)))


class Point(NamedTuple):
    """A finished trial."""

    number: int
    value: float
    settings: Mapping[str, Any]


def study_picture(
    name: str,
    metric: str,
    points: Sequence[Point],
    importances: Mapping[str, float],
    scales: Mapping[str, str],
    *,
    rising: bool,
) -> str:
    """History and importance on top, then a slice for each field, then parallel coordinates."""
    rows = math.ceil(len(scales) / ACROSS)
    parallel = len(scales) > 1
    total = ROW * (1 + rows + parallel) + 0.5
    with style.context(["default", SETTINGS]):
        drawn = Figure(figsize=(WIDTH, total), facecolor="white")
        drawn.text(0.02, 1 - 0.25 / total, name, size=13, weight="bold", color=INK, va="center")

        def box(row: int, left: float, width: float) -> Axes:
            bottom = total - 0.5 - ROW * (row + 1) + 0.55
            return drawn.add_axes((left, bottom / total, width, (ROW - 0.95) / total))

        _history(box(0, 0.07, 0.5), metric, points, rising)
        _importance(box(0, 0.75, 0.22), importances)
        for i, (key, scale) in enumerate(scales.items()):
            axes = box(1 + i // ACROSS, 0.07 + (i % ACROSS) * 0.235, 0.19)
            _slice(axes, key, scale, metric if i % ACROSS == 0 else "", points)
        if parallel:
            _parallel(box(1 + rows, 0.07, 0.88), metric, scales, points, rising)
        return _svg(drawn)


def curves(pair: str, rows: Mapping[str, Winner], hues: Mapping[str, str], *, rising: bool) -> str:
    """Expected best of n trials of every method of a pair: who needs tuning, and who does not. `hues`: by label."""
    with style.context(["default", SETTINGS]):
        drawn = Figure(figsize=(WIDTH, 4.6), facecolor="white")
        axes = drawn.add_axes((0.07, 0.12, 0.68, 0.76))
        _frame(axes)
        longest = max(len(winner.expected_best) for winner in rows.values())
        ordered = sorted(rows.items(), key=lambda item: (-item[1].value if rising else item[1].value, item[0]))
        low, high = _limits([value for _, winner in ordered for value in _shown(winner)])
        for i, (label, winner) in enumerate(ordered):
            colour, stroke = hues[label], STROKES[i % len(STROKES)]
            n = range(1, len(winner.expected_best) + 1)
            axes.plot(n, winner.expected_best, color=colour, linestyle=stroke, linewidth=1.6, label=label)
            if len(winner.expected_best) == 1:
                axes.plot([1, longest], winner.expected_best * 2, color=colour, linestyle=stroke, linewidth=0.8)
            if winner.default_value is not None and low <= winner.default_value <= high:
                axes.plot([0.7], [winner.default_value], marker=">", ms=5, color=colour, clip_on=False)
        axes.set_xlim(0.7, longest + 0.3)
        axes.set_ylim(low, high)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("n trials", color=GREY)
        axes.set_ylabel(ordered[0][1].metric + ("" if rising else ", less is better"), color=GREY)
        axes.set_title(
            f"{pair}: expected best of n trials (triangles: the suite's own configuration)",
            loc="left", size=10, weight="bold", color=INK,
        )  # fmt: skip
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False, fontsize=8.5)
        return _svg(drawn)


def _shown(winner: Winner) -> list[float]:
    own = [] if winner.default_value is None else [winner.default_value]
    return [*winner.expected_best, *own]


def _limits(values: Sequence[float]) -> tuple[float, float]:
    """Everything but what lies far off."""
    ordered = sorted(values)
    first, third = ordered[len(ordered) // 4], ordered[(3 * len(ordered)) // 4]
    fence = 4.0 * max(third - first, 0.02 * max(abs(third), 1e-6))
    near = [value for value in ordered if first - fence <= value <= third + fence]
    margin = 0.05 * max(near[-1] - near[0], 1e-6)
    return near[0] - margin, near[-1] + margin


def _history(axes: Axes, metric: str, points: Sequence[Point], rising: bool) -> None:
    _frame(axes)
    numbers, values = [p.number + 1 for p in points], [p.value for p in points]
    axes.plot(numbers, values, linestyle="", marker="o", ms=5, color=BLUE, label="trial")
    best = list(accumulate(values, max if rising else min))
    axes.step(numbers, best, where="post", color=ORANGE, linewidth=1.4, label="best so far")
    if points[0].number == 0:
        axes.plot([1], [values[0]], linestyle="", marker="s", ms=7, mfc="white", mec=INK, label="the suite's own")
    axes.set_ylim(*_limits(values))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("trial", color=GREY)
    axes.set_ylabel(metric + ("" if rising else ", less is better"), color=GREY)
    axes.set_title("History", loc="left", size=10, weight="bold", color=INK)
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.05), frameon=False, fontsize=8)


def _importance(axes: Axes, importances: Mapping[str, float]) -> None:
    _frame(axes)
    axes.set_title("Importance (fANOVA)", loc="left", size=10, weight="bold", color=INK)
    if not importances:
        axes.set_axis_off()
        axes.text(0, 0.8, "too few fields or trials", color=GREY, size=9, transform=axes.transAxes)
        return
    names = list(importances)[::-1]
    axes.barh(range(len(names)), [importances[name] for name in names], color=BLUE, height=0.6)
    axes.set_yticks(range(len(names)), [_short(name) for name in names])
    axes.set_xlim(0, 1)
    axes.set_xlabel("share of variance", color=GREY)


def _slice(axes: Axes, key: str, scale: str, metric: str, points: Sequence[Point]) -> None:
    _frame(axes)
    inside = [p for p in points if key in p.settings and p.settings[key] is not None]
    if scale == "choices":
        names = list(dict.fromkeys(sorted((str(p.settings[key]) for p in inside), key=lambda name: (len(name), name))))
        x: list[float] = [names.index(str(p.settings[key])) for p in inside]
        axes.set_xticks(range(len(names)), [_short(name, 10) for name in names])
        axes.set_xlim(-0.5, max(0.5, len(names) - 0.5))
    else:
        x = [float(p.settings[key]) for p in inside]
        if scale == "log":
            _decades(axes, x)
    shades = [0.25 + 0.75 * (p.number + 1) / (points[-1].number + 1) for p in inside]
    for at, point, shade in zip(x, inside, shades, strict=True):
        first = point.number == 0
        axes.plot(
            [at], [point.value], marker="s" if first else "o", ms=6 if first else 5, alpha=1 if first else shade,
            mfc="white" if first else BLUE, mec=INK if first else BLUE, linestyle="",
        )  # fmt: skip
    axes.set_ylim(*_limits([p.value for p in points]))
    axes.set_title(_short(key, 26), loc="left", size=9, weight="bold", color=INK)
    if metric:
        axes.set_ylabel(metric, color=GREY)


def _decades(axes: Axes, x: Sequence[float]) -> None:
    """A logarithmic axis with at most a few plain numbers."""
    axes.set_xscale("log")
    low, high = min(x) / 1.15, max(x) * 1.15
    axes.set_xlim(low, high)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1, 2, 5), (1, 3), (1,)):
        ticks = [tick for power in powers for step in steps if low <= (tick := step * 10.0**power) <= high]
        if len(ticks) <= 4:
            break
    ticks = ticks[:: math.ceil(len(ticks) / 4)] if ticks else [x[0]]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.xaxis.set_minor_locator(NullLocator())


def _parallel(axes: Axes, metric: str, scales: Mapping[str, str], points: Sequence[Point], rising: bool) -> None:
    """A line for each trial through its settings; the better, the darker."""
    _frame(axes)
    axes.grid(visible=False)
    keys = list(scales)
    places = {key: _places(key, scales[key], points) for key in keys}
    order = sorted(points, key=lambda p: p.value if rising else -p.value)
    for rank, point in enumerate(order):
        y = [places[key](point.settings.get(key)) for key in keys]
        best = rank == len(order) - 1
        shade = 0.12 + 0.6 * (rank + 1) / len(order)
        axes.plot(
            range(len(keys)), y, color=ORANGE if best else BLUE, alpha=1.0 if best else shade,
            linewidth=2.0 if best else 1.1, marker="o", ms=3,
        )  # fmt: skip
    for i in range(len(keys)):
        axes.axvline(i, color=PALE, linewidth=0.8, zorder=0)
    axes.set_xticks(range(len(keys)), [_short(key, 20) for key in keys])
    axes.set_yticks([])
    axes.set_ylim(-0.05, 1.05)
    words = "Parallel coordinates, each field from its lowest to its highest tried value (orange: the best trial)"
    axes.set_title(words, loc="left", size=9, weight="bold", color=INK)


def _places(key: str, scale: str, points: Sequence[Point]) -> Any:
    """Value -> height between 0 and 1; NaN where a trial does not have the field."""
    tried = [p.settings[key] for p in points if p.settings.get(key) is not None]
    if scale == "choices":
        names = sorted({str(value) for value in tried}, key=lambda name: (len(name), name))
        return lambda value: names.index(str(value)) / max(1, len(names) - 1) if value is not None else math.nan
    numbers = [math.log(value) if scale == "log" else float(value) for value in tried]
    low, high = min(numbers, default=0.0), max(numbers, default=1.0)

    def place(value: Any) -> float:
        if value is None:
            return math.nan
        number = math.log(value) if scale == "log" else float(value)
        return (number - low) / (high - low) if high > low else 0.5

    return place


def _short(name: str, length: int = 18) -> str:
    name = name.removeprefix("recipe.")
    return name if len(name) <= length else "…" + name[-(length - 1) :]


def _frame(axes: Axes) -> None:
    axes.set_axisbelow(True)
    axes.grid(color="#E8E8E8", linewidth=0.8)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color("#999999")
    axes.tick_params(colors=INK, labelsize=8, which="both", length=0)


def _svg(drawn: Figure) -> str:
    text = io.StringIO()
    drawn.savefig(text, format="svg", metadata={"Date": None, "Creator": "kdbench"})
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines()) + "\n"
