"""Wasserstein Distance Rivals Kullback-Leibler Divergence for Knowledge Distillation (WKD).

J. Lv, H. Yang, P. Li. NeurIPS 2024.

    logits     T^2 mean_b min over transports pi from p_t to p_s of sum_cd pi_cd c_cd + eta sum pi ln pi (Sinkhorn)
               c_cd = 1 - exp(-kappa (1 - cos(W_c, W_d))), W the rows of the teacher's classifier
    features   mean_b [ ratio |m_s - m_t|^2 + |d_s - d_t|^2 ], m and d mean and deviation of each channel over places
    L = CE + w_logit logits + w_feature features

p = softmax(z / T). Classes that resemble each other lie near, so that mass may move between them cheaply; features are
normal distributions with diagonal covariances over the last map's places, the student's led through a 1x1 convolution,
BatchNorm and ReLU. The distance of equal distributions is above 0, by eta's smoothing. A weight of 0 leaves a part out.

T 2, eta 0.05 and ratio 2 are the paper's orders of size; weights, kappa and ten iterations are ours, to be searched
(the released ones are set by pair). Deviations: similarity of classes is the cosine of classifier rows (the paper's
other choice is CKA on training images); the target class is not separated.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kdbench.batch import Batch, Out, Profile
from kdbench.lazy import F, nn
from kdbench.losses import as_map, full_precision, map_shape, mean_of, pool_to_smaller, supervised, wide
from kdbench.method import Method, Needs, Paper, knob
from kdbench.methods.srrl import linear_classifier

if TYPE_CHECKING:
    from torch import Tensor

TINY = 1e-30


def class_costs(weight_CD: Tensor, kappa: float) -> Tensor:
    """c (C, C) of a classifier's rows, from 0 to 1; 0 on the diagonal."""
    unit_CD = F.normalize(wide(weight_CD), dim=1)
    return 1 - (-kappa * (1 - unit_CD @ unit_CD.T).clamp_min(0)).exp()


def sinkhorn(p_BC: Tensor, q_BC: Tensor, cost_CC: Tensor, eta: float, iterations: int) -> Tensor:
    """Cost of the transport from p to q that `iterations` of Sinkhorn's find; (B,). Both may have a gradient."""
    kernel_CC = (-cost_CC / eta).exp()
    v_BC = q_BC.new_ones(q_BC.shape)
    for _ in range(iterations):
        u_BC = p_BC / (v_BC @ kernel_CC.T).clamp_min(TINY)
        v_BC = q_BC / (u_BC @ kernel_CC).clamp_min(TINY)
    return (u_BC @ (kernel_CC * cost_CC) * v_BC).sum(1)


def gaussian(map_s_BDHW: Tensor, map_t_BDHW: Tensor, ratio: float) -> Tensor:
    """Mean over examples of the squared distances of means and deviations of the channels; scalar."""
    (mean_s, deviation_s), (mean_t, deviation_t) = (
        (x.mean(2), (x.var(2, correction=0) + 1e-6).sqrt()) for x in (map_s_BDHW.flatten(2), map_t_BDHW.flatten(2))
    )
    return (ratio * (mean_s - mean_t).square() + (deviation_s - deviation_t).square()).sum(1).mean()


@dataclass(frozen=True)
class WKD(Method):
    """Wasserstein distances of answers, across classes, and of features (Lv et al. 2024)."""

    family = "features"
    paper = Paper(
        "Wasserstein Distance Rivals Kullback-Leibler Divergence for Knowledge Distillation",
        "NeurIPS",
        2024,
        "2412.08139",
    )

    logit_weight: float = knob(10.0, "weight of the transport between answers", low=0.0, high=100.0)
    feature_weight: float = knob(0.01, "weight of the distance of features, a sum over channels", low=0.0, high=10.0)
    temperature: float = knob(2.0, "softens both distributions", low=1.0, high=20.0, log=True)
    kappa: float = knob(1.0, "sharpens the distances of classes", low=0.1, high=10.0, log=True)
    eta: float = knob(0.05, "smoothing of the transport", low=0.02, high=1.0, log=True)
    iterations: int = knob(10, "of Sinkhorn's", low=1, high=100)
    ratio: float = knob(2.0, "weight of means against deviations", low=0.1, high=10.0)
    ce_weight: float = knob(1.0, "weight of the cross-entropy with the labels", low=0.0, high=2.0)

    def needs(self) -> Needs:
        taps = (*(["pooled"] if self.logit_weight else []), *(["block-1"] if self.feature_weight else []))
        return Needs(learner=taps, teacher=taps)

    def heads(self, learner: Profile, teachers: Mapping[str, Profile]) -> nn.Module:
        return nn.ModuleList(self._head(learner, teacher) for teacher in teachers.values())

    def _head(self, learner: Profile, teacher: Profile) -> nn.Module:
        made = nn.Module()
        if self.logit_weight:
            costs_CC = class_costs(linear_classifier(teacher, "wkd").weight.detach(), self.kappa)
            made.register_buffer("costs", costs_CC)
        if self.feature_weight:
            channels_s, channels_t = (map_shape(profile.blocks[-1])[0] for profile in (learner, teacher))
            conv = nn.Conv2d(channels_s, channels_t, 1, bias=False)
            made.project = nn.Sequential(conv, nn.BatchNorm2d(channels_t), nn.ReLU())
        return made

    def loss(self, learner: Out, teachers: Mapping[str, Out], batch: Batch, heads: Any) -> dict[str, Tensor]:
        pairs = list(zip(heads, teachers.values(), strict=True))
        terms = {"ce": self.ce_weight * supervised(learner, batch)}
        if self.logit_weight:
            terms["wkd"] = self.logit_weight * mean_of(self._logits(h, learner.rows, t.rows) for h, t in pairs)
        if self.feature_weight:
            terms["wkd_features"] = self.feature_weight * mean_of(self._features(h, learner, t) for h, t in pairs)
        return terms

    def _logits(self, head: Any, rows_s: Tensor, rows_t: Tensor) -> Tensor:
        with full_precision(rows_s):
            p_s, p_t = ((wide(rows) / self.temperature).softmax(1) for rows in (rows_s, rows_t))
            return self.temperature**2 * sinkhorn(p_t, p_s, head.costs, self.eta, self.iterations).mean()

    def _features(self, head: Any, learner: Out, teacher: Out) -> Tensor:
        map_s, map_t = pool_to_smaller(as_map(learner.blocks[-1]), as_map(teacher.blocks[-1]))
        return gaussian(wide(head.project(map_s)), wide(map_t), self.ratio)
