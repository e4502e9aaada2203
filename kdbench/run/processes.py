"""Worker processes, for `run` and `tune`: hired, followed by their parent's death, named when they die, and ended."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Any


def hire(main: Callable[..., None], *arguments: Any, of: int) -> tuple[SpawnProcess, Connection]:
    """A new process at `main(connection, *arguments, threads, parent)`, one `of` so many, and our end of its pipe.

    `threads` is its share of the CPUs, for an accelerator (on a CPU a job trains with one, see `devices.one_thread`);
    0, hands off, where the user set OMP_NUM_THREADS. `parent` is for `follow`.
    """
    context = multiprocessing.get_context("spawn")
    mine, theirs = context.Pipe()
    threads = 0 if os.environ.get("OMP_NUM_THREADS") else max(1, (os.cpu_count() or 1) // of)
    process = context.Process(
        target=main,
        args=(theirs, *arguments, threads, os.getpid()),
        daemon=False,  # data sets may have processes of their own
    )
    process.start()
    theirs.close()
    return process, mine


def follow(parent: int, *, patience: float = 0.0) -> None:
    """End this process with its parent, however that ends; with `patience` (seconds) by SIGTERM first."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        if patience:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(patience)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def cause(code: int | None) -> str:
    """What an exit code says."""
    if code is None:
        return "it does not answer"
    if code < 0:
        names = {number.value: number.name for number in signal.Signals}
        return names.get(-code, f"signal {-code}")
    return f"exit code {code}"


def leave(process: SpawnProcess, patience: float) -> None:
    """Wait for a process that is about to end by itself; after `patience` seconds it is ended."""
    process.join(patience)
    if process.is_alive():
        end([process], 1.0)


def end(processes: Iterable[SpawnProcess], patience: float) -> None:
    """SIGTERM to all at once; SIGKILL to those that are still there after `patience` seconds."""
    processes = list(processes)
    for process in processes:
        with contextlib.suppress(OSError):
            process.terminate()
    deadline = time.monotonic() + patience
    for process in processes:
        process.join(max(0.1, deadline - time.monotonic()))
        if process.is_alive():
            process.kill()
            process.join()
