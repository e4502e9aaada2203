"""Formulas that three methods or more use. Pure functions of tensors; targets are probabilities (B, C)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from kdbench.lazy import F, torch

if TYPE_CHECKING:
    from torch import Tensor


def cross_entropy(logits_BC: Tensor, targets_BC: Tensor) -> Tensor:
    """-mean_b sum_c y_bc ln p_bc: a scalar, for targets that are probabilities."""
    return -(targets_BC * F.log_softmax(logits_BC, dim=1)).sum(dim=1).mean()


def soft_divergence(logits_s_BC: Tensor, logits_t_BC: Tensor, temperature: float) -> Tensor:
    """T^2 * mean_b KL(p_t^T || p_s^T), p^T = softmax(z / T): a scalar (Hinton, Vinyals & Dean, 2015).

    The mean runs over the batch, not over B * C as `KLDivLoss()` does by default.
    """
    log_s_BC = F.log_softmax(logits_s_BC / temperature, dim=1)
    log_t_BC = F.log_softmax(logits_t_BC / temperature, dim=1)
    return temperature**2 * F.kl_div(log_s_BC, log_t_BC, reduction="batchmean", log_target=True)


def as_map(feature: Tensor) -> Tensor:
    """A feature as a map (B, D, H, W): maps as they are, vectors (B, D) as 1x1, tokens (B, L, D) as a square grid.

    Leading class tokens are dropped: of L tokens the last floor(sqrt(L))^2 make the grid.
    """
    if feature.dim() == 4:
        return feature
    if feature.dim() == 2:
        return feature[:, :, None, None]
    side = math.isqrt(feature.shape[1])
    return feature[:, -side * side :].transpose(1, 2).unflatten(2, (side, side))


def map_shape(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """(D, H, W) of `as_map` for a feature of this shape without the batch dimension."""
    _, d, h, w = as_map(torch.empty(1, *shape, device="meta")).shape
    return d, h, w
