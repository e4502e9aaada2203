"""Robustness-Reinforced Knowledge Distillation with Correlation Distance and Network Pruning (R2KD).

S. Kim, G. Ham, Y. Cho, D. Kim. IEEE TKDE 2024.

    z_t' = share z_t + (1 - share) z_pruned        p = softmax(z / T)
    V = 1 - mean_b |cos(p_s[b, :], p_t[b, :])| + 1 - mean_c |cos(p_s[:, c], p_t[:, c])|
    L = CE + sum over two views [ w_v T^2 V + w_r (1 - mean_b spearman(p_s[b, :], p_t[b, :])) ]

z logits (B, C). z_pruned is of a copy of the teacher without the smallest 10% of the weights of each convolution and
linear layer, not trained again; it sees the pixels of each view, one more pass of the teacher. T 4, w_v 2, w_r 2, share
0.7 are the released values. The second view is another draw of the recipe's augmentation (the paper's: CutMix).

Ranks have no gradient, so the released term has no effect (`as_released`). Here they are soft: r_i = 1/2 + sum_j
sigmoid((l_i - l_j) / width) with l = ln p, whose order is that of p; memory (B, C, C).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kdbench.batch import Batch, Out, Profile
from kdbench.lazy import F, nn, torch
from kdbench.losses import log_probabilities, mean_of, supervised, wide
from kdbench.method import Method, Needs, Paper, Refusal, knob
from kdbench.methods.dist import pearson

if TYPE_CHECKING:
    from torch import Tensor


def value_distance(p_s_BC: Tensor, p_t_BC: Tensor) -> Tensor:
    """Uncentred, absolute correlation distance over classes and over examples; in [0, 2], scalar."""
    over_classes, over_examples = (F.cosine_similarity(p_s_BC, p_t_BC, dim=dim).abs().mean() for dim in (1, 0))
    return 2 - over_classes - over_examples


def soft_ranks(values_RC: Tensor, width: float) -> Tensor:
    """Ranks 1..C in ascending order, softened by `width`; exact as it tends to 0. (R, C)."""
    return 0.5 + torch.sigmoid((values_RC[:, :, None] - values_RC[:, None, :]) / width).sum(2)


def rank_distance(log_s_BC: Tensor, log_t_BC: Tensor, width: float | None) -> Tensor:
    """1 - mean rank correlation of rows, in [0, 2]; without `width` of exact ranks, which have no gradient. Scalar."""
    ranks_s, ranks_t = (
        log_BC.argsort(1).argsort(1).to(log_BC.dtype) if width is None else soft_ranks(log_BC, width)
        for log_BC in (log_s_BC, log_t_BC)
    )
    return 1 - pearson(ranks_s, ranks_t, dim=1).mean()


def pruned(model: nn.Module, amount: float) -> nn.Module:
    """A frozen copy without the share `amount` of smallest weights of each convolution and linear layer."""
    model = copy.deepcopy(model).requires_grad_(False)
    for layer in model.modules():
        if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Linear):
            kept = torch.ones(layer.weight.numel(), dtype=layer.weight.dtype, device=layer.weight.device)
            kept[layer.weight.detach().abs().flatten().argsort()[: round(amount * len(kept))]] = 0
            layer.weight.mul_(kept.view(layer.weight.shape))
    return model


@dataclass(frozen=True)
class R2KD(Method):
    """Correlations of values and ranks, two views, a teacher blended with its pruned self (Kim et al. 2024)."""

    family = "logits"
    paper = Paper(
        "Robustness-Reinforced Knowledge Distillation with Correlation Distance and Network Pruning",
        "IEEE TKDE",
        2024,
        "2311.13934",
    )

    temperature: float = knob(4.0, "softens both distributions", low=1.0, high=20.0, log=True)
    value_weight: float = knob(2.0, "weight of the correlation of values", low=0.0, high=10.0)
    rank_weight: float = knob(2.0, "weight of the correlation of ranks", low=0.0, high=10.0)
    prune: float = knob(0.1, "share of weights that the teacher's copy lacks", low=0.0, high=0.9)
    share: float = knob(0.7, "of the whole teacher in the logits", low=0.0, high=1.0)
    width: float = knob(0.1, "softness of ranks, in differences of ln p", low=0.01, high=1.0, log=True)
    as_released: bool = knob(False, "exact ranks, without a gradient")

    def needs(self) -> Needs:
        return Needs(views=2, categorical=True)

    def heads(self, learner: Profile, teachers: Mapping[str, Profile]) -> nn.Module:
        if learner.classes < 3:
            raise Refusal(f"r2kd ranks classes and needs three or more; this data set has {learner.classes}")
        return nn.ModuleList(pruned(t.model, self.prune) for t in teachers.values())

    def loss(self, learner: Out, teachers: Mapping[str, Out], batch: Batch, heads: Any) -> dict[str, Tensor]:
        pairs = zip(heads.children(), teachers.values(), strict=True)
        r2kd = mean_of(self._views(learner, teacher, batch, copied.eval()) for copied, teacher in pairs)
        return {"ce": supervised(learner, batch), "r2kd": r2kd}

    def _views(self, learner: Out, teacher: Out, batch: Batch, copied: nn.Module) -> Tensor:
        seen = zip((learner, *learner.views), (teacher, *teacher.views), (batch.x, *batch.views), strict=True)
        return torch.stack([self._distance(s.rows, self._blend(t.rows, x, batch, copied)) for s, t, x in seen]).sum()

    def _blend(self, rows_t_BC: Tensor, x: Any, batch: Batch, copied: nn.Module) -> Tensor:
        with torch.no_grad():
            rows_BC = batch.task.rows(wide(copied(x)), batch)
        return self.share * wide(rows_t_BC) + (1 - self.share) * rows_BC

    def _distance(self, rows_s_BC: Tensor, rows_t_BC: Tensor) -> Tensor:
        log_s, log_t = (log_probabilities(rows, self.temperature) for rows in (rows_s_BC, rows_t_BC))
        value = self.temperature**2 * value_distance(log_s.exp(), log_t.exp())
        rank = rank_distance(log_s, log_t, None if self.as_released else self.width)
        return self.value_weight * value + self.rank_weight * rank
