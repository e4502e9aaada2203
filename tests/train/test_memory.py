"""Freed memory is kept: counted page faults, in processes of their own."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from kdbench.train import memory

SCRIPT = """
import json, resource, sys
from kdbench.train import memory
kept = memory.keep_pages() if "keep" in sys.argv else None
size = 48 << 20  # more than glibc ever keeps by itself
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def resident():
    return int(open("/proc/self/statm").read().split()[1])
block = b"x" * size
del block
before = faults()
for _ in range(8):
    block = b"x" * size
    del block
counted = faults() - before
full = resident()
memory.give_back()
print(json.dumps([kept, counted, full - resident()]))
"""


def measured(*arguments: str) -> list[int]:
    done = subprocess.run([sys.executable, "-c", SCRIPT, *arguments], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


@pytest.mark.skipif(memory._glibc() is None, reason="needs glibc")
def test_freed_pages_stay_until_they_are_given_back() -> None:
    kept, faults, returned = measured("keep")
    _, without, _ = measured()
    pages = (48 << 20) // 4096
    assert kept is True
    assert without > 4 * pages / 512  # pages of 2 MiB at most, eight times over
    assert faults < without / 4
    assert returned > 0.9 * pages


def test_another_allocator_is_left_alone(monkeypatch) -> None:
    monkeypatch.setattr(memory, "_glibc", lambda: None)
    assert memory.keep_pages() is False
    memory.give_back()
