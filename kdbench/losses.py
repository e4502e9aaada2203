"""Formulas used by three methods or more. Everything is a function of tensors; reductions are means over the batch.

Under autocast a loss computes in float32: features and logits arrive in bfloat16, and differences of nearly equal
numbers (distances, correlations, a KL near zero) would be lost. `wide` and `full_precision` see to it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from kdbench.lazy import F, torch
from kdbench.method import Refusal
from kdbench.targets import Targets

if TYPE_CHECKING:
    from torch import Tensor

    from kdbench.batch import Batch, Out


def wide(x: Tensor) -> Tensor:
    """bfloat16 and float16 to float32; float32 and float64 as they are."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def full_precision(x: Tensor) -> AbstractContextManager[object]:
    """No autocast inside, so that matrix products of `wide` tensors stay in float32."""
    return torch.autocast(x.device.type, enabled=False)


def supervised(learner: Out, batch: Batch) -> Tensor:
    """What the task itself asks of a learner, teachers aside: cross-entropy, squared error, ...; scalar."""
    terms = list(batch.task.supervised(learner.rows, batch.targets).values())
    return terms[0] if len(terms) == 1 else torch.stack(terms).sum()


def cross_entropy(rows: Tensor, targets: Targets | Tensor) -> Tensor:
    """mean_r -sum_c y_rc ln softmax(z_r)_c of logits (R, C); nats, scalar. Rows of weight 0 do not count.

    `targets` are a batch's, or probabilities (R, C).
    """
    log_p = F.log_softmax(wide(rows), dim=1)
    if not isinstance(targets, Targets):
        return -(targets * log_p).sum(1).mean()
    if targets.hard:
        terms = -log_p.gather(1, targets.values[:, None]).squeeze(1)
    else:
        terms = -(targets.dense(log_p.dtype) * log_p).sum(1)
    return row_mean(terms, targets)


def squared_error(rows: Tensor, values: Targets | Tensor) -> Tensor:
    """Mean squared difference of numbers (R, D), over rows and numbers; scalar. Rows of weight 0 do not count."""
    targets = values if isinstance(values, Targets) else Targets(values)
    return row_mean((wide(rows) - wide(targets.values)).square().mean(1), targets)


def row_mean(terms: Tensor, targets: Targets) -> Tensor:
    """The mean of a term (R,) over the rows that count."""
    if targets.weight is None:
        return terms.mean()
    weight = targets.weight.to(terms.dtype)
    return (weight * terms).sum() / weight.sum().clamp_min(1)


def log_probabilities(rows: Tensor, temperature: float = 1.0) -> Tensor:
    """ln softmax(z / T) of logits (R, C), in float32 or wider."""
    return F.log_softmax(wide(rows) / temperature, dim=1)


def kl_rows(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q) of each row, from logarithms of probabilities (R, C); nats, (R,). Both may have a gradient."""
    return (log_p.exp() * (log_p - log_q)).sum(1)


def soft_kl(logits_s_BC: Tensor, logits_t_BC: Tensor, temperature: float) -> Tensor:
    """T^2 mean_b KL(softmax(z_t / T) || softmax(z_s / T)); nats, scalar.

    The mean is over the B examples, not over the B*C numbers (PyTorch's default reduction of `kl_div`). The factor T^2
    keeps gradients of the same size for every T (Hinton et al. 2015, section 2.1).
    """
    log_s_BC = F.log_softmax(wide(logits_s_BC) / temperature, dim=1)
    log_t_BC = F.log_softmax(wide(logits_t_BC) / temperature, dim=1)
    return F.kl_div(log_s_BC, log_t_BC, reduction="batchmean", log_target=True) * temperature**2


def mean_of(terms: Iterable[Tensor]) -> Tensor:
    """The mean of one term for each teacher: identical teachers count as one, at any number of them.

    Raises:
        ValueError: there is no teacher.
    """
    found = list(terms)
    if not found:
        raise ValueError("a distillation term needs a teacher, and the plan gives this learner none")
    return found[0] if len(found) == 1 else torch.stack(found).mean(0)


def map_shape(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """(D, H, W) of a block's feature, given without the batch dimension: a map, tokens (L, D), or a vector (D,).

    Tokens form a square grid; one further token, the class token, comes first. A vector is a map of one position.

    Raises:
        Refusal: tokens that form no square.
    """
    if len(shape) == 3:
        return (shape[0], shape[1], shape[2])
    if len(shape) == 1:
        return (shape[0], 1, 1)
    if len(shape) != 2:
        raise Refusal(f"a block answers features of shape {shape}, which are neither a map, nor tokens, nor a vector")
    tokens, side = shape[0], math.isqrt(shape[0])
    if side and tokens - side * side in (0, 1):
        return (shape[1], side, side)
    raise Refusal(f"a block answers {tokens} tokens, which form no square map (with or without a class token)")


def as_map(feature: Tensor) -> Tensor:
    """A block's feature as a map (B, D, H, W): maps as they are, tokens (B, L, D) as their grid, vectors as 1 x 1."""
    channels, height, width = map_shape(tuple(feature.shape[1:]))
    if feature.ndim == 3:
        feature = feature[:, feature.shape[1] - height * width :].transpose(1, 2)
    return feature.reshape(-1, channels, height, width)


def pool_to_smaller(map_s: Tensor, map_t: Tensor) -> tuple[Tensor, Tensor]:
    """Both maps at the smaller of the two sizes, by adaptive average pooling; (B, D, H, W) each, channels unchanged."""
    size = (min(map_s.shape[2], map_t.shape[2]), min(map_s.shape[3], map_t.shape[3]))

    def pooled(x: Tensor) -> Tensor:
        return x if tuple(x.shape[2:]) == size else F.adaptive_avg_pool2d(x, size)

    return pooled(map_s), pooled(map_t)
