"""Weights that are functions of other parameters while a student learns, and plain ones again in what is deployed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

TINY = 1e-30  # a power of zero has no derivative below an exponent of one


class Power(nn.Module):
    """W = phi |phi|^(alpha - 1), element by element; the identity, to the bit, for alpha = 1."""

    def __init__(self, alpha: float) -> None:
        super().__init__()
        self.alpha = alpha

    def forward(self, phi: Tensor) -> Tensor:
        return phi if self.alpha == 1 else phi * phi.abs().clamp_min(TINY).pow(self.alpha - 1)

    def right_inverse(self, weight: Tensor) -> Tensor:
        return weight if self.alpha == 1 else weight.sign() * weight.abs().pow(1 / self.alpha)


def register(layer: nn.Module, name: str, kind: Any) -> nn.Parameter:
    """Replace the parameter `name` of a layer by one of which it is a function, and return that."""
    kind.layout = tuple(layer._parameters)  # names of the layer's parameters, in their order before
    parametrize.register_parametrization(layer, name, kind)
    held: Any = layer.parametrizations[name]  # type: ignore[index]
    found: nn.Parameter = held.original
    return found


def weights(model: nn.Module, kind: type[nn.Module]) -> list[tuple[str, nn.Module, str]]:
    """(path, layer, name of the parameter) of all weights that are functions of this kind."""
    return [
        (path, layer, name)
        for path, layer in model.named_modules()
        if parametrize.is_parametrized(layer)
        for name, held in layer.parametrizations.items()
        if isinstance(held[0], kind)
    ]


@torch.no_grad()
def fold(model: nn.Module, kind: type[nn.Module]) -> nn.Module:
    """Each weight of this kind as the plain parameter that it stands for, in place; returns the model."""
    for _, layer, name in weights(model, kind):
        held: Any = layer.parametrizations[name]  # type: ignore[index]
        layout, learns = held[0].layout, held.original.requires_grad
        # torch gives a deep copy the very class of the original, and removing the weight's property from it would take
        # the weight of the model that is still being trained.
        shared = type(layer)
        layer.__class__ = type(shared.__name__, shared.__bases__, dict(vars(shared)))
        weight = getattr(layer, name).detach().clone()
        parametrize.remove_parametrizations(layer, name)
        delattr(layer, name)
        layer.register_parameter(name, nn.Parameter(weight, requires_grad=learns))
        for key in layout:
            if key in layer._parameters:
                layer._parameters[key] = layer._parameters.pop(key)
    return model
