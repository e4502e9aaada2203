"""A worker process: opens the suite once, then does the tasks that `crew` sends, one at a time.

From the crew come `("teacher" | "job", key, last)`, where `last` says that running out of memory is final, or None to
end; back go the events below. What a task prints goes into its log.
"""

from __future__ import annotations

import contextlib
import faulthandler
import signal
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

from kdbench.errors import UserError
from kdbench.run.opened import Setting
from kdbench.run.processes import follow

if TYPE_CHECKING:
    from kdbench.run.store import Store
    from kdbench.suite.job import FrozenRole, Job
    from kdbench.train.workbench import Workbench

Event = tuple[Any, ...]  # (name, *arguments)
READY, EPOCH, WARN, DONE, TAUGHT, BUSY, MEMORY, SPENT, STOP = (
    "ready", "epoch", "warn", "done", "taught", "busy", "memory", "spent", "stop",
)  # fmt: skip


def main(connection: Connection, setting: Setting, device: str, threads: int, parent: int) -> None:
    """The process's whole life."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the crew decides what Ctrl-C means
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    follow(parent)
    with contextlib.suppress(BrokenPipeError, EOFError, ConnectionResetError):
        try:
            _serve(connection, setting, device, threads)
        except UserError as error:
            connection.send((STOP, *map(str, error.args)))  # line by line


def _serve(connection: Connection, setting: Setting, device: str, threads: int) -> None:
    import torch

    if threads:
        torch.set_num_threads(threads)
    faulthandler.enable()
    desk = Desk.open(setting, device)
    desk.bench.watch = lambda what, progress: connection.send((EPOCH, what, progress))
    desk.bench.warn = lambda sentence: connection.send((WARN, sentence))
    connection.send((READY,))
    while (task := connection.recv()) is not None:
        connection.send(desk.do(*task))
        if desk.bench.device.type == "cuda" and _spoilt(torch):
            connection.send((SPENT,))
            return


@dataclass
class Desk:
    """A suite that was opened once, on a device, and the tasks of it that are done there, one at a time."""

    setting: Setting
    jobs: Mapping[str, Job]
    roles: Mapping[str, FrozenRole]
    bench: Workbench
    store: Store

    @classmethod
    def open(cls, setting: Setting, device: str) -> Desk:
        """Raises UserError with all that is wrong with the suite, the options or the data."""
        opened = setting.open(device)
        jobs = {job.key: job for job in opened.jobs}
        roles = {role.key: role for job in opened.jobs for role in job.frozen.values()}
        return cls(setting, jobs, roles, opened.bench, opened.store)

    def do(self, kind: str, key: str, last: bool) -> Event:
        """The event in which a task ends.

        Raises:
            UserError: the suite or the data were changed, or files cannot be written.
        """
        from kdbench.run.log import captured, path_of

        if key not in (self.jobs if kind == "job" else self.roles):
            raise UserError(f"{self.setting.suite}: it was changed while it ran; run it again")
        with captured(path_of(self.setting.runs, key)), warnings.catch_warnings():
            return self._taught(key) if kind == "teacher" else self._trained(key, last)

    def _taught(self, key: str) -> Event:
        from kdbench.run import runner

        return (TAUGHT, key, runner.teach(self.roles[key], self.bench))

    def _trained(self, key: str, last: bool) -> Event:
        from kdbench.run import runner

        try:
            _, trained = runner.do(self.jobs[key], self.bench, self.store)
        except runner.Busy:
            return (BUSY, key)
        except runner.OutOfMemory as error:
            if not last:
                return (MEMORY, key, str(error))
            self.store.write(runner.failed(self.jobs[key], str(error)))
            return (DONE, key, True)
        return (DONE, key, trained)


def _spoilt(torch: Any) -> bool:
    """Whether a fault has left this process's CUDA context useless: whatever follows would fail too."""
    try:
        torch.cuda.synchronize()
        torch.zeros(1, device="cuda")
    except RuntimeError:
        return True
    return False
