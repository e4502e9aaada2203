"""What `run`, `plan` and their workers are told on the command line, and the suite opened so: first without data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

from kdbench.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from kdbench.models.make import Sizes
    from kdbench.run.shard import Shard
    from kdbench.run.store import Store
    from kdbench.suite.job import Job
    from kdbench.suite.load import Suite
    from kdbench.train.workbench import Workbench

Warn = Callable[[str], None]
CACHE_GB = 4.0


@dataclass(frozen=True)
class Setting:
    """A plain value, so that it can be sent to worker processes."""

    suite: Path
    data_root: Path | None = None
    root: Path = Path("leaderboard")
    runs: Path = Path("runs")
    only: tuple[str, ...] = ()
    seeds: tuple[int, ...] | None = None  # instead of the suite's
    epochs: int | None = None
    again: bool = False  # only jobs whose last result is not ok
    track: str = "default"  # "tuned": with the knobs that `kdbench tune` chose
    cache_gb: float = CACHE_GB  # of teachers' stored answers, below `runs`
    shard: Shard | None = None  # only this share of the jobs

    def open(self, device: str, warn: Warn = lambda sentence: None) -> Opened:
        """The suite with its jobs, data and results.

        Raises:
            UserError: all that is wrong with the suite, the options or the data.
        """
        return self.glance(warn).open(device)

    def glance(self, warn: Warn = lambda sentence: None) -> Glance:
        """The suite, its results, and its jobs on the data that these were made from; no data are read.

        Raises:
            UserError: all that is wrong with the suite or the options.
        """
        from kdbench.run.store import Store
        from kdbench.suite.load import load

        suite = load(self.suite)
        for note in suite.notes:
            warn(note)
        store = Store(self.root, suite.file.name, warn)
        prints = store.fingerprints
        known = next(iter(prints)) if len(prints) == 1 else None
        jobs = self._jobs(suite, store, known, warn)
        return Glance(self, suite, store, jobs, known, known is not None and _same_everywhere(suite), warn)

    def _jobs(
        self, suite: Suite, store: Store, fingerprint: str | None, warn: Warn = lambda sentence: None
    ) -> list[Job]:
        from kdbench.suite.job import expand
        from kdbench.suite.winners import tuned_jobs

        if self.track == "tuned":
            jobs = tuned_jobs(suite, self.root, fingerprint, epochs=self.epochs, seeds=self.seeds, warn=warn)
        else:
            jobs = expand(suite, fingerprint, epochs=self.epochs, seeds=self.seeds)
        jobs = chosen_jobs(jobs, self.only)
        if self.again:
            jobs = [job for job in jobs if job.key in store.results and store.results[job.key].status != "ok"]
        return jobs if self.shard is None else self.shard.jobs(jobs)


@dataclass(frozen=True)
class Glance:
    """What can be said before torch is imported and the data are read.

    `fingerprint`: of the data that the results were made from, where it is one; `certain`: the jobs are those that the
    data would give; else they are only what they were the last time.
    """

    setting: Setting
    suite: Suite
    store: Store
    jobs: list[Job]
    fingerprint: str | None
    certain: bool
    warn: Warn

    @property
    def pending(self) -> list[Job]:
        """The jobs that are to be done."""
        return [job for job in self.jobs if self.setting.again or not self.store.done(job.key)]

    def open(self, device: str) -> Opened:
        """The same with the data, on a device.

        Raises:
            UserError: what is wrong with the device or the data.
        """
        from kdbench.data import default_root
        from kdbench.suite.job import expand
        from kdbench.train.devices import pick_device
        from kdbench.train.workbench import Workbench

        told, suite, store = self.setting, self.suite, self.store
        root = told.data_root or default_root()
        room = int(told.cache_gb * 1e9)
        first = expand(suite, seeds=suite.file.seeds[:1])[0]
        bench = Workbench.load(first, root, pick_device(device), told.runs, room=room)
        for note in bench.data.notes:
            self.warn(note)
        same = bench.data.fingerprint == self.fingerprint
        jobs = self.jobs if same else told._jobs(suite, store, bench.data.fingerprint)
        for sentence in _small_data(jobs, len(bench.data.train.labels)):
            self.warn(sentence)
        if told.again:
            store.again = {job.key for job in jobs}
        return Opened(suite, jobs, bench, store)


def _same_everywhere(suite: Suite) -> bool:
    """Whether the data are one of kdbench's own sets, without options: no files of the user's, that may change."""
    from kdbench import plugins

    data = suite.file.data
    return data.name in plugins.builtin("data") and not data.options


@dataclass(frozen=True)
class Opened:
    suite: Suite
    jobs: list[Job]
    bench: Workbench
    store: Store


def _small_data(jobs: Sequence[Job], examples: int) -> list[str]:
    """A sentence for each batch that is larger than the training split: it is as large as that instead."""
    recipes = [job.recipe for job in jobs] + [
        role.recipe for job in jobs for role in job.frozen.values() if role.recipe
    ]
    return [
        f"recipe.batch_size {size:,} is more than the {examples:,} training images: batches of {examples:,} are used"
        for size in sorted({recipe.batch_size for recipe in recipes})
        if size > examples
    ]


def chosen_jobs(jobs: list[Job], only: Sequence[str]) -> list[Job]:
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


def try_models(jobs: Iterable[Job], sizes: Sizes) -> dict[tuple[str, str], tuple[int, int]]:
    """Parameters and MACs of every role, each built once, and one optimiser for each recipe.

    Raises:
        UserError: a model, its options or an optimiser cannot be made.
    """
    from kdbench.train.recipe import try_optimizer

    shapes: dict[tuple[str, str], tuple[int, int]] = {}
    tried = set()
    for job in {(job.name, job.recipe.model_dump_json()): job for job in jobs}.values():  # one seed of each cell
        for role, model in job.roles.items():
            shapes[job.pair, role] = sizes.of(model)
        recipes = [job.recipe, *(role.recipe for role in job.frozen.values() if role.recipe)]
        for recipe in recipes:
            if (text := recipe.optimizer.model_dump_json()) not in tried:
                try_optimizer(recipe.optimizer)
                tried.add(text)
    return shapes
