"""The two tracks of a suite: the stored results each asks for, what tuning chose, and what it was worth.

A result belongs to a track because its content is what that track's job would be, whatever run made it first. Where
the published knobs won, one result is both tracks'.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from kdbench.board.rank import rank
from kdbench.board.rows import Board, Tuned, Tuning, Worth
from kdbench.board.statistics import interval, paired
from kdbench.run.store import Store, chosen
from kdbench.suite import winners
from kdbench.suite.cell import cell_of
from kdbench.suite.load import Suite
from kdbench.suite.winners import Winner


def tuning(suite: Suite, winner: Winner) -> Tuning:
    """What a board says of a winner."""
    cell = cell_of(suite, winner.pair, winner.method)
    seeds = ", ".join(str(seed) for seed in winner.seeds)
    return Tuning(
        overrides=winner.overrides,
        trials=winner.trials,
        pruned=winner.pruned,
        failed=winner.failed,
        gpu_seconds=winner.gpu_seconds,
        value=winner.value,
        default_value=winner.default_value,
        expected_best=tuple(winner.expected_best),
        how=f"on {winner.metric}, {winner.epochs} epochs, seed{'s' if len(winner.seeds) > 1 else ''} {seeds}",
        sampler=winner.sampler,
        configurations=len(cell.enumerated) if cell.enumerated is not None else None,
    )


def tuned_track(suite: Suite, store: Store, default: Board, root: Path) -> Tuned | None:
    """The suite's second track, with a board of its own; None where nothing has been tuned."""
    found, notes = winners.current(suite, root, store.warn)
    tune = suite.file.tune
    if not found or tune is None:
        return None
    heading = replace(
        default.heading,
        track="tuned",
        tunings={cell: tuning(suite, winner) for cell, winner in found.items()},
        cells=tuple(found),
        pairs=tuple(dict.fromkeys(pair for pair, _ in found)),
        gpu_seconds=tune.gpu_seconds if tune.budget == "gpu_seconds" else None,
        unconverged={},  # the floor of this track has a rate of its own
        reported={},  # papers report their own knobs: in the default track
    )
    board = rank(heading, chosen(suite, store, found))
    return Tuned(board, tuple(worth(default, board)), tuple(notes))


def worth(default: Board, tuned: Board) -> Iterator[Worth]:
    """Tuned minus default, paired by seed, for each row that both boards have under the same teacher."""
    tables = {table.pair: table for table in default.tables}
    for table in tuned.tables:
        other = tables[table.pair]
        if other.alarms or (other.teacher and table.teacher and other.teacher.sha256 != table.teacher.sha256):
            continue
        for row in table.rows:
            before = other.row(row.label)
            gain = paired(row.seeds, before.seeds, default.heading.headline.sign) if before else None
            if before and gain:
                common = sorted(set(row.seeds) & set(before.seeds))
                sides = [interval([seeds[seed] for seed in common]) for seeds in (before.seeds, row.seeds)]
                yield Worth(table.pair, row.label, sides[0], sides[1], gain)
