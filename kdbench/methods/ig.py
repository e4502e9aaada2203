"""Model compression using knowledge distillation with integrated gradients (KD + IG).

D. E. Hernandez, J. Chang, T. E. M. Nordling. arXiv 2506.14440, 2025 (and 2503.13008).

    IG(x)_i = x_i mean_k d f_c(x (k - 1/2) / S) / d x_i,  k = 1..S        m = sum over channels |IG(x)|
    x' = (1 - a) x + a minmax(m^s),  s = exp(u), u uniform in [0, ln 2]   with probability p, else x;    L = L_over(x')

Where the teacher looked, laid over the image. Maps are made once, of the unaugmented images, from zero (the mean
colour) to the image, of the teacher's own class c; they take the crop and flip of their image. For an overlaid image
the teacher answers on the image itself, unaugmented, as its stored logits do in the paper; for all others on what the
student sees, so that p = 0 is the wrapped method. S = 50 points in the middle of their steps sum to f_c(x) - f_c(0) to
about a percent. p 0.1 and a 1/2 are the released values; default inside: KD (there T 2.5 and 0.01 of it, beside 0.99 of
the labels, with maps and logits that, read in another order than they were saved in, belong to other images).

Deviations: the paper's class is the label; its images lie in [0, 1], here the map spans the range of its image; its
further attention term is `over: {method: at}`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from kdbench.batch import Batch, Out
from kdbench.lazy import torch
from kdbench.method import Method, Needs, Paper, Survey, Wrapper, knob
from kdbench.methods.kd import KD

if TYPE_CHECKING:
    from torch import Tensor, nn

STEPS = 50


def integrated_gradients(model: nn.Module, x: Tensor, steps: int = STEPS) -> Tensor:
    """How much of the logit of the model's own class is due to each number of x (B, ...), against x = 0; like x."""
    top_B1 = model(x).detach().argmax(1, keepdim=True)
    total = torch.zeros_like(x)
    for k in range(steps):
        at = ((k + 0.5) / steps * x).requires_grad_()
        total += torch.autograd.grad(model(at).gather(1, top_B1).sum(), at)[0]
    return x * total / steps


def importance(model: nn.Module, x: Tensor) -> Tensor:
    """The map of each image (B, 1, H, W), half precision, at most 1; its scale says nothing."""
    map_B1HW = integrated_gradients(model, x).abs().sum(1, keepdim=True)
    return (map_B1HW / map_B1HW.amax((1, 2, 3), keepdim=True).clamp_min(1e-30)).half()


def answers(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return model(x)


def overlaid(x: Tensor, map_B1HW: Tensor, power_B: Tensor, share: float) -> Tensor:
    """Images with their maps to a power laid over them, from the darkest to the brightest number of each."""
    powered = map_B1HW.to(x.dtype) ** power_B.to(x.dtype)[:, None, None, None]
    low, high = (end((1, 2, 3), keepdim=True) for end in (powered.amin, powered.amax))
    dark, bright = (end((1, 2, 3), keepdim=True) for end in (x.amin, x.amax))
    between = (powered - low) / (high - low).clamp_min(1e-6)
    return (1 - share) * x + share * (dark + (bright - dark) * between)


@dataclass(frozen=True)
class IG(Wrapper):
    """Integrated gradients: what the teacher looked at is laid over some images (Hernandez et al. 2025)."""

    family = "examples"
    paper = Paper("Model compression using knowledge distillation with integrated gradients", "", 2025, "2506.14440")

    extends: ClassVar[tuple[str, ...]] = ("loss",)

    over: Method = KD()
    probability: float = knob(0.1, "p, with which an image is overlaid", low=0.0, high=1.0)
    share: float = knob(0.5, "a, of the map in an overlaid image", low=0.05, high=0.95)

    def needs(self) -> Needs:
        needs = self.over.needs()
        own = (Survey("ig_map", "teacher", importance, image=True), Survey("ig_answer", "teacher", answers))
        return dataclasses.replace(needs, survey=(*needs.survey, *own), categorical=True, mixable=True)

    def batch(self, batch: Batch) -> Batch:
        batch, rng = self.over.batch(batch), batch.rng
        chance_B, u_B = torch.rand(2, len(batch.index_B), generator=rng, device=rng.device)
        chosen_B = chance_B < self.probability
        laid = overlaid(batch.x, batch.surveys["ig_map"], (math.log(2) * u_B).exp(), self.share)
        x = torch.where(chosen_B[:, None, None, None], laid, batch.x)
        return dataclasses.replace(batch, x=x, surveys={**batch.surveys, "ig_chosen": chosen_B})

    def loss(self, learner: Out, teachers: Mapping[str, Out], batch: Batch, heads: nn.Module) -> dict[str, Tensor]:
        if "ig_chosen" not in batch.surveys:  # nothing has been laid over this batch
            return self.over.loss(learner, teachers, batch, heads)
        teacher, stored = teachers["teacher"], batch.surveys["ig_answer"]
        rows = torch.where(batch.surveys["ig_chosen"][:, None], stored.to(teacher.rows.dtype), teacher.rows)
        return self.over.loss(learner, {**teachers, "teacher": dataclasses.replace(teacher, rows=rows)}, batch, heads)
