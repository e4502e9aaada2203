"""Low-rank adapters: a trained network that stays as it is, but for small products added to its weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d)


class Adapter(nn.Module):
    """W + scale * up down, with `up` (out, r) and `down` (r, rest of the weight's shape); up is 0 at first."""

    def __init__(self, weight: Tensor, rank: int, scale: float) -> None:
        super().__init__()
        out, rest = weight.flatten(1).shape
        rank, self.scale = min(rank, out, rest), scale
        self.down = nn.Parameter(torch.randn(rank, rest).to(weight) / rest**0.5)
        self.up = nn.Parameter(torch.zeros(out, rank).to(weight))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.scale * (self.up @ self.down).view_as(weight)


def adapted(model: nn.Module, rank: int, scale: float) -> nn.Module:
    """The model, in place: frozen, in eval mode for good, with an adapter at every linear layer and convolution."""
    model.requires_grad_(False)
    for layer in [module for module in model.modules() if isinstance(module, LAYERS)]:
        parametrize.register_parametrization(layer, "weight", Adapter(layer.weight, rank, scale))
    return still(model)


def still(model: nn.Module) -> nn.Module:
    """The model, in place, which no longer enters training mode: statistics of batches stay as they were learned."""
    kind = type(model)

    def train(self: Any, mode: bool = True) -> Any:
        return kind.train(self, False)

    model.__class__ = type(kind.__name__, (kind,), {"train": train, "__module__": kind.__module__})
    return model.eval()
