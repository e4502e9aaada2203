"""Knowledge distillation: A good teacher is patient and consistent (function matching).

L. Beyer, X. Zhai, A. Royer, L. Markeeva, R. Anil, A. Kolesnikov. CVPR 2022.

    x' = lambda x + (1 - lambda) x[perm], lambda uniform        L = T^2 mean_b KL(softmax(z_t / T) || softmax(z_s / T))

z_s and z_t are logits (B, C) of the very same mixed pixels. No label is used: permuting labels changes nothing. T = 1
is the paper's ImageNet value (it tunes T in 1, 2, 5, 10). Much of the paper's result is patience: give the recipe many
epochs. The mixing is that of `mixup`, one lambda a batch; alpha = 1 is the uniform distribution.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kdbench.batch import Batch, Out
from kdbench.losses import mean_of, soft_kl
from kdbench.method import Method, Needs, Paper, knob
from kdbench.methods.mixup import Mixup

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class FunctionMatching(Method):
    """Function matching: the teacher's answers on mixed images, without labels (Beyer et al. 2022)."""

    family = "logits"
    paper = Paper("Knowledge distillation: A good teacher is patient and consistent", "CVPR", 2022, "2106.05237")

    temperature: float = knob(1.0, "softens both distributions", low=1.0, high=20.0, log=True)
    alpha: float = knob(1.0, "lambda is Beta(alpha, alpha); 0 mixes nothing", low=0.0, high=4.0)
    weight: float = knob(1.0, "weight of the only term", low=0.01, high=100.0, log=True)

    def needs(self) -> Needs:
        return Needs(categorical=True, mixable=True)

    def batch(self, batch: Batch) -> Batch:
        return Mixup(alpha=self.alpha).batch(batch)

    def loss(self, learner: Out, teachers: Mapping[str, Out], batch: Batch, heads: nn.Module) -> dict[str, Tensor]:
        kl = mean_of(soft_kl(learner.rows, t.rows, self.temperature) for t in teachers.values())
        return {"function_matching": self.weight * kl}
