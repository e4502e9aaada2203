from __future__ import annotations

import hashlib
import struct

import pytest
import torch
from scipy import stats

from kdbench import streams

torch.set_num_threads(1)

MASK = 2**64 - 1
N = 20_000


def mix(z: int) -> int:
    """SplitMix64's output function in Python's exact integers."""
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & MASK
    return z ^ (z >> 31)


def reference_bits(key: int, counter: int) -> int:
    (start,) = struct.unpack("<q", hashlib.sha256(struct.pack("<Q", key)).digest()[:8])
    return mix((counter + (start >> 1)) * 0x9E3779B97F4A7C15 & MASK)


def counters(n: int = N) -> torch.Tensor:
    return torch.arange(n)


def uniform_p_value(values: torch.Tensor, bins: int) -> float:
    counts = torch.bincount(values, minlength=bins)
    assert len(counts) == bins
    return float(stats.chisquare(counts.numpy()).pvalue)


def test_known_answers_of_splitmix64(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "_whiten", lambda key: 0)
    bits = [int(b) & MASK for b in streams.counter_bits(0, torch.tensor([1, 2, 3]))]
    assert bits == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]  # its first outputs from state 0


@pytest.mark.parametrize("key", [0, 1, 2**63 - 1, streams.derive(7, "x")])
def test_bits_equal_exact_integers(key: int) -> None:
    counter = torch.tensor([0, 1, 2, 59_999, 2**31, 2**62])
    assert [int(b) & MASK for b in streams.counter_bits(key, counter)] == [
        reference_bits(key, c) for c in counter.tolist()
    ]


def test_uniform_and_integers_equal_exact_integers() -> None:
    key = streams.derive(3, "u")
    assert streams.uniform(key, counters(50)).tolist() == [(reference_bits(key, c) >> 40) / 2**24 for c in range(50)]
    assert streams.integers(key, counters(50), 81).tolist() == [(reference_bits(key, c) >> 11) % 81 for c in range(50)]


def test_a_draw_does_not_depend_on_its_neighbours() -> None:
    key = streams.derive(0, "batch")
    whole = streams.uniform(key, counters(100))
    shuffled = torch.randperm(100, generator=torch.Generator().manual_seed(0))
    assert torch.equal(streams.uniform(key, shuffled), whole[shuffled])
    assert torch.equal(torch.cat([streams.uniform(key, c) for c in counters(100).split(7)]), whole)
    assert torch.equal(streams.uniform(key, counters(100).to(torch.int32).view(4, 25)), whole.view(4, 25))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_devices_agree() -> None:
    key = streams.derive(0, "device")
    assert torch.equal(streams.counter_bits(key, counters().cuda()).cpu(), streams.counter_bits(key, counters()))
    assert torch.equal(streams.uniform(key, counters().cuda()).cpu(), streams.uniform(key, counters()))
    assert torch.equal(streams.order(0, 3, N, device="cuda").cpu(), streams.order(0, 3, N))


def test_derive_is_stable_and_separates_names() -> None:
    text = hashlib.sha256(b"5/init/student").digest()
    assert streams.derive(5, "init", "student") == int.from_bytes(text[:8], "little") // 2
    seeds = {streams.derive(s, name, i) for s in range(10) for name in ("order", "draw", "augment") for i in range(10)}
    assert len(seeds) == 300
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_every_bit_is_fair_and_bins_are_equal() -> None:
    bits = streams.counter_bits(streams.derive(0, "fair"), counters())
    ones = torch.stack([((bits >> b) & 1).sum() for b in range(64)])
    assert ((ones - N / 2).abs() < 5 * (N / 4) ** 0.5).all()
    u = streams.uniform(streams.derive(0, "fair"), counters())
    assert u.min() >= 0
    assert u.max() < 1
    assert uniform_p_value((u * 64).long(), 64) > 1e-4
    assert uniform_p_value(streams.integers(streams.derive(1, "fair"), counters(), 81), 81) > 1e-4


def test_neighbouring_keys_and_counters_are_independent() -> None:
    for key in (0, 41):
        a, b = streams.uniform(key, counters()), streams.uniform(key + 1, counters())
        for left, right in ((a, b), (a[1:], b[:-1]), (a[:-1], b[1:]), (a[1:], a[:-1])):
            assert abs(torch.corrcoef(torch.stack([left, right]))[0, 1]) < 5 / N**0.5
        here, there = (set(streams.counter_bits(k, counters()).tolist()) for k in (key, key + 1))
        assert len(here) == N
        assert not here & there  # not shifted copies of one sequence


def test_order_is_a_permutation_of_its_own_for_each_epoch_stage_and_seed() -> None:
    orders = [streams.order(s, e, 500, stage=g) for s in (0, 1) for e in (0, 1, 2) for g in (0, 1)]
    assert all(torch.equal(order.sort().values, counters(500)) for order in orders)
    assert len({tuple(order.tolist()) for order in orders}) == len(orders)
    assert torch.equal(streams.order(1, 2, 500), streams.order(1, 2, 500, stage=0))


def test_each_example_may_come_first() -> None:
    first = torch.stack([streams.order(0, epoch, 10)[0] for epoch in range(2000)])
    assert uniform_p_value(first, 10) > 1e-4


def test_draw_follows_the_weights() -> None:
    weights = torch.tensor([0.0, 1.0, 2.0, 0.0, 5.0, 0.0]).repeat_interleave(2000)
    drawn = streams.draw(0, 0, weights)
    assert len(drawn) == len(weights)
    assert (weights[drawn] > 0).all()
    groups = torch.bincount(drawn // 2000, minlength=6)[[1, 2, 4]].numpy()
    expected = [len(weights) * w / 8 for w in (1, 2, 5)]
    assert stats.chisquare(groups, expected).pvalue > 1e-4
    assert not torch.equal(drawn, streams.draw(0, 1, weights))
    assert torch.equal(drawn, streams.draw(0, 0, weights * 4))  # weights are relative


def test_draw_skips_weight_zero_even_at_the_lowest_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "uniform", lambda key, counter: torch.zeros(len(counter)))
    assert streams.draw(0, 0, torch.tensor([0.0, 0.0, 1.0, 1.0])).tolist() == [2] * 4


def test_draw_of_the_only_possible_example() -> None:
    for position in (0, 3, 6):
        weights = torch.zeros(7)
        weights[position] = 0.25
        assert streams.draw(2, 5, weights).tolist() == [position] * 7
