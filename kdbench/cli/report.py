"""The end of a run: boards written, tables, what went wrong, and what to do next. Imports no torch."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdbench.errors import printable
from kdbench.run.opened import Setting
from kdbench.run.store import Store
from kdbench.run.summary import Summary
from kdbench.suite.job import Job
from kdbench.suite.load import Suite

if TYPE_CHECKING:
    from rich.console import Console

    from kdbench.board.rows import Board


@dataclass(frozen=True)
class Report:
    """What a run of some of a suite's jobs says when it has ended."""

    suite: Suite
    jobs: Sequence[Job]
    store: Store
    setting: Setting
    summary: Summary

    def say(self, console: Console, as_json: bool) -> int:
        """Publish the board and print the tables, or JSON; the exit code."""
        board = self._board()
        published = self._publish(board)
        if as_json:
            console.print_json(json.dumps(self._json()))
        else:
            self._print(board, console, published)
        return 1 if self.summary.troubled else 0

    def _publish(self, board: Board) -> list[Path]:
        """Pictures are drawn again only where something is new: that takes longer than a small job."""
        if any(not job.comparable for job in self.jobs):
            return []
        from kdbench.board.publish import publish

        return publish(board, self.setting.root, redraw=bool(self.summary.new))

    def _print(self, board: Board, console: Console, published: Sequence[Path]) -> None:
        from kdbench.board.publish import tables

        def say(text: str) -> None:
            console.print(printable(text), markup=False, highlight=False, soft_wrap=True)

        summary = self.summary
        for table in tables(board):
            console.print(table)
        for result in summary.troubled:
            say(f"{result.status}: {result.pair}/{result.method} seed {result.seed}: {result.reason}")
        failed = len(summary.results) - summary.reused - summary.trained
        beside = f" {failed} failed or were skipped," if failed else ""
        say(f"{summary.trained} jobs trained,{beside} {summary.reused} were done already.")
        if summary.reused and not summary.new:
            say("To train them all on this machine: --results my-results")
        if not published:
            say("Not comparable (--epochs): no board was written.")
            return
        say(f"Board: {published[0]}, with its picture {published[1]}")
        if summary.trained:
            for step in self._next(published[0]):
                say(step)

    def _next(self, board: Path) -> tuple[str, ...]:
        """Three steps that may follow."""
        suite = self.setting.suite
        return (
            "Next:",
            f"1. Read the board, {board}: every gain with its interval, every cost, and what may be claimed.",
            f"2. Change {suite} (methods, models, data, seeds) and run it again: only what is new is trained. "
            f"`kdbench tune {suite}` searches the knobs.",
            "3. Write a method of your own in ten lines: docs/writing-a-method.md.",
        )

    def _board(self) -> Board:
        """The suite's board; where this run is not comparable, one of this run alone, for the terminal only."""
        from kdbench.board.heading import heading
        from kdbench.board.publish import board_of
        from kdbench.board.rank import rank

        if all(job.comparable for job in self.jobs):
            return board_of(self.suite, self.store)
        ran = {(job.pair, job.label): None for job in self.jobs}
        seeds = tuple(dict.fromkeys(job.seed for job in self.jobs))
        pairs = tuple(dict.fromkeys(pair for pair, _ in ran))
        results = [dataclasses.replace(result, comparable=True) for result in self.summary.results]
        return rank(dataclasses.replace(heading(self.suite), cells=tuple(ran), pairs=pairs, seeds=seeds), results)

    def _json(self) -> dict[str, Any]:
        return {
            "suite": self.suite.file.name,
            "trained": self.summary.trained,
            "reused": self.summary.reused,
            "results": [
                {
                    "key": result.key,
                    "pair": result.pair,
                    "method": result.method,
                    "seed": result.seed,
                    "status": result.status,
                    "reason": result.reason,
                    "comparable": result.comparable,
                    "scores": result.scores,
                }
                for result in self.summary.results
            ],
        }
