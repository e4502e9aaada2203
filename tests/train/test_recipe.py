"""Learning rates against torch's own schedulers, parameter groups, precision."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kdbench.errors import UserError
from kdbench.method import Prepared, Rates, Refusal
from kdbench.suite.fields import Optimizer, Schedule
from kdbench.train.recipe import make_optimizer, parameter_groups, precision_on, rate_factor, set_rate


def rates(schedule: Schedule, steps_per_epoch: int, epochs: int) -> list[float]:
    steps = steps_per_epoch * epochs
    return [rate_factor(schedule, step, steps, epochs) for step in range(steps)]


def torch_rates(make, steps: int) -> list[float]:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler, out = make(optimizer), []
    for _ in range(steps):
        out.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return out


def test_cosine_is_torchs() -> None:
    expected = torch_rates(lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 40), 40)
    assert rates(Schedule(name="cosine"), 4, 10) == pytest.approx(expected, abs=1e-12)


def test_multistep_is_torchs() -> None:
    expected = torch_rates(lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [12, 24], 0.2), 40)
    schedule = Schedule(name="multistep", milestones=(3, 6), gamma=0.2)
    assert rates(schedule, 4, 10) == pytest.approx(expected, abs=1e-12)


def test_warmup_rises_linearly_and_then_the_schedule_begins() -> None:
    found = rates(Schedule(name="cosine", warmup_epochs=2), 5, 10)
    assert found[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert found[10] == 1.0
    assert found[10:] == sorted(found[10:], reverse=True)
    assert rates(Schedule(name="constant"), 5, 2) == [1.0] * 10


@pytest.mark.parametrize(("warmup", "steps", "length"), [(1, 19 * 28, 30), (0.3, 700, 7), (2.5, 33, 10), (1, 7, 3)])
def test_no_step_is_above_the_rate(warmup: float, steps: int, length: int) -> None:
    # `chain` has stages of 28 of 30 epochs, where one step had 1.07 times the rate; 1.25 times was seen elsewhere
    found = [rate_factor(Schedule(warmup_epochs=warmup), step, steps, length) for step in range(steps)]
    assert max(found) <= 1.0


def test_a_longer_stage_stretches_the_schedule() -> None:
    schedule = Schedule(name="multistep", milestones=(5,))
    whole = [rate_factor(schedule, step, 40, 10) for step in range(40)]
    assert whole == pytest.approx([1.0] * 20 + [0.1] * 20)


def test_cosine_ends_at_its_minimum() -> None:
    assert rate_factor(Schedule(name="cosine", min_factor=0.01), 1000, 1000, 10) == pytest.approx(0.01)


def test_groups_honour_scales_and_exemptions() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    made = Prepared(model, {"*.weight": Rates(), "0.w*": Rates(lr=0.1, decay=0.5)})  # the last that matches
    frozen = nn.Linear(2, 2).requires_grad_(False)
    optimizer = Optimizer(lr=0.2, weight_decay=0.01, decay="matrices")
    groups = parameter_groups((model, frozen), optimizer, made.rates())
    found = sorted((round(g["lr"], 6), round(g["weight_decay"], 6), len(g["params"])) for g in groups)
    assert found == [(0.02, 0.005, 1), (0.2, 0.0, 3)]


def test_a_group_that_names_no_parameter_is_refused() -> None:
    with pytest.raises(Refusal, match="no parameter is called 'adapters"):
        Prepared(nn.Linear(2, 2), {"adapters.*": Rates(0.1)}).rates()


def test_groups_of_a_submodule_keep_their_rates_under_its_path() -> None:
    inner = Prepared(nn.Linear(2, 2), {"bias": Rates(decay=0.0)})
    outer = Prepared(nn.ModuleDict({"over": inner.model}), inner.within("over"))
    assert outer.rates() == inner.rates() == {inner.model.bias: Rates(decay=0.0)}
    assert Prepared.of(inner) is inner
    assert Prepared.of(inner.model).groups == {}


def test_mamba_style_exemption() -> None:
    layer = nn.Linear(3, 3)
    layer.weight._no_weight_decay = True
    decays = [g["weight_decay"] for g in parameter_groups([layer], Optimizer(weight_decay=0.1))]
    assert sorted(decays) == [0.0, 0.1]


@pytest.mark.parametrize("name", ["sgd", "adamw", "lamb", "nadamw", "lion"])
def test_every_optimiser_steps_downhill(name: str) -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(4, 1), torch.randn(16, 4)
    optimizer = make_optimizer([layer], Optimizer(name=name, lr=0.01, weight_decay=0.0))
    before = layer(x).square().mean().item()
    for _ in range(20):
        set_rate(optimizer, 0.5)
        optimizer.zero_grad()
        layer(x).square().mean().backward()
        optimizer.step()
    assert layer(x).square().mean().item() < before
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.005)


def test_options_reach_the_optimiser_and_wrong_ones_are_sentences() -> None:
    layer = nn.Linear(2, 2)
    made = make_optimizer([layer], Optimizer(name="adamw", options={"betas": [0.5, 0.6]}))
    assert made.param_groups[0]["betas"] == (0.5, 0.6)
    with pytest.raises(UserError, match=r"recipe\.optimizer: 'adamw'.*bogus"):
        make_optimizer([layer], Optimizer(name="adamw", options={"bogus": 1}))
    with pytest.raises(UserError, match=r"recipe\.optimizer: 'nonsuch'"):
        make_optimizer([layer], Optimizer(name="nonsuch"))


def test_auto_precision_is_full_on_cpu() -> None:
    assert precision_on("auto", torch.device("cpu")) == "fp32"
    assert precision_on("auto", torch.device("cuda")) == "bf16"
    assert precision_on("bf16", torch.device("cpu")) == "bf16"
