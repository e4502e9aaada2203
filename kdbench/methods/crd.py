"""Contrastive Representation Distillation.

Y. Tian, D. Krishnan, P. Isola. ICLR 2020.

    x_k = exp(<v, m_k> / tau) / Z        h(x) = x / (x + K / N)
    L = CE + w sum over both ways of mean_b [ -ln h(x_0) - sum_k=1..K ln(1 - h(x_k)) ]

v is the embedded (linear, length 1) pooled feature of one network, m the memory of the other network's embeddings: m_0
that of the same example, m_1..m_K of others. Both memories (N, 128) are random at first and move with momentum 1/2.
Z = N mean x is set by the first batch and then fixed, as in the released code, whose defaults these are.

Deviations: negatives are uniform over all other examples (the paper's definition, the released code's draw without
labels; its CIFAR runs draw them from other classes), with replacement, from `Batch.rng`; more than N - 1 would only
repeat examples, so K is capped there. Products with the whole memory (B, N) are formed and then picked from, faster
than gathering (B, K, 128) unless N is far above 128 K. Under mixup an image counts as its first example.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kdbench.batch import Batch, Out, Profile
from kdbench.lazy import F, nn, torch
from kdbench.losses import full_precision, mean_of, supervised, wide
from kdbench.method import Method, Needs, Paper, Refusal, knob

if TYPE_CHECKING:
    from torch import Tensor

EPS = 1e-7  # the released code's


def nce(x_BK: Tensor, examples: int) -> Tensor:
    """Noise-contrastive loss of x (B, 1 + K), the positive first, over N `examples`; nats, scalar."""
    noise = (x_BK.shape[1] - 1) / examples
    positive_B = torch.log(x_BK[:, 0] / (x_BK[:, 0] + noise + EPS))
    negative_BK = torch.log(noise / (x_BK[:, 1:] + noise + EPS))
    return -(positive_B + negative_BK.sum(1)).mean()


def contrast(v_BD: Tensor, memory_ND: Tensor, chosen_BK: Tensor, z: Tensor, tau: float) -> tuple[Tensor, Tensor]:
    """One way: its loss, and Z, which is taken from this batch where `z` is still negative (no host sync)."""
    x_BK = torch.exp((v_BD @ memory_ND.T).gather(1, chosen_BK) / tau)
    z = torch.where(z < 0, x_BK.detach().mean() * len(memory_ND), z)
    return nce(x_BK / z, len(memory_ND)), z


def moved(memory_ND: Tensor, index_B: Tensor, v_BD: Tensor, momentum: float) -> Tensor:
    """A new memory: m <- normalise(momentum m + (1 - momentum) v) at `index_B`. Autograd still needs the old one."""
    rows_BD = momentum * memory_ND[index_B] + (1 - momentum) * v_BD.detach()
    return memory_ND.index_copy(0, index_B, F.normalize(rows_BD, dim=1))


@dataclass(frozen=True)
class CRD(Method):
    """Contrastive: tell an example's teacher feature from those of others (Tian, Krishnan & Isola 2020)."""

    family = "relations"
    paper = Paper("Contrastive Representation Distillation", "ICLR", 2020, "1910.10699")

    weight: float = knob(0.8, "weight of the contrastive term", low=0.01, high=10.0, log=True)
    negatives: int = knob(16384, "K, capped at the number of other examples", low=1, high=65536, log=True)
    temperature: float = knob(0.07, "tau, divides inner products", low=0.02, high=1.0, log=True)
    momentum: float = knob(0.5, "how much of a memory entry is kept", low=0.0, high=0.99)
    dimension: int = knob(128, "size of the embedding", low=8, high=1024, log=True)
    ce_weight: float = knob(1.0, "weight of the cross-entropy with the labels", low=0.0, high=2.0)

    def needs(self) -> Needs:
        return Needs(learner=("pooled",), teacher=("pooled",))

    def heads(self, learner: Profile, teachers: Mapping[str, Profile]) -> nn.Module:
        if learner.examples < 2:
            raise Refusal("crd contrasts an example with others, and there is only one training example")
        return nn.ModuleList(
            self._bank(learner.taps["pooled"][0], t.taps["pooled"][0], learner.examples) for t in teachers.values()
        )

    def _bank(self, features_s: int, features_t: int, examples: int) -> nn.Module:
        bank = nn.Module()
        bank.embed_s, bank.embed_t = nn.Linear(features_s, self.dimension), nn.Linear(features_t, self.dimension)
        bound = (3 / self.dimension) ** 0.5
        for side in ("s", "t"):
            bank.register_buffer(f"memory_{side}", torch.empty(examples, self.dimension).uniform_(-bound, bound))
            bank.register_buffer(f"z_{side}", torch.full((), -1.0))
        return bank

    def loss(self, learner: Out, teachers: Mapping[str, Out], batch: Batch, heads: nn.Module) -> dict[str, Tensor]:
        pairs = zip(heads.children(), teachers.values(), strict=True)
        crd = mean_of(self._both_ways(bank, learner.pooled, teacher.pooled, batch) for bank, teacher in pairs)
        return {"ce": self.ce_weight * supervised(learner, batch), "crd": self.weight * crd}

    def _both_ways(self, bank: Any, pooled_s_BD: Tensor, pooled_t_BD: Tensor, batch: Batch) -> Tensor:
        index_B, examples = batch.index_B, len(bank.memory_s)
        shape = (len(index_B), min(self.negatives, examples - 1))
        steps_BK = torch.randint(1, examples, shape, generator=batch.rng, device=index_B.device)
        chosen_BK = torch.cat([index_B[:, None], (index_B[:, None] + steps_BK) % examples], dim=1)
        with full_precision(pooled_s_BD):
            s_BD = F.normalize(bank.embed_s(wide(pooled_s_BD)), dim=1)
            t_BD = F.normalize(bank.embed_t(wide(pooled_t_BD)), dim=1)
            loss_s, bank.z_s = contrast(s_BD, bank.memory_t, chosen_BK, bank.z_s, self.temperature)
            loss_t, bank.z_t = contrast(t_BD, bank.memory_s, chosen_BK, bank.z_t, self.temperature)
            bank.memory_s = moved(bank.memory_s, index_B, s_BD, self.momentum)
            bank.memory_t = moved(bank.memory_t, index_B, t_BD, self.momentum)
        return loss_s + loss_t
