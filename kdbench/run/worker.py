"""A worker process: opens the suite once, then does the tasks that `crew` sends, one at a time.

From the crew come `("teacher" | "job", key, last)`, where `last` says that running out of memory is final, or None to
end; back go the events below. What a task prints goes into its log.
"""

from __future__ import annotations

import contextlib
import faulthandler
import signal
import warnings
from multiprocessing.connection import Connection
from typing import Any

from kdbench.errors import UserError
from kdbench.run.opened import Setting
from kdbench.run.processes import follow

# Events: (name, *arguments)
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

    from kdbench.run import runner
    from kdbench.run.log import captured, path_of

    if threads:
        torch.set_num_threads(threads)
    faulthandler.enable()
    opened = setting.open(device)
    bench, store = opened.bench, opened.store
    bench.watch = lambda what, progress: connection.send((EPOCH, what, progress))
    bench.warn = lambda sentence: connection.send((WARN, sentence))
    jobs = {job.key: job for job in opened.jobs}
    roles = {role.key: role for job in opened.jobs for role in job.frozen.values()}
    connection.send((READY,))
    while (task := connection.recv()) is not None:
        kind, key, last = task
        if key not in (jobs if kind == "job" else roles):
            raise UserError(f"{setting.suite}: it was changed while it ran; run it again")
        with captured(path_of(setting.runs, key)), warnings.catch_warnings():
            connection.send(_event(runner, kind, key, last, jobs, roles, bench, store))
        if bench.device.type == "cuda" and _spoilt(torch):
            connection.send((SPENT,))
            return


def _event(
    runner: Any, kind: str, key: str, last: bool, jobs: Any, roles: Any, bench: Any, store: Any
) -> tuple[Any, ...]:
    if kind == "teacher":
        return (TAUGHT, key, runner.teach(roles[key], bench))
    try:
        _, trained = runner.do(jobs[key], bench, store)
    except runner.Busy:
        return (BUSY, key)
    except runner.OutOfMemory as error:
        if not last:
            return (MEMORY, key, str(error))
        store.write(runner.failed(jobs[key], str(error)))
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
