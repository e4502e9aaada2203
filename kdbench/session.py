"""One invocation of `run` or `plan`: the suite, its jobs, the workbench and the store, opened and checked together."""

from __future__ import annotations

import dataclasses
import json
import signal
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from kdbench import flops, models
from kdbench.data import DataSet, default_root
from kdbench.errors import UserError, did_you_mean
from kdbench.job import Job, expand
from kdbench.progress import display
from kdbench.recipe import make_optimizer
from kdbench.runner import Listener, Summary, run
from kdbench.spec import Model
from kdbench.store import Store
from kdbench.suite import Suite, load
from kdbench.workbench import Workbench

if TYPE_CHECKING:
    from rich.console import Console

    from kdbench.standing import Board


@dataclass
class Session:
    """Everything is validated when it opens: nothing trains on a suite with a mistake in it."""

    suite: Suite
    jobs: list[Job]
    bench: Workbench
    store: Store
    root: Path
    console: Console  # for progress and warnings (stderr)
    shapes: dict[tuple[str, str], tuple[int, int]]  # (pair, role) -> (parameters, MACs)

    @classmethod
    def open(
        cls,
        path: Path,
        data_root: Path | None,
        root: Path,
        runs: Path,
        device: str,
        only: Sequence[str] | None,
        seeds: str | None,
        epochs: int | None,
        console: Console,
    ) -> Session:
        """Raises UserError with all that is wrong with the suite, the options, the data or the models."""
        suite = load(path)
        for note in suite.notes:
            console.print(f"warning: {note}", soft_wrap=True)
        chosen = parse_seeds(seeds) if seeds is not None else None
        jobs = chosen_jobs(expand(suite, epochs=epochs, seeds=chosen), only)
        bench = Workbench.load(jobs[0], data_root or default_root(), pick_device(device), runs)
        fingerprint = bench.data.fingerprint
        jobs = chosen_jobs(expand(suite, fingerprint, epochs=epochs, seeds=chosen), only)
        store = Store(root, suite.file.name, lambda sentence: console.print(f"warning: {sentence}", soft_wrap=True))
        return cls(suite, jobs, bench, store, root, console, try_models(jobs, bench))

    def plan(self, cost: bool) -> tuple[list[dict[str, object]], str]:
        """A row for each job, and a closing sentence."""
        pending = [job for job in self.jobs if not self.store.done(job.key)]
        seconds = {}
        if cost:
            from kdbench import estimate

            seconds = estimate.seconds(pending, self.bench, self.store.results.values())
        rows: list[dict[str, object]] = []
        for job in self.jobs:
            parameters, macs = self.shapes[job.pair, job.plan.answer[0]]
            rows.append(
                {
                    "key": job.key,
                    "pair": job.pair,
                    "method": job.label,
                    "seed": job.seed,
                    "roles": " ".join(f"{role}={model.model}" for role, model in job.roles.items()),
                    "parameters": parameters,
                    "MACs": macs,
                    "state": self.store.results[job.key].status if self.store.done(job.key) else "pending",
                }
                | ({"seconds": round(seconds[job.key])} if job.key in seconds else {"seconds": "" if cost else "?"})
            )
        total = f"{len(self.jobs) - len(pending)} of {len(self.jobs)} jobs are done"
        if cost and pending:
            total += f"; the rest needs about {sum(seconds.values()) / 60:.1f} minutes here, teachers not counted"
        return rows, total

    def run(self, console: Console, as_json: bool) -> int:
        """Do the jobs, publish the board, print the tables; the exit code."""
        pending = [job for job in self.jobs if not self.store.done(job.key)]
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # batch systems and `kill` stop as Ctrl-C does
        try:
            with display(self.console, pending) as shown:
                self.bench.watch, self.bench.warn = shown.epoch, shown.warn
                summary = run(self.jobs, self.bench, self.store, Listener(shown.started, shown.finished))
        except KeyboardInterrupt:
            left = sum(not self.store.done(job.key) for job in self.jobs)
            self.console.print(
                f"stopped; {left} of {len(self.jobs)} jobs are left. The same command continues where this one stopped."
            )
            return 130
        board = self._board(summary)
        published = self._publish(board)
        if as_json:
            console.print_json(json.dumps(self._json(summary)))
        else:
            self._report(summary, board, console, published)
        return 1 if summary.troubled else 0

    # The board needs scipy and matplotlib, which take longer to import than a small job to train: only at the end.
    def _publish(self, board: Board) -> list[Path]:
        if any(not job.comparable for job in self.jobs):
            return []
        from kdbench.publish import publish

        return publish(board, self.root)

    def _report(self, summary: Summary, board: Board, console: Console, published: Sequence[Path]) -> None:
        from kdbench.publish import tables

        for table in tables(board):
            console.print(table)
        for result in summary.troubled:
            console.print(
                f"{result.status}: {result.pair}/{result.method} seed {result.seed}: {result.reason}", markup=False
            )
        reused = len(summary.results) - summary.trained
        console.print(f"{summary.trained} jobs trained, {reused} were done already.", highlight=False)
        if reused and not summary.trained:
            console.print("To train them all on this machine: --results my-results", markup=False, highlight=False)
        if published:
            console.print(f"Board: {published[0]}", highlight=False)
        else:
            console.print("Not comparable (--epochs): no board was written.", highlight=False)

    def _board(self, summary: Summary) -> Board:
        """The suite's board; where this run is not comparable, one of this run alone, for the terminal only."""
        from kdbench.board import rank
        from kdbench.publish import board_of, heading

        if all(job.comparable for job in self.jobs):
            return board_of(self.suite, self.store)
        ran = {(job.pair, job.label): None for job in self.jobs}
        seeds = tuple(dict.fromkeys(job.seed for job in self.jobs))
        pairs = tuple(dict.fromkeys(pair for pair, _ in ran))
        results = [dataclasses.replace(result, comparable=True) for result in summary.results]
        return rank(dataclasses.replace(heading(self.suite), cells=tuple(ran), pairs=pairs, seeds=seeds), results)

    def _json(self, summary: Summary) -> dict[str, Any]:
        return {
            "suite": self.suite.file.name,
            "trained": summary.trained,
            "reused": len(summary.results) - summary.trained,
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
                for result in summary.results
            ],
        }


