"""Recipe -> optimiser, learning-rate factor, precision. One recipe for all methods of a suite."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from kdbench.errors import UserError
from kdbench.lazy import torch
from kdbench.method import Rates
from kdbench.suite.fields import Optimizer, Schedule

if TYPE_CHECKING:
    from torch import nn


def parameter_groups(
    modules: Iterable[nn.Module], optimizer: Optimizer, rates: Mapping[nn.Parameter, Rates] = MappingProxyType({})
) -> list[dict[str, Any]]:
    """Trainable parameters grouped by rate and decay.

    `rates` are a method's, of some of them. Mamba blocks mark parameters by `_no_weight_decay`; with `decay: matrices`
    tensors of fewer than two dimensions do not decay.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for module in modules:
        for parameter in module.parameters():
            if not parameter.requires_grad:
                continue
            exempt = getattr(parameter, "_no_weight_decay", False) or (
                optimizer.decay == "matrices" and parameter.ndim < 2
            )
            own = rates.get(parameter, Rates())
            groups.setdefault((own.lr, 0.0 if exempt else own.decay), []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": optimizer.lr * lr_scale,
            "base_lr": optimizer.lr * lr_scale,
            "weight_decay": optimizer.weight_decay * decay_scale,
        }
        for (lr_scale, decay_scale), parameters in groups.items()
    ]


def make_optimizer(
    modules: Iterable[nn.Module], optimizer: Optimizer, rates: Mapping[nn.Parameter, Rates] = MappingProxyType({})
) -> torch.optim.Optimizer:
    """sgd and adamw from torch, every other name from timm.

    Raises:
        UserError: timm does not know the name, or the optimiser does not take an option.
    """
    groups = parameter_groups(modules, optimizer, rates)
    options: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in optimizer.options.items()}
    on_cuda = all(parameter.is_cuda for group in groups for parameter in group["params"])
    if on_cuda and optimizer.name in ("sgd", "adamw") and not {"foreach", "fused", "differentiable"} & set(options):
        options["fused"] = True  # one kernel a step instead of one an operation
    try:
        if optimizer.name == "sgd":
            return torch.optim.SGD(
                groups, lr=optimizer.lr, momentum=optimizer.momentum, nesterov=optimizer.nesterov, **options
            )
        if optimizer.name == "adamw":
            return torch.optim.AdamW(groups, lr=optimizer.lr, **options)
        from timm.optim import create_optimizer_v2

        return create_optimizer_v2(
            groups,
            opt=optimizer.name,
            lr=optimizer.lr,
            weight_decay=optimizer.weight_decay,
            momentum=optimizer.momentum,
            filter_bias_and_bn=False,
            **options,
        )
    except Exception as error:  # whatever an optimiser makes of options that it does not expect
        said = str(error) if isinstance(error, TypeError | ValueError | AssertionError) else repr(error)
        raise UserError(f"recipe.optimizer: '{optimizer.name}' cannot be made: {said}") from error


def try_optimizer(optimizer: Optimizer) -> None:
    """One step on a small network, as the loop does it.

    Raises:
        UserError: the optimiser cannot be made, or fails in its first step.
    """
    net = torch.nn.Linear(2, 2)
    made = make_optimizer([net], optimizer)
    net(torch.ones(1, 2)).square().sum().backward()
    try:
        made.step()
    except Exception as error:
        raise UserError(f"recipe.optimizer: '{optimizer.name}' fails in its first step: {error!r}") from error


def rate_factor(schedule: Schedule, step: int, steps: int, length: int) -> float:
    """Factor of the learning rate at optimiser step `step` of a stage of `steps` steps.

    Time runs in the recipe's epochs (or steps), `length` in all, however long the stage is: milestones scale with its
    share. Warm-up is linear, its first step is not zero, and no step is above the recipe's rate.
    """
    now = step * length / steps
    warmup = schedule.warmup
    if now < warmup:
        return min(1.0, (step + 1) / max(1.0, warmup * steps / length))
    if schedule.name == "cosine":
        done = (now - warmup) / (length - warmup)
        return schedule.min_factor + (1 - schedule.min_factor) * 0.5 * (1 + math.cos(math.pi * done))
    if schedule.name == "multistep":
        return schedule.gamma ** sum(now >= milestone for milestone in schedule.milestones)
    return 1.0


def set_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor


def precision_on(precision: str, device: torch.device) -> str:
    """What `auto` means on this device: fp32 on CPU, bf16 on CUDA."""
    if precision != "auto":
        return precision
    return "bf16" if device.type == "cuda" else "fp32"


def autocast(precision: str, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    if precision == "bf16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return contextlib.nullcontext()
