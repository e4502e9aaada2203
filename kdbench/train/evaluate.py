"""Accuracy, calibration and fidelity from logits, and latency of a deployed model."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

from kdbench.data import DataSet, Split
from kdbench.data.batches import stream
from kdbench.train.recipe import autocast

BATCH = 512


def logits(model: Callable[[Tensor], Tensor], pixels: Iterable[Tensor]) -> Tensor:
    """The model's logits (N, C) in float32 on batches of pixels. The caller sets eval mode."""
    with torch.inference_mode():
        return torch.cat([model(x).float() for x in pixels])


def split_logits(model: nn.Module, split: Split, data: DataSet, precision: str = "fp32") -> Tensor:
    """A model's logits (N, C) on a split, in eval mode, without augmentation; its training mode is restored."""
    training = model.training
    model.eval()
    device = split.labels.device
    batches = torch.arange(len(split.labels), device=device).split(BATCH)
    pixels = (x for (x,) in stream(split, data, batches))
    with autocast(precision, device):
        out = logits(model, pixels)
    model.train(training)
    return out


def not_finite(model: nn.Module, said: Mapping[str, Tensor]) -> str:
    """What of a trained model is no finite number, "its weight conv.weight is not finite"; "" if nothing.

    Args:
        said: split -> the model's logits (N, C) on it.
    """
    for name, weight in model.named_parameters():
        if not weight.isfinite().all():
            return f"its weight {name} is not finite"
    for name, value in model.named_buffers():
        # A mask may hold -inf from the start.
        if value.is_floating_point() and (value.isnan() | value.isposinf()).any():
            return f"its buffer {name} is not finite"
    return next(
        (f"its {name} logits are not finite" for name, logits_NC in said.items() if not logits_NC.isfinite().all()), ""
    )


def latency_ms(model: torch.nn.Module, x: torch.Tensor, repeats: int = 5) -> float:
    """Median milliseconds of a forward pass in eval mode, after one warm-up."""
    times = []
    with torch.inference_mode():
        for _ in range(repeats + 1):
            start = time.perf_counter()
            model(x)
            if x.is_cuda:
                torch.cuda.synchronize(x.device)
            times.append(time.perf_counter() - start)
    return 1000.0 * sorted(times[1:])[repeats // 2]
