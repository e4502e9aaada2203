"""How many jobs this machine trains at a time, where nobody says: by its cores and its memory."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

GIB = 2**30
EACH = 2.0  # GiB of memory for one worker: torch, a small data set and a small job
CGROUP = Path("/sys/fs/cgroup")  # the limits of a container, where there are any


@dataclass(frozen=True)
class Staff:
    """Who trains: `workers` processes over `devices`, or this process itself; and one line on why."""

    workers: int  # 0: this process
    devices: tuple[str, ...]
    why: str


def staff(devices: Sequence[str], pending: int) -> Staff:
    """As many workers as CPU cores and memory allow, or one for each accelerator; never more than pending jobs.

    One job at a time on the CPU needs no worker; on accelerators workers are kept, so that a fault costs one job.
    """
    devices = tuple(devices)
    if pending <= 1:
        return Staff(0, devices, "one job: in this process" if pending else "")
    if any(name.partition(":")[0] != "cpu" for name in devices):
        found = min(len(devices), pending)
        return Staff(found, devices, f"{_counted(found, 'worker')} ({', '.join(devices)}); --workers N chooses")
    here, free = cores(), memory() / GIB
    found = max(1, min(here, int(free / EACH), pending))
    who = _counted(found, "worker") if found > 1 else "in this process"
    return Staff(
        found if found > 1 else 0,
        devices,
        f"{who} ({_counted(here, 'core')}, {free:.0f} GiB free); --workers N chooses",
    )


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def cores() -> int:
    """CPUs that this process may use: those of its affinity, and of its container's quota."""
    found = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):
        quota, period = map(float, (CGROUP / "cpu.max").read_text().split())  # "max 100000" is no number
        found = min(found, max(1, int(quota / period)))
    return found


def memory() -> int:
    """Bytes that new processes may use: what the system calls available, within the container's limit."""
    found = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with contextlib.suppress(OSError, StopIteration, IndexError, ValueError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        found = int(next(line for line in lines if line.startswith("MemAvailable")).split()[1]) * 1024
    with contextlib.suppress(OSError, ValueError):
        limit, used = (int((CGROUP / name).read_text()) for name in ("memory.max", "memory.current"))
        counted = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
        found = min(found, limit - used + int(counted.get("inactive_file", 0)))  # a cache that the kernel gives up
    return max(0, found)
