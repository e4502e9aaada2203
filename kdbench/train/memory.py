"""Memory of a process: the peak of one job, and freed pages that stay.

The peak is the device's on CUDA, the process's resident set on Linux.

`keep_pages`: on a CPU, training asks for the same large tensors again and again.

glibc's malloc takes blocks above a threshold straight from the kernel and gives them back on `free`. Every step then
faults in each page again, zeroed by the kernel, which can take longer than the arithmetic. With the two settings below,
those that MALLOC_MMAP_MAX_ and MALLOC_TRIM_THRESHOLD_ would set before the process starts, freed blocks stay in the
heap. The price is fragmentation: the resident set stays near its peak until `give_back`.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import resource
import sys
from pathlib import Path

import torch


def reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        give_back()  # else what an earlier job had would count as this one's
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


_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h


@functools.cache
def _glibc() -> ctypes.CDLL | None:
    if not sys.platform.startswith("linux"):
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "gnu_get_libc_version") else None  # musl has another malloc


def keep_pages() -> bool:
    """Let malloc keep what is freed, from now on, in this process. False where malloc is not glibc's: nothing is done.

    Has no effect where another allocator is preloaded (jemalloc, tcmalloc), which keeps pages anyway.
    """
    if (library := _glibc()) is None:
        return False
    never, all_of_it = 0, -1
    return bool(library.mallopt(_M_MMAP_MAX, never)) and bool(library.mallopt(_M_TRIM_THRESHOLD, all_of_it))


def give_back() -> None:
    """Return free pages to the system now: between jobs, so that one job's peak is not counted as the next one's."""
    if (library := _glibc()) is not None:
        library.malloc_trim(0)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory, a device's or the machine's, was not enough."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)
