"""CutMix: a window of each image is replaced by the same window of another, and the labels are mixed by its area.

S. Yun et al., "CutMix: Regularization Strategy to Train Strong Classifiers with Localizable Features", ICCV 2019.

    x_i' = x_j inside the window, x_i outside      y_i' = lambda y_i + (1 - lambda) y_j      lambda = 1 - area / (HW)

The window has sides sqrt(1 - Beta(alpha, alpha)) of the image's, a uniform centre, and is clipped to the image; lambda
is of the clipped window. Deviation: window and coin are drawn for each example (the paper: for each batch) and
are a function of (seed, epoch, example); the partner j is the batch's previous example, which the data order makes
random. So it does not matter how a run was interrupted. All views of a batch share windows and partners.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from kdbench.streams import derive, integers, uniform
from kdbench.suite.fields import CutMix
from kdbench.targets import Targets

GRID = 4096


def cut_and_mixed(
    views: Sequence[Tensor], targets: Targets, index_B: Tensor, spec: CutMix, *, seed: int, epoch: int
) -> tuple[list[Tensor], Targets]:
    """The views (B, channels, H, W) with their windows replaced, and the mixed targets. Nothing is drawn anew.

    The batch must be in the order of the epoch: example i takes its window from example i - 1 (0 from the last).
    """
    height, width = views[0].shape[2:]
    box_B4 = windows(index_B, height, width, spec, seed=seed, epoch=epoch)
    top, left, bottom, right = (edge[:, None, None, None] for edge in box_B4.unbind(1))
    row = torch.arange(height, device=index_B.device)[None, None, :, None]
    column = torch.arange(width, device=index_B.device)[None, None, None, :]
    inside = (row >= top) & (row < bottom) & (column >= left) & (column < right)
    mixed = [torch.where(inside, view.roll(1, 0), view) for view in views]
    area_B = (box_B4[:, 2] - box_B4[:, 0]) * (box_B4[:, 3] - box_B4[:, 1])
    kept_B = 1 - area_B.to(torch.float32) / (height * width)
    return mixed, targets.mixed(torch.arange(len(index_B), device=index_B.device).roll(1), kept_B)


def windows(index_B: Tensor, height: int, width: int, spec: CutMix, *, seed: int, epoch: int) -> Tensor:
    """int64 (B, 4): top, left, bottom, right (exclusive) of each example's window; empty where it is not mixed."""

    def key(name: str) -> int:
        return derive(seed, "cutmix", name, epoch)

    side_B = _sides(spec.alpha, index_B.device)[integers(key("side"), index_B, GRID)]
    side_B = side_B * (uniform(key("coin"), index_B) < spec.probability)
    edges = []
    for name, length in (("row", height), ("column", width)):
        centre_B = integers(key(name), index_B, length)
        half_B = (side_B * length / 2).long()
        even_B = (side_B * length).long() - half_B  # an odd side has its longer half after the centre
        edges.append(((centre_B - half_B).clamp_min(0), (centre_B + even_B).clamp_max(length)))
    (top_B, bottom_B), (left_B, right_B) = edges
    return torch.stack([top_B, left_B, bottom_B, right_B], dim=1)


@lru_cache(maxsize=16)
def _sides(alpha: float, device: torch.device) -> Tensor:
    """sqrt(1 - Beta(alpha, alpha)) at GRID equally likely values: a table, so that devices agree to the bit."""
    from scipy.special import betaincinv

    quantiles = (torch.arange(GRID, dtype=torch.float64) + 0.5) / GRID
    values = torch.as_tensor(betaincinv(alpha, alpha, quantiles.numpy()))
    return (1 - values).clamp(0, 1).sqrt().to(torch.float32).to(device)