def chosen_jobs(jobs: list[Job], only: Sequence[str] | None) -> list[Job]:
    """The jobs whose `pair/method` matches a glob.

    Raises:
        UserError: a glob matches nothing.
    """
    if not only:
        return jobs
    names = {job.name for job in jobs}
    for pattern in only:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise UserError(f"--only {pattern}: no cell of the suite matches{did_you_mean(pattern, names)}")
    return [job for job in jobs if any(fnmatchcase(job.name, pattern) for pattern in only)]


def parse_seeds(text: str) -> tuple[int, ...]:
    """`0,1,2` or `0-4` or a mixture, without repeats.

    Raises:
        UserError: not such a list.
    """
    seeds: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()) or (dash and int(last) < int(first)):
            raise UserError(f"--seeds {text}: expects numbers such as 0,1,2 or a range such as 0-4")
        seeds += range(int(first), int(last if dash else first) + 1)
    return tuple(dict.fromkeys(seeds))


def pick_device(name: str) -> torch.device:
    """The device of that name; `auto` is CUDA where there is one, else the CPU.

    Raises:
        UserError: there is no such device here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(f"--device {name}: there is no such device here; see `kdbench doctor`") from error
    return device


def try_models(jobs: Iterable[Job], bench: Workbench) -> dict[tuple[str, str], tuple[int, int]]:
    """Parameters and MACs of every role, each built once, and one optimiser for each recipe.

    Raises:
        UserError: a model, its options or an optimiser cannot be made.
    """
    counted: dict[str, tuple[int, int]] = {}
    shapes: dict[tuple[str, str], tuple[int, int]] = {}
    tried = set()
    for job in jobs:
        for role, model in job.roles.items():
            key = json.dumps([model.model, model.options], sort_keys=True, default=str)
            if key not in counted:
                counted[key] = flops.count(_sample(model, job, bench.data), bench.shape)
            shapes[job.pair, role] = counted[key]
        recipes = [job.recipe, *(role.recipe for role in job.frozen.values() if role.recipe)]
        for recipe in recipes:
            if (text := recipe.optimizer.model_dump_json()) not in tried:
                make_optimizer([torch.nn.Linear(2, 2)], recipe.optimizer)
                tried.add(text)
    return shapes


def _sample(model: Model, job: Job, data: DataSet) -> torch.nn.Module:
    """The model with throw-away weights; on the CPU, because initialisers on the meta device load torch's compiler."""
    return models.build(
        model.model,
        model.options,
        classes=data.classes,
        channels=data.channels,
        size=data.size,
        folder=job.folder,
    )
