"""What one example looks like to a model: the one place for building networks, counting, taps, latency and exports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

from kdbench.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

ALONE = "x"  # the name of an input that is the only one: models then take a bare tensor


@dataclass(frozen=True)
class Input:
    """One tensor of an example, without the batch dimension; `low` and `high` bound its values where they are known."""

    shape: tuple[int, ...]
    dtype: str = "float32"
    low: float | None = None
    high: float | None = None

    def zeros(self, batch: int, dtype: torch.dtype | None, device: torch.device | str | None) -> Tensor:
        """Integers stay what they are; numbers take the precision asked for."""
        own: torch.dtype = getattr(torch, self.dtype)
        wanted = dtype if dtype is not None and own.is_floating_point else own
        return torch.zeros((batch, *self.shape), dtype=wanted, device=device)

    def __str__(self) -> str:
        return "x".join(map(str, self.shape))


@dataclass(frozen=True)
class Signature:
    """The inputs of a model by name. A single one called `x` is given as a tensor, others as a dict, by name."""

    inputs: Mapping[str, Input]

    @classmethod
    def of(cls, shape: tuple[int, ...]) -> Signature:
        """Of one tensor of numbers: images (channels, H, W), maps, or rows (F,)."""
        return cls({ALONE: Input(tuple(shape))})

    @property
    def alone(self) -> Input | None:
        """The only input, where it is one tensor."""
        return self.inputs[ALONE] if set(self.inputs) == {ALONE} else None

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the only input; () where there are several."""
        return self.alone.shape if self.alone else ()

    @property
    def features(self) -> int:
        """How many numbers an example has in all."""
        return sum(prod(each.shape) for each in self.inputs.values())

    def zeros(
        self, batch: int, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None
    ) -> Tensor | dict[str, Tensor]:
        """A batch of empty examples, as a model takes it."""
        made = {name: each.zeros(batch, dtype, device) for name, each in self.inputs.items()}
        return made[ALONE] if self.alone else made

    def __str__(self) -> str:
        """ "3x32x32", or "tokens 64, mask 64"."""
        return str(self.alone) if self.alone else ", ".join(f"{name} {each}" for name, each in self.inputs.items())


def signature_of(given: Signature | tuple[int, ...]) -> Signature:
    """A shape as the signature of one tensor."""
    return given if isinstance(given, Signature) else Signature.of(given)
