"""mixup (Zhang, Cisse, Dauphin & Lopez-Paz, ICLR 2018), over any method.

    x = lambda x_i + (1 - lambda) x_j,   y = lambda y_i + (1 - lambda) y_j,   lambda ~ Beta(alpha, alpha)

One lambda and one permutation for each batch, as in the released code. Teacher and student see the same mixed pixels
(the consistent teaching of Beyer et al., CVPR 2022). Alone it is a control without a teacher. Methods that need hard
labels refuse it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from kdbench.batch import Batch
from kdbench.lazy import torch
from kdbench.method import Method, Wrapper, knob
from kdbench.methods.none import NoTeacher

if TYPE_CHECKING:
    from torch import Tensor


def beta(alpha: float, rng: torch.Generator) -> Tensor:
    """One draw from Beta(alpha, alpha), a scalar on the generator's device: X / (X + Y) of two gammas."""
    concentration_2 = torch.full((2,), alpha, device=rng.device)
    # Tiny gammas underflow to zero together at small alpha; the floor makes that lambda = 1/2 and not NaN.
    x, y = torch._standard_gamma(concentration_2, generator=rng).clamp(min=1e-30)
    return x / (x + y)


@dataclass(frozen=True)
class Mixup(Wrapper):
    """Train on convex combinations of examples and of their labels."""

    over: Method = NoTeacher()
    alpha: float = knob(0.2, "of the Beta distribution of the mixing weight", low=0.01, high=4.0, log=True)

    def batch(self, batch: Batch) -> Batch:
        share = beta(self.alpha, batch.rng)
        other_B = torch.randperm(len(batch.index_B), generator=batch.rng, device=batch.index_B.device)

        def mix(value: Tensor) -> Tensor:
            return share * value + (1 - share) * value[other_B]

        views = tuple(mix(view) for view in batch.views)
        return self.over.batch(replace(batch, x=mix(batch.x), targets_BC=mix(batch.targets_BC), views=views))
