"""Contrastive representation distillation (Tian, Krishnan & Isola, ICLR 2020).

    L = CE + w (NCE(v_t; memory of students) + NCE(v_s; memory of teachers)),   v = linear(pooled) / ||.||_2
    NCE = -mean_b [ ln h(b) + sum_{k=1..K} ln (1 - h(k)) ],   h = x / (x + K / N),   x = exp(<m, v> / tau) / Z

Both memories hold one unit vector for each of the N training examples, moved by momentum; Z is fixed at the first batch
to N times the mean of exp(<m, v> / tau). Negatives are drawn uniformly from the training set, as in the official code
(the positive among them at chance). Scores against the whole memory are one product, from which the K + 1 are
gathered: the same numbers as the official gather of vectors, at a fraction of its memory traffic.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kdbench.batch import Batch, Out, Profile
from kdbench.lazy import F, nn, torch
from kdbench.losses import cross_entropy
from kdbench.method import Method, Needs, knob

if TYPE_CHECKING:
    from torch import Tensor


def nce_loss(x_BK: Tensor, examples: int) -> Tensor:
    """Noise-contrastive loss of normalised scores (B, 1 + K), the positive first: a scalar (Eq. 10 of the paper)."""
    negatives = x_BK.shape[1] - 1
    noise = negatives / examples
    positive_B = torch.log(x_BK[:, 0] / (x_BK[:, 0] + noise + 1e-7))
    negative_B = torch.log(noise / (x_BK[:, 1:] + noise + 1e-7)).sum(dim=1)
    return -(positive_B + negative_B).mean()


def scores(v_BD: Tensor, memory_ND: Tensor, index_BK: Tensor, constant: Tensor, temperature: float) -> Tensor:
    """exp(<m, v> / tau) / Z, (B, 1 + K). `constant` holds Z, and is set here while it is still negative."""
    x_BK = torch.exp((v_BD @ memory_ND.t()).gather(1, index_BK) / temperature)
    with torch.no_grad():
        constant.copy_(torch.where(constant < 0, x_BK.mean() * len(memory_ND), constant))
    return x_BK / constant.clone()


@dataclass(frozen=True)
class CRD(Method):
    """Tell the student's view of an example from other examples by the teacher's, and the other way round."""

    weight: float = knob(0.8, "weight of both contrasts", low=0.01, high=8.0, log=True)
    negatives: int = knob(16384, "negatives K of each example", low=1, high=65536, log=True)
    temperature: float = knob(0.07, "tau of the scores", low=0.01, high=1.0, log=True)
    momentum: float = knob(0.5, "of the memories", low=0.0, high=0.99)
    dimension: int = knob(128, "D of the embedding", low=8, high=512, log=True)
    ce_weight: float = knob(1.0, "weight of the labels", low=0.0, high=2.0)

    def needs(self) -> Needs:
        return Needs(learner=("pooled",), teacher=("pooled",))

    def heads(self, learner: Profile, teachers: Mapping[str, Profile]) -> nn.Module:
        heads = nn.ModuleDict()
        for role, teacher in teachers.items():
            side = nn.ModuleDict(
                {
                    "student": nn.Linear(learner.taps["pooled"][0], self.dimension),
                    "teacher": nn.Linear(teacher.taps["pooled"][0], self.dimension),
                }
            )
            for name in ("student", "teacher"):
                memory_ND = torch.rand(learner.examples, self.dimension) * 2 - 1
                side.register_buffer(f"memory_{name}", memory_ND * (3 / self.dimension) ** 0.5)
                side.register_buffer(f"constant_{name}", torch.tensor(-1.0))
            heads[role] = side
        return heads

    def loss(self, learner: Out, teachers: Mapping[str, Out], batch: Batch, heads: nn.Module) -> dict[str, Tensor]:
        terms = [self._contrast(learner, t, batch, heads.get_submodule(role)) for role, t in teachers.items()]
        ce = self.ce_weight * cross_entropy(learner.logits_BC, batch.targets_BC)
        return {"ce": ce, "crd": self.weight * torch.stack(terms).mean()}

    def _contrast(self, learner: Out, teacher: Out, batch: Batch, side: nn.Module) -> Tensor:
        said = {"student": learner.pooled, "teacher": teacher.pooled}
        v_BD = {name: F.normalize(side.get_submodule(name)(x).float(), dim=1) for name, x in said.items()}
        memory_ND = {name: side.get_buffer(f"memory_{name}") for name in said}
        examples = len(memory_ND["student"])
        others_BK = torch.randint(
            examples, (len(batch.index_B), self.negatives), generator=batch.rng, device=batch.index_B.device
        )
        index_BK = torch.cat([batch.index_B[:, None], others_BK], dim=1)
        loss = torch.zeros((), device=index_BK.device)
        for name, other in (("student", "teacher"), ("teacher", "student")):
            # The product keeps the memory for its gradient, so it gets a copy: the memory itself moves on below.
            x_BK = scores(
                v_BD[name], memory_ND[other].clone(), index_BK, side.get_buffer(f"constant_{name}"), self.temperature
            )
            loss = loss + nce_loss(x_BK, examples)
        with torch.no_grad():
            for name, memory in memory_ND.items():
                moved_BD = self.momentum * memory[batch.index_B] + (1 - self.momentum) * v_BD[name]
                memory.index_copy_(0, batch.index_B, F.normalize(moved_BD, dim=1))
        return loss
