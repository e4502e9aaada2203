"""Peak memory of one job: the device's on CUDA, the process's resident set on Linux."""

from __future__ import annotations

import contextlib
import resource
import sys
from pathlib import Path

import torch

from kdbench.train import allocator


def reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        allocator.give_back()  # else what an earlier job had would count as this one's
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # Linux: VmHWM starts again from the present size


def peak_mb(device: torch.device) -> float:
    """Mebibytes since `reset_peak` (where the system cannot reset it: since the process began)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    with contextlib.suppress(OSError, StopIteration, IndexError, ValueError):
        status = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in status if line.startswith("VmHWM")).split()[1]) / 2**10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory, a device's or the machine's, was not enough."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)
