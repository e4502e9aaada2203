"""What `run`, `plan` and their workers are told on the command line, and opening a suite with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

from kdbench.errors import UserError, did_you_mean

if TYPE_CHECKING:
    import torch

    from kdbench.run.store import Store
    from kdbench.suite.job import Job
    from kdbench.suite.load import Suite
    from kdbench.train.workbench import Workbench


@dataclass(frozen=True)
class Setting:
    """A plain value, so that it can be sent to worker processes."""

    suite: Path
    data_root: Path | None = None
    root: Path = Path("leaderboard")
    runs: Path = Path("runs")
    only: tuple[str, ...] = ()
    seeds: str | None = None
    epochs: int | None = None
    again: bool = False  # only jobs whose last result is not ok
    track: str = "default"  # "tuned": with the knobs that `kdbench tune` chose

    def open(self, device: str, warn: Callable[[str], None] = lambda sentence: None) -> Opened:
        """The suite with its jobs, data and results.

        Raises:
            UserError: all that is wrong with the suite, the options or the data.
        """
        from kdbench.data import default_root
        from kdbench.run.store import Store
        from kdbench.suite.load import load
        from kdbench.train.workbench import Workbench

        suite = load(self.suite)
        for note in suite.notes:
            warn(note)
        seeds = parse_seeds(self.seeds) if self.seeds is not None else None
        jobs = chosen_jobs(self._jobs(suite, None, seeds), self.only)
        bench = Workbench.load(jobs[0], self.data_root or default_root(), pick_device(device), self.runs)
        for note in bench.data.notes:
            warn(note)
        jobs = chosen_jobs(self._jobs(suite, bench.data.fingerprint, seeds, warn), self.only)
        store = Store(self.root, suite.file.name, warn)
        if self.again:
            jobs = [job for job in jobs if job.key in store.results and store.results[job.key].status != "ok"]
            store.again = {job.key for job in jobs}
        return Opened(suite, jobs, bench, store)

    def _jobs(
        self,
        suite: Suite,
        fingerprint: str | None,
        seeds: Sequence[int] | None,
        warn: Callable[[str], None] = lambda sentence: None,
    ) -> list[Job]:
        from kdbench.suite.job import expand
        from kdbench.suite.winners import tuned_jobs

        if self.track == "tuned":
            return tuned_jobs(suite, self.root, fingerprint, epochs=self.epochs, seeds=seeds, warn=warn)
        return expand(suite, fingerprint, epochs=self.epochs, seeds=seeds)


@dataclass(frozen=True)
class Opened:
    suite: Suite
    jobs: list[Job]
    bench: Workbench
    store: Store


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


def parse_duration(text: str) -> float:
    """`90`, `90s`, `45m`, `2h` in seconds.

    Raises:
        UserError: not such a time.
    """
    units = {"s": 1.0, "m": 60.0, "h": 3600.0}
    number, unit = (text[:-1], text[-1]) if text[-1:] in units else (text, "s")
    try:
        seconds = float(number) * units[unit]
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise UserError(f"--timeout {text}: expects a time such as 90s, 45m or 2h")
    return seconds


def pick_device(name: str) -> torch.device:
    """The device of that name; `auto` is CUDA where there is one, else the CPU.

    Raises:
        UserError: there is no such device here.
    """
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(f"--device {name}: there is no such device here; see `kdbench doctor`") from error
    return device


def pick_devices(text: str) -> tuple[str, ...]:
    """`cuda:0,cuda:1` as names, without opening them: each worker opens its own.

    Raises:
        UserError: there is no such device here.
    """
    import torch

    names = [name.strip() for name in text.split(",") if name.strip()]
    if names == ["auto"]:
        names = [f"cuda:{number}" for number in range(torch.cuda.device_count())] or ["cpu"]
    for name in names or [text]:
        try:
            device = torch.device(name)
        except RuntimeError as error:
            raise UserError(f"--devices {name}: not a device; expects a list such as cuda:0,cuda:1") from error
        if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
            raise UserError(f"--devices {name}: there is no such device here; see `kdbench doctor`")
    return tuple(dict.fromkeys(names))
