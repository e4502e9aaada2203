"""Seconds of a block of code: on the wall, and of this process's threads."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch


@dataclass
class Seconds:
    """A sum of them."""

    wall: float = 0.0
    cpu: float = 0.0

    def add(self, other: Seconds, times: float = 1.0) -> None:
        self.wall += times * other.wall
        self.cpu += times * other.cpu


@contextlib.contextmanager
def timed(device: torch.device | None = None) -> Iterator[Seconds]:
    """Is filled when the block is over; with a CUDA device, when that has done what the block asked of it."""
    spent = Seconds()
    _wait(device)
    wall, cpu = time.perf_counter(), time.process_time()
    yield spent
    _wait(device)
    spent.wall, spent.cpu = time.perf_counter() - wall, time.process_time() - cpu


def _wait(device: torch.device | None) -> None:
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)
