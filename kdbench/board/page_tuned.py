"""Markdown of the tuned track: the second part of a page, with tables of its own; no row is ranked with the first."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from kdbench.board.page_pair import overall, pair
from kdbench.board.rows import Heading, Table, Tuned, Tuning, Worth
from kdbench.board.text import BLANK, count, grid, options, plain, prose, seeds, signed

CHOSEN_LEGEND = (
    "**chosen**: what differs from the suite's knobs. **default**, **best**: the tuning metric on the tuning seeds, of "
    "the suite's knobs and of the chosen ones. **pruned**, **failed**: trials that ended early, among all "
    "**trials**. A method has fewer trials than others only where it has no more configurations: one, where nothing of "
    "it is searched."
)
EXPECTED_LEGEND = (
    "The best of n of the trials that were made, drawn without replacement, on average (on validation): what a smaller "
    "budget would have given where trials are independent, as those of grid and random are."
)
GUIDED = " Those of {samplers} build on earlier ones: fewer of them would have found less than this."


def tuned_part(tuned: Tuned) -> list[str]:
    """Everything below the heading `Tuned track`."""
    board, heading = tuned.board, tuned.board.heading
    counts = [
        count(len(heading.pairs), "pair"),
        count(len({label for _, label in heading.cells}), "method"),
        f"{count(len(heading.seeds), 'seed')} ({seeds(heading.seeds)})",
        f"{board.finished} of {board.expected} results",
        f"track `{heading.track}`",
    ]
    parts = [
        "## Tuned track",
        "Knobs chosen by `kdbench tune` on validation scores, with seeds that are not those of this table and the same "
        f"budget for every method, {heading.floor} and {heading.reference} included. The rows above have the suite's "
        "knobs: the two are not to be "
        "compared row by row.",
        ", ".join(counts) + ".",
    ]
    if board.has_rows:
        parts.append(f"![Test {heading.headline.words} of every tuned method with its 95% interval]({heading.picture})")
    for table in board.tables:
        parts += pair(heading, table, "###", _chosen(heading, table))
    if board.across:
        parts += overall(heading, board.across, "###")
    return [*parts, *_worth(heading, tuned.worth), "### Notes on the tuned track", _notes(tuned)]


def _chosen(heading: Heading, table: Table) -> list[str]:
    """What was tuned and what it cost, row by row; then what fewer trials would have given."""
    tunings = {row.label: heading.tunings[table.pair, row.label] for row in table.rows}
    columns = ["method", "trials", "pruned", "failed", "seconds", "default", "best", "chosen"]
    lines = [
        [
            f"`{label}`",
            *(str(number) for number in (tuning.trials, tuning.pruned, tuning.failed)),
            f"{tuning.gpu_seconds:.0f}",
            *(_score(value) for value in (tuning.default_value, tuning.value)),
            _overrides(tuning),
        ]
        for label, tuning in tunings.items()
    ]
    parts = [grid(columns, lines, "lrrrrrrl"), f"<sub>{CHOSEN_LEGEND}</sub>"]
    trials = list(_doubled(max(len(tuning.expected_best) for tuning in tunings.values())))
    if trials:
        shown = [
            [f"`{label}`", *(_score(t.expected_best[n - 1] if n <= len(t.expected_best) else None) for n in trials)]
            for label, t in tunings.items()
            if t.expected_best
        ]
        body = grid(["expected best", *(f"of {n}" for n in trials)], shown, "l" + "r" * len(trials))
        summary = f"What fewer trials would have given on {table.pair}"
        parts.append(
            f"<details><summary>{summary}</summary>\n\n{body}\n\n<sub>{EXPECTED_LEGEND}{_guided(tunings.values())}</sub>\n\n</details>"
        )
    return parts


def _guided(tunings: Iterable[Tuning]) -> str:
    """What samplers that learn make of the expected best."""
    samplers = sorted({tuning.sampler for tuning in tunings} - {"grid", "random"})
    return GUIDED.format(samplers=" and ".join(samplers)) if samplers else ""


def _overrides(tuning: Tuning) -> str:
    if tuning.overrides:
        return options(dict(sorted(tuning.overrides.items())))
    return "nothing to tune" if tuning.configurations == 1 else "the suite's knobs"


def _score(value: float | None) -> str:
    """A validation score: percent, nats or a cost."""
    return BLANK if value is None else f"{value:.5g}" if abs(value) < 1 else f"{value:.2f}"


def _doubled(most: int) -> Iterator[int]:
    """1, 2, 4, ... and the last."""
    n = 1
    while n < most:
        yield n
        n *= 2
    if most:
        yield most


def _worth(heading: Heading, worth: Sequence[Worth]) -> list[str]:
    if not worth:
        return []
    metric, digits = heading.headline, heading.headline.digits
    unit = f" ({metric.unit})" if metric.unit else ""
    about = (
        f"Across tracks, and no ranking: test {metric.named} of the same method with chosen knobs and with "
        f"the suite's{', in percent' if metric.unit == '%' else ''}. The difference"
        f"{f' in{metric.points}' if metric.points else ''} is "
        f"{'' if metric.better == 'up' else 'positive where it is better, and '}paired by seed, over the seeds that "
        "both tracks have."
    )
    lines = [
        [
            row.pair,
            f"`{row.label}`",
            plain(row.default, digits),
            plain(row.tuned, digits),
            signed(row.gain, digits),
            str(row.gain.n),
        ]
        for row in worth
    ]
    columns = ["pair", "method", f"default track{unit}", f"tuned track{unit}", "difference", "n"]
    return ["### What tuning was worth", about, grid(columns, lines, "llrrrr")]


def _notes(tuned: Tuned) -> str:
    board, heading = tuned.board, tuned.board.heading
    ways = _by_how(heading)
    lines = [f"Tuned {how}{': ' + ', '.join(cells) if len(ways) > 1 else ''}." for how, cells in ways.items()]
    samplers = sorted({tuning.sampler for tuning in heading.tunings.values()})
    few = "; grid where all configurations are tried" if len(samplers) > 1 and "grid" in samplers else ""
    lines.append(f"Sampler: {', '.join(name for name in samplers if not few or name != 'grid')}{few}.")
    lines.append("A chosen value replaces the suite's own; all else of data, recipe, roles and knobs is as above.")
    without: dict[str, list[str]] = {}
    for cell, _, why in (note.partition(" ") for note in tuned.notes):
        without.setdefault(why, []).append(cell)
    lines += [f"Not in this track: {', '.join(cells)} ({prose(why)})." for why, cells in without.items()]
    machines = "; ".join(f"{prose(device)} in {prose(precision)}" for device, precision in board.machines)
    if machines:
        lines.append(f"Trained and timed on {machines}.")
    versions = [f"{name} {' and '.join(found)}" for name, found in sorted(board.versions.items()) if found]
    if versions:
        lines.append(f"Versions: {prose(', '.join(versions))}.")
    return "\n".join(f"- {line}" for line in lines)


def _by_how(heading: Heading) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, label in heading.cells:
        found.setdefault(prose(heading.tunings[name, label].how), []).append(f"{name} `{label}`")
    return found
