"""mixup: Beyond Empirical Risk Minimization.

H. Zhang, M. Cisse, Y. N. Dauphin, D. Lopez-Paz. ICLR 2018.

    x' = lambda x + (1 - lambda) x[perm]        y' = lambda y + (1 - lambda) y[perm]        lambda ~ Beta(alpha, alpha)

One lambda and one permutation a batch, from `Batch.rng`; further views are mixed alike. The teacher sees the very same
pixels (protocol, rule 7). alpha = 1 is the paper's CIFAR value (0.1 to 0.4 on ImageNet); 0 mixes nothing. Default
inside: no teacher. Methods whose term contains the label itself are refused.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kdbench.batch import Batch
from kdbench.lazy import torch
from kdbench.method import Method, Needs, Paper, Refusal, Wrapper, knob
from kdbench.methods.none import NoTeacher

if TYPE_CHECKING:
    from torch import Tensor


def symmetric_beta(alpha: float, uniform_4: Tensor) -> Tensor:
    """Beta(alpha, alpha) from four uniform numbers (4, ...): exact for every alpha > 0, without rejection; (...).

    Y = (1 + sqrt(1 - u0^(2 / (2a - 1))) cos(2 pi u1)) / 2 is Beta(a, a) for a > 1/2 (G. Ulrich 1984; L. Devroye,
    Non-Uniform Random Variate Generation, 1986, IX.4). With a = alpha + 1, and Gamma(alpha) = Gamma(alpha + 1)
    u^(1 / alpha) in numerator and denominator, the odds Y / (1 - Y) (u2 / u3)^(1 / alpha) are those of Beta(alpha,
    alpha). So no value has to travel to the host, unlike with rejection.
    """
    tiny = torch.finfo(uniform_4.dtype).tiny
    u0, u1, u2, u3 = uniform_4.clamp_min(tiny)
    y = (1 + (1 - u0 ** (2 / (2 * alpha + 1))).sqrt() * torch.cos(2 * math.pi * u1)) / 2
    return torch.sigmoid(torch.logit(y, eps=tiny) + (u2.log() - u3.log()) / alpha)


def mixed(values: Tensor, other: Tensor, fraction: Tensor) -> Tensor:
    """fraction * values + (1 - fraction) * values[other], in the dtype of `values` (B, ...)."""
    fraction = fraction.to(values.dtype)
    return fraction * values + (1 - fraction) * values[other]


@dataclass(frozen=True)
class Mixup(Wrapper):
    """Mixup: convex combinations of images and of their labels, for whatever it wraps (Zhang et al. 2018)."""

    family = "examples"
    paper = Paper("mixup: Beyond Empirical Risk Minimization", "ICLR", 2018, "1710.09412")

    over: Method = NoTeacher()
    alpha: float = knob(1.0, "of Beta(alpha, alpha); 0 mixes nothing", low=0.0, high=4.0)

    def needs(self) -> Needs:
        needs = self.over.needs()
        if needs.hard_labels:
            raise Refusal(f"mixup mixes labels, but {type(self.over).__name__} needs hard labels")
        return dataclasses.replace(needs, mixable=True)

    def batch(self, batch: Batch) -> Batch:
        batch = self.over.batch(batch)
        if self.alpha == 0:
            return batch
        uniform_4 = torch.rand(4, generator=batch.rng, device=batch.rng.device, dtype=torch.float64)
        fraction = symmetric_beta(self.alpha, uniform_4)
        other_B = torch.rand(len(batch.index_B), generator=batch.rng, device=batch.rng.device).argsort()

        def mix(x: Any) -> Any:
            return mixed(x, other_B, fraction)

        targets = batch.targets.mixed(other_B, fraction.to(batch.x.dtype))
        return dataclasses.replace(batch, x=mix(batch.x), targets=targets, views=tuple(map(mix, batch.views)))
