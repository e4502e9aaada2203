"""Training data-efficient image transformers & distillation through attention (DeiT).

H. Touvron, M. Cord, M. Douze, F. Massa, A. Sablayrolles, H. Jegou. ICML 2021 (arXiv 2012.12877).

    tokens = class, patches, distillation;    z_c = head(class token),  z_d = head_d(distillation token)
    hard    L = (1 - alpha) CE(y, z_c) + alpha CE(argmax z_t, z_d)
    soft    L = (1 - alpha) CE(y, z_c) + alpha T^2 mean_b KL(softmax(z_t / T) || softmax(z_d / T))
    deployed student: (z_c + z_d) / 2, with its token and its second head, which are counted

The teacher is learned by a token of its own, which takes part in attention. alpha 1/2 and the hard form are the paper's
choice; T 3 and alpha 0.1 those of its soft one. The student is a vision transformer of timm's with a class token; what
is added is drawn like the network's own (deviation 0.02). The position of the distillation token, a parameter of its
own in the paper, is part of the token here: only their sum is ever seen. Deviation: the released soft loss is divided
by B * C, here by B.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kdbench.batch import Batch, Out, Profile
from kdbench.lazy import nn
from kdbench.losses import cross_entropy, full_precision, mean_of, soft_kl, supervised, wide
from kdbench.method import Method, Needs, Paper, Refusal, knob
from kdbench.targets import Targets

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class DeiT(Method):
    """Distillation token: a transformer's second token and head learn from the teacher (Touvron et al. 2021)."""

    family = "logits"
    paper = Paper(
        "Training data-efficient image transformers & distillation through attention", "ICML", 2021, "2012.12877"
    )

    form: str = knob("hard", "the teacher's class, or its softened distribution", choices=("hard", "soft"))
    alpha: float = knob(0.5, "share of the teacher's term", low=0.05, high=0.95)
    temperature: float = knob(3.0, "soft form: softens both distributions", low=1.0, high=20.0, log=True)

    def needs(self) -> Needs:
        return Needs(learner=("pooled",), categorical=True)

    def prepare(self, model: nn.Module, role: str, teachers: Mapping[str, nn.Module]) -> nn.Module:
        from kdbench.methods._distillation_token import Append, Beside, TwoHeads

        net: Any = model
        token, head = getattr(net, "cls_token", None), getattr(net, "head", None)
        whole = isinstance(getattr(net, "blocks", None), nn.Sequential) and hasattr(net, "norm")
        if token is None or not whole or not isinstance(head, nn.Linear) or getattr(net, "global_pool", "") != "token":
            raise Refusal(
                f"deit adds a token to a vision transformer of timm's that answers from its class token, and the "
                f"{role} is {type(model).__name__}"
            )
        net.blocks[0] = nn.Sequential(Append(token), net.blocks[0])
        net.norm = nn.Sequential(net.norm, Beside())
        net.head = TwoHeads(head)
        return model

    def heads(self, learner: Profile, teachers: Mapping[str, Profile]) -> nn.Module:
        heads = nn.Module()
        heads.__dict__["student"] = learner.model  # a plain reference: its heads learn as parts of the student
        return heads

    def loss(self, learner: Out, teachers: Mapping[str, Out], batch: Batch, heads: Any) -> dict[str, Tensor]:
        with full_precision(learner.pooled):
            class_BC, teacher_BC = heads.student.head.both(wide(learner.pooled))
        ce = supervised(dataclasses.replace(learner, rows=class_BC), batch)
        term = mean_of(self._distance(teacher_BC, teacher.rows) for teacher in teachers.values())
        return {"ce": (1 - self.alpha) * ce, "deit": self.alpha * term}

    def _distance(self, rows: Tensor, teacher_rows: Tensor) -> Tensor:
        if self.form == "soft":
            return soft_kl(rows, teacher_rows, self.temperature)
        return cross_entropy(rows, Targets(teacher_rows.argmax(1), teacher_rows.shape[1]))
