"""Keep freed memory in the process: on a CPU, training asks for the same large tensors again and again.

glibc's malloc takes blocks above a threshold straight from the kernel and gives them back on `free`. Every step then
faults in each page again, zeroed by the kernel, which can take longer than the arithmetic. With the two settings below,
those that MALLOC_MMAP_MAX_ and MALLOC_TRIM_THRESHOLD_ would set before the process starts, freed blocks stay in the
heap. The price is fragmentation: the resident set stays near its peak until `give_back`.
"""

from __future__ import annotations

import ctypes
import functools
import sys

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
