"""Knowledge Distillation via Softmax Regression Representation Learning (SRRL).

J. Yang, B. Martinez, A. Bulat, G. Tzimiropoulos. ICLR 2021.

    u = g(v_s)        L = CE + w [ mean (u - v_t)^2 + mean (W_t u - z_t)^2 ]

v are the pooled features (B, D), z_t the teacher's logits, W_t its classifier, frozen: the student's feature, led
through it, shall answer what the teacher answers. g is a linear layer, BatchNorm, ReLU; both parts have the same
weight, 1 (5 in some re-implementations on CIFAR-100). Deviation: g acts on the pooled feature, not on the last map (a
1x1 convolution there). A teacher whose classifier is not linear is refused.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kdbench.batch import Batch, Out, Profile
from kdbench.lazy import F, nn
from kdbench.losses import mean_of, supervised, wide
from kdbench.method import Method, Needs, Paper, Refusal, knob

if TYPE_CHECKING:
    from torch import Tensor


def srrl_loss(u_BD: Tensor, answer_BC: Tensor, feature_t_BD: Tensor, logits_t_BC: Tensor) -> Tensor:
    """Mean squared differences of features and of logits, together; scalar."""
    features = F.mse_loss(wide(u_BD), wide(feature_t_BD))
    return features + F.mse_loss(wide(answer_BC), wide(logits_t_BC))


def linear_classifier(profile: Profile, method: str) -> nn.Linear:
    """A network's classifier. Raises Refusal, in the method's name, where it is not one linear layer."""
    model: Any = profile.model
    found = model.get_submodule(model.kd_classifier)
    if not isinstance(found, nn.Linear) or found.in_features != profile.taps["pooled"][0]:
        raise Refusal(f"{method} needs a linear classifier, and that of {profile.role} is {type(found).__name__}")
    return found


@dataclass(frozen=True)
class SRRL(Method):
    """Softmax regression: the student's feature in the teacher's classifier (Yang et al. 2021)."""

    family = "features"
    paper = Paper("Knowledge Distillation via Softmax Regression Representation Learning", "ICLR", 2021)

    weight: float = knob(1.0, "weight of both distances", low=0.01, high=100.0, log=True)
    ce_weight: float = knob(1.0, "weight of the cross-entropy with the labels", low=0.0, high=2.0)

    def needs(self) -> Needs:
        return Needs(learner=("pooled",), teacher=("pooled",))

    def heads(self, learner: Profile, teachers: Mapping[str, Profile]) -> nn.Module:
        (width_s,) = learner.taps["pooled"]
        made = nn.ModuleList()
        for teacher in teachers.values():
            classifier = copy.deepcopy(linear_classifier(teacher, "srrl")).requires_grad_(False)
            (width_t,) = teacher.taps["pooled"]
            connect = nn.Sequential(nn.Linear(width_s, width_t), nn.BatchNorm1d(width_t), nn.ReLU())
            made.append(nn.ModuleDict({"connect": connect, "classifier": classifier}))
        return made

    def loss(self, learner: Out, teachers: Mapping[str, Out], batch: Batch, heads: Any) -> dict[str, Tensor]:
        pairs = zip(heads, teachers.values(), strict=True)
        srrl = mean_of(self._term(head, learner, teacher) for head, teacher in pairs)
        return {"ce": self.ce_weight * supervised(learner, batch), "srrl": self.weight * srrl}

    def _term(self, head: Any, learner: Out, teacher: Out) -> Tensor:
        u_BD = head["connect"](learner.pooled)
        return srrl_loss(u_BD, head["classifier"](u_BD), teacher.pooled, teacher.rows)
