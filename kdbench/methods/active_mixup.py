"""Neural Networks Are More Productive Teachers Than Human Raters: Active Mixup for Data-Efficient Knowledge
Distillation from a Blackbox Model.

D. Wang, Y. Li, L. Wang, B. Gong. CVPR 2020 (arXiv 2003.13960).

    round 0: n images x_i;     every further round:  for each pair (i, j) not chosen yet
        c_ij = min over lambda in .30, .34, ..., .70 of max_c p_s(lambda x_i + (1 - lambda) x_j)_c
        the k pairs of lowest c, each with its lambda, join what is trained on, and a new student starts
    L = -mean_b sum_c p_t,c ln p_s,c,   p_t asked once for each image or mixture, p = softmax(z)

A black box answers probabilities, and every answer has its price: n + k rounds queries in all, which a record counts
(`queries`, also beside each round's validation score in its curves). The student of the round before chooses what to
ask. No label is used. n of 500 to 2000 and k = 10,000 are the paper's, which goes on until enough is asked. A round
takes `share` of the recipe's epochs; the paper's is the same in each.

Deviations: both parts of a mixture are cropped and flipped each on its own, the paper crops the mixture; the last
epoch counts, the released code keeps the best on test. `candidates` above 0 looks at so many pairs drawn at random.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kdbench.batch import Batch, Chosen, Out, Pool
from kdbench.lazy import F, torch
from kdbench.losses import cross_entropy, mean_of, wide
from kdbench.method import Method, Needs, Paper, Plan, Stage, knob

if TYPE_CHECKING:
    from torch import Tensor, nn

RATIOS = tuple(round(0.3 + 0.04 * step, 2) for step in range(11))


def least_certain(certainty: Callable[[Tensor], Tensor], like: Tensor) -> tuple[Tensor, Tensor]:
    """For each pair the ratio (P,) at which the student is least certain, and how certain it is there (P,).

    Args:
        certainty: of all pairs at their ratios (P,): the highest probability (P,).
        like: (P,), for the dtype and the device.
    """
    lowest_P, ratio_P = torch.full_like(like, torch.inf), torch.zeros_like(like)
    for ratio in RATIOS:
        here_P = certainty(torch.full_like(like, ratio)).to(like.dtype)
        better_P = here_P < lowest_P
        lowest_P, ratio_P = torch.where(better_P, here_P, lowest_P), torch.where(better_P, ratio, ratio_P)
    return ratio_P, lowest_P


@dataclass(frozen=True)
class ActiveMixup(Method):
    """Active mixup: a black box is asked about few images, and mixtures that puzzle the student (Wang et al. 2020)."""

    family = "examples"
    paper = Paper(
        "Neural Networks Are More Productive Teachers Than Human Raters: Active Mixup for Data-Efficient Knowledge "
        "Distillation from a Blackbox Model",
        "CVPR",
        2020,
        "2003.13960",
    )

    images: int = knob(1000, "n, real ones, drawn at random; 0: all", low=0)
    rounds: int = knob(3, "of asking about mixtures, after that about images", low=0, high=20)
    pairs: int = knob(10000, "k, mixtures that join in each round", low=1)
    candidates: int = knob(0, "pairs that are looked at in a round, drawn at random; 0: all", low=0)
    share: float = knob(1.0, "epochs of all rounds but the last, as a share of the recipe's", low=0.05, high=2.0)

    def needs(self) -> Needs:
        return Needs(categorical=True, mixable=True)

    def plan(self, roles: tuple[str, ...]) -> Plan:
        before = tuple(f"round{number}" for number in range(self.rounds))
        stages = (*(Stage({role: ("teacher",)}, self.share) for role in before), Stage({"student": ("teacher",)}))
        return Plan(stages, copies=dict.fromkeys(before, "student"))

    def choose(self, pool: Pool) -> Chosen:
        if pool.chosen is None:
            order_N = torch.randperm(pool.examples, generator=pool.rng, device=pool.rng.device)
            return Chosen.whole(order_N[: self.images or None])
        first_M, other_M, _ = pool.chosen.parts
        real_n = first_M[first_M == other_M]
        first_P, other_P = real_n[torch.triu_indices(len(real_n), len(real_n), 1, device=real_n.device)]
        taken = torch.isin(first_P * pool.examples + other_P, first_M * pool.examples + other_M)
        order_P = torch.rand(len(first_P), generator=pool.rng, device=pool.rng.device).argsort()
        order_P = order_P[~taken[order_P]][: self.candidates or None]
        first_P, other_P = first_P[order_P], other_P[order_P]

        def certainty(ratio_P: Tensor) -> Tensor:
            rows_PC = pool.ask(f"round{pool.stage - 1}", Chosen(first_P, other_P, ratio_P))
            return F.softmax(wide(rows_PC), dim=1).amax(1)

        ratio_P, lowest_P = least_certain(certainty, torch.empty(len(first_P), device=first_P.device))
        kept = lowest_P.argsort(stable=True)[: self.pairs]
        return pool.chosen + Chosen(first_P[kept], other_P[kept], ratio_P[kept])

    def loss(self, learner: Out, teachers: Mapping[str, Out], batch: Batch, heads: nn.Module) -> dict[str, Tensor]:
        answers = (F.softmax(wide(teacher.rows), dim=1) for teacher in teachers.values())
        return {"active_mixup": mean_of(cross_entropy(learner.rows, answer) for answer in answers)}
