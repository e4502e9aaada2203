"""Named random streams, all derived from one seed and never from the method.

Everything here is counter-based (SplitMix64: Steele, Lea & Flood, "Fast splittable pseudorandom number generators",
OOPSLA 2014): a draw is a pure function of (seed, name, counters). So it does not matter how a run was batched,
interrupted, resumed or moved between devices.
"""

from __future__ import annotations

import hashlib
from typing import Any

from kdbench.lazy import torch

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed 64-bit integer
_MIX1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX2 = -7723592293110705685  # 0x94D049BB133111EB


def derive(seed: int, *names: str | int) -> int:
    """A seed in [0, 2**63) for the stream `names` of `seed`: derive(0, "init", "student")."""
    text = "/".join(str(name) for name in (seed, *names))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def _shift_right(x: torch.Tensor, bits: int) -> torch.Tensor:
    return (x >> bits) & ((1 << (64 - bits)) - 1)  # torch shifts int64 arithmetically; this makes it logical


def counter_bits(key: int, counter: torch.Tensor) -> torch.Tensor:
    """64 random bits (as int64, shape of `counter`) for each counter of the stream `key`; equal on every device."""
    # The key is whitened first: streams of neighbouring keys must not be shifted copies of each other.
    z = (counter.to(torch.int64) + _whiten(key)) * _GOLDEN
    z = (z ^ _shift_right(z, 30)) * _MIX1
    z = (z ^ _shift_right(z, 27)) * _MIX2
    return z ^ _shift_right(z, 31)


def _whiten(key: int) -> int:
    return int.from_bytes(hashlib.sha256(key.to_bytes(8, "little")).digest()[:8], "little", signed=True) >> 1


def uniform(key: int, counter: torch.Tensor) -> torch.Tensor:
    """Uniform float32 in [0, 1), exact multiples of 2**-24, one for each counter."""
    return (_shift_right(counter_bits(key, counter), 40)).to(torch.float32) * 2.0**-24


def integers(key: int, counter: torch.Tensor, high: int) -> torch.Tensor:
    """Integers in [0, high), one for each counter; `high` up to 2**31 (bias below high / 2**53)."""
    return _shift_right(counter_bits(key, counter), 11) % high


def order(seed: int, epoch: int, n: int, *, stage: int = 0, device: torch.device | str = "cpu") -> torch.Tensor:
    """A permutation of range(n) for (seed, stage, epoch): int64 (n,)."""
    counter = torch.arange(n, dtype=torch.int64, device=device)
    return torch.argsort(counter_bits(derive(seed, "order", stage, epoch), counter), stable=True)


def draw(seed: int, epoch: int, weights_N: torch.Tensor, *, stage: int = 0) -> torch.Tensor:
    """n indices drawn with replacement, n = len(weights), proportional to `weights_N` >= 0: int64 (n,)."""
    n = len(weights_N)
    cumulative = weights_N.double().cumsum(0)
    counter = torch.arange(n, dtype=torch.int64, device=weights_N.device)
    u = uniform(derive(seed, "draw", stage, epoch), counter).double() * cumulative[-1]
    return torch.searchsorted(cumulative, u, right=True).clamp_(max=n - 1)


class seeded:
    """Run a block with torch's global generators set to a derived seed; they are restored afterwards."""

    def __init__(self, seed: int, *names: str | int) -> None:
        self.seed = derive(seed, *names)

    def __enter__(self) -> None:
        self.fork = torch.random.fork_rng(devices=range(torch.cuda.device_count()))
        self.fork.__enter__()
        torch.manual_seed(self.seed)

    def __exit__(self, *error: Any) -> None:
        self.fork.__exit__(*error)
