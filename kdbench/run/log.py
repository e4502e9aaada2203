"""One log file for each job, and for each teacher: `runs/logs/<key>.txt`, appended to by every attempt."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from kdbench.errors import UserError

if TYPE_CHECKING:
    from kdbench.train.state import Progress


class Log:
    """Lines with the time of day in front; each is on disk when `say` returns."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def say(self, text: str) -> None:
        """Raises UserError when the file cannot be written."""
        stamp = datetime.now().isoformat(" ", "seconds")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(f"{stamp} {text}\n")
        except OSError as error:
            raise UserError(
                f"{self.path}: cannot write the log ({error.strerror}); free space or give --runs DIR"
            ) from error

    def epoch(self, what: str, progress: Progress) -> None:
        self.say(f"{what}: {described(progress)}")


def path_of(runs: Path, key: str) -> Path:
    return runs / "logs" / f"{key}.txt"


def described(progress: Progress) -> str:
    """`stage 2/7 epoch 3/10, 812 images/s, train/loss 1.234, val/top1 56.78`"""
    stage = f"stage {progress.stage + 1}/{progress.stages} " if progress.stages > 1 else ""
    metrics = "".join(f", {name} {value:.4g}" for name, value in progress.metrics.items())
    return f"{stage}{progress.clock} {progress.epoch + 1}/{progress.epochs}, {progress.speed}{metrics}"


def last_line(path: Path) -> str:
    """What a log says last, without its time of day; "" where there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 4096))
            lines = file.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return ""
    return lines[-1][20:] if lines else ""


@contextmanager
def captured(path: Path) -> Iterator[None]:
    """Everything this process prints, C libraries included, goes into the log meanwhile."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    kept = os.dup(1), os.dup(2)
    with path.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, old in zip((1, 2), kept, strict=True):
            os.dup2(old, number)
            os.close(old)
