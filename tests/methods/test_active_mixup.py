"""Active mixup: what is chosen, that the black box is asked once about each, and how many questions that makes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_nets import CLASSES, EXAMPLES, Problem
from training import assert_same, digits, recipe, snapshot, states, task

from kdbench.batch import Chosen, Out, Pool
from kdbench.data.batches import stream
from kdbench.data.mixtures import Mixtures
from kdbench.method import Refusal
from kdbench.methods.active_mixup import RATIOS, ActiveMixup, least_certain
from kdbench.methods.kd import KD
from kdbench.targets import Targets
from kdbench.train.engine import Engine

MADE = torch.Generator().manual_seed(0)
FEW = {"images": 40, "rounds": 2, "pairs": 50, "candidates": 200}


def test_the_ratios_are_the_paper_s() -> None:
    assert RATIOS == (0.3, 0.34, 0.38, 0.42, 0.46, 0.5, 0.54, 0.58, 0.62, 0.66, 0.7)


def test_the_least_certain_ratio_against_a_loop() -> None:
    table = torch.rand(len(RATIOS), 20, generator=MADE)
    asked = iter(table)
    ratio_P, lowest_P = least_certain(lambda ratio_P: next(asked), torch.empty(20))
    for p in range(20):
        k = int(np.argmin(table[:, p].numpy()))
        assert (ratio_P[p].item(), lowest_P[p].item()) == pytest.approx((RATIOS[k], table[k, p].item()))


def test_an_undecided_student_takes_the_first_ratio_always() -> None:
    ratio_P, _ = least_certain(lambda ratio_P: torch.full_like(ratio_P, 0.1), torch.empty(5))
    assert ratio_P.tolist() == pytest.approx([0.3] * 5)


@pytest.mark.parametrize("candidates", [0, 15])
def test_rounds_add_the_least_certain_pairs_that_were_not_chosen_yet(candidates: int) -> None:
    images, pairs, n = torch.rand(EXAMPLES, CLASSES, generator=MADE), 7, 6
    method, seen = ActiveMixup(images=n, rounds=2, pairs=pairs, candidates=candidates), []

    def ask(role: str, of: Chosen) -> torch.Tensor:
        seen.append((role, of))
        share = of.share_M[:, None]
        return 9 * (share * images[of.first_M] + (1 - share) * images[of.other_M])

    first = method.choose(Pool(0, EXAMPLES, ask, torch.Generator().manual_seed(0)))
    assert (len(first), len(set(first.first_M.tolist())), seen) == (n, n, [])
    assert torch.equal(first.first_M, first.other_M)
    assert first.share_M.tolist() == [1.0] * n
    second = method.choose(Pool(1, EXAMPLES, ask, torch.Generator().manual_seed(1), first))
    assert {role for role, _ in seen} == {"round0"}
    looked = {(i, j) for i, j in zip(seen[0][1].first_M.tolist(), seen[0][1].other_M.tolist(), strict=True)}
    assert len(looked) == (candidates or n * (n - 1) // 2)
    worst = {}
    for i, j in looked:
        for ratio in RATIOS:
            z = 9 * (ratio * images[i] + (1 - ratio) * images[j]).double().numpy()
            worst[i, j] = min(worst.get((i, j), 1.0), float(np.exp(z - z.max()).max() / np.exp(z - z.max()).sum()))
    expected = sorted(looked, key=worst.get)[:pairs]
    added = list(zip(second.first_M[n:].tolist(), second.other_M[n:].tolist(), strict=True))
    assert set(added) == set(expected)
    third = method.choose(Pool(2, EXAMPLES, ask, torch.Generator().manual_seed(2), second))
    assert torch.equal(third.first_M[: len(second)], second.first_M)
    pairs_of = list(zip(third.first_M.tolist(), third.other_M.tolist(), strict=True))
    assert len(set(pairs_of)) == len(pairs_of)


def test_the_term_against_a_loop_uses_no_label() -> None:
    z_s, z_t = (torch.randn(6, 5, generator=MADE, dtype=torch.float64) for _ in range(2))
    given = Problem(ActiveMixup()).batch(6)
    found = ActiveMixup().loss(Out("student", z_s), {"teacher": Out("teacher", z_t)}, given, torch.nn.Module())
    total = 0.0
    for s, t in zip(z_s.numpy(), z_t.numpy(), strict=True):
        p, q = np.exp(t) / np.exp(t).sum(), np.exp(s) / np.exp(s).sum()
        total -= (p * np.log(q)).sum() / 6
    assert list(found) == ["active_mixup"]
    assert found["active_mixup"].item() == pytest.approx(total)


# in the engine -------------------------------------------------------------------------------------------------------
def counted(work):
    """How many images the teacher was asked about, and how often."""
    images = []
    work.models["teacher"].register_forward_pre_hook(lambda module, inputs: images.append(len(inputs[0])))
    return images


def test_the_teacher_is_asked_once_about_each_and_that_is_what_is_counted() -> None:
    work = task(ActiveMixup(**FEW), digits())
    images = counted(work)
    trained = Engine(work).train()
    assert trained.queries == 40 + 2 * 50
    first_pass = 2  # of the profile
    assert sum(images) <= 40 + 90 + 140 + 3 * first_pass  # answers are asked for anew in each stage, of the same inputs
    assert [value for value in trained.curves["queries"] if value] == [40.0] * 2 + [90.0] * 2 + [140.0] * 2
    assert {"val/round0/top1", "val/round1/top1", "val/top1"} <= trained.curves.keys()


def test_without_rounds_it_is_kd_at_temperature_one_on_few_images() -> None:
    loaded = digits()
    trained = Engine(task(ActiveMixup(images=0, rounds=0), loaded, recipe_=recipe(augment={}))).train()
    assert trained.queries == len(loaded.train)
    assert trained.parts[0] is trained.answer


def test_methods_that_choose_nothing_count_nothing() -> None:
    assert Engine(task(KD(), digits())).train().queries is None


def test_resuming_chooses_the_same_and_ends_with_the_same_bits() -> None:
    def made():
        return task(ActiveMixup(**FEW), digits(), recipe_=recipe(checkpoint_every=1))

    saved = []
    whole = Engine(made(), save=lambda state: saved.append(snapshot(state))).train()
    for state in saved[1:-1:7]:
        again = Engine(made(), state=state).train()
        assert_same(states(again.answer), states(whole.answer))
        assert again.queries == whole.queries


def test_mixtures_are_of_their_parts_with_their_shares() -> None:
    loaded = digits()
    first, other, share = torch.tensor([3, 5]), torch.tensor([9, 5]), torch.tensor([0.3, 1.0])
    source = Mixtures(loaded.train, Chosen(first, other, share))
    ((x,),) = stream(source, [torch.tensor([0, 1])])
    ((whole,),) = stream(loaded.train, [torch.tensor([3, 9, 5])])
    torch.testing.assert_close(x, torch.stack([0.3 * whole[0] + 0.7 * whole[1], whole[2]]))
    labels, dense = loaded.train.labels, source.targets(loaded.task, torch.tensor([0, 1])).dense()
    expected = 0.3 * Targets(labels[[3]], 10).dense() + 0.7 * Targets(labels[[9]], 10).dense()
    torch.testing.assert_close(dense, torch.cat([expected, Targets(labels[[5]], 10).dense()]))


class Probing(ActiveMixup):
    def needs(self):
        return KD().needs().__class__(probe=True, categorical=True)


def test_who_needs_the_training_set_itself_cannot_choose() -> None:
    with pytest.raises(Refusal, match="Probing chooses mixtures of examples, about which teachers give one answer"):
        Engine(task(Probing(**FEW), digits())).train()
