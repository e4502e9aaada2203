"""PaCKD: Pattern-Clustered Knowledge Distillation for Compressing Memory Access Prediction Models, on classes.

N. Gupta, P. Zhang, R. Kannan, V. Prasanna. HPEC 2023.

    c(x) = cluster of x, k-means on the teacher's logits
    expert i <- labels of the examples with c = i            L = CE over these
    student  <- for each example the expert of its cluster   L = w_ce CE + w_kd T^2 mean_b KL(p_expert_c(x) || p_s)

The experts are `clusters` copies of the teacher's model with initial weights of their own, trained first, all at once,
for the stage's epochs; the pair's teacher only clusters. One cluster is KD from a network like the teacher. The paper
clusters past addresses, deltas or program counters of memory traces, for bitmaps of labels (a Bernoulli KL at T 1 with
both weights 1/2), passes over the clusters in turn, which confounds order with clusters, and picks its clustering on
the test set: here batches are mixed, and the clustering is this one. T and weights are those of `kd`; k of 2 to 4 is
the paper's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from kdbench.batch import Batch, Out, Profile
from kdbench.lazy import nn, torch
from kdbench.losses import soft_kl, supervised
from kdbench.method import Method, Needs, Paper, Plan, Refusal, Stage, knob

if TYPE_CHECKING:
    from torch import Tensor


def k_means(rows_NC: Tensor, clusters: int) -> Tensor:
    """The cluster of each row, int64 (N,); the same for the same rows."""
    from sklearn.cluster import KMeans

    found = KMeans(clusters, n_init=11, random_state=0).fit_predict(rows_NC.double().cpu().numpy())
    return torch.as_tensor(found, dtype=torch.int64)


def routed(rows: list[Tensor], cluster_R: Tensor) -> Tensor:
    """For each row the logits of its cluster's expert; (R, C)."""
    rows_KRC = torch.stack(rows)
    return rows_KRC.gather(0, cluster_R[None, :, None].expand(1, *rows_KRC.shape[1:]))[0]


@dataclass(frozen=True)
class Clusters(Method):
    """An expert for each cluster of examples teaches the student on its own cluster (Gupta et al. 2023)."""

    family = "several teachers"
    paper = Paper(
        "PaCKD: Pattern-Clustered Knowledge Distillation for Compressing Memory Access Prediction Models",
        "HPEC",
        2023,
        "2402.13441",
    )

    clusters: int = knob(3, "of the training examples, each with an expert", low=1, high=8)
    share: float = knob(1.0, "epochs of the experts, as a share of the recipe's", low=0.05, high=2.0)
    temperature: float = knob(4.0, "softens both distributions", low=1.0, high=20.0, log=True)
    ce_weight: float = knob(0.1, "weight of the cross-entropy with the labels", low=0.0, high=2.0)
    kd_weight: float = knob(0.9, "weight of the distillation term", low=0.0, high=20.0)

    @property
    def experts(self) -> tuple[str, ...]:
        return tuple(f"expert{number + 1}" for number in range(self.clusters))

    def needs(self) -> Needs:
        return Needs(probe=True, categorical=True)

    def plan(self, roles: tuple[str, ...]) -> Plan:
        first = Stage(dict.fromkeys(self.experts, ("teacher",)), self.share)
        stages = (first, Stage({"student": ("teacher", *self.experts)}))
        return Plan(stages, copies=dict.fromkeys(self.experts, "teacher"))

    def heads(self, learner: Profile, teachers: Mapping[str, Profile]) -> nn.Module:
        expected = {"teacher"} if learner.role in self.experts else {"teacher", *self.experts}
        rows_NC = teachers["teacher"].rows_NC if "teacher" in teachers else None
        if set(teachers) != expected or rows_NC is None:
            raise Refusal(f"clusters wants the teachers {', '.join(sorted(expected))}, not {', '.join(teachers)}")
        if len(rows_NC) < self.clusters:
            raise Refusal(f"{len(rows_NC)} training examples cannot form {self.clusters} clusters")
        heads = nn.Module()
        heads.register_buffer("cluster_N", k_means(rows_NC, self.clusters))
        return heads

    def loss(self, learner: Out, teachers: Mapping[str, Out], batch: Batch, heads: nn.Module) -> dict[str, Tensor]:
        cluster_B = heads.get_buffer("cluster_N")[batch.index_B]
        if learner.role in self.experts:
            own_B = (cluster_B == self.experts.index(learner.role)).to(learner.rows.dtype)
            return {"ce": supervised(learner, replace(batch, targets=replace(batch.targets, weight=own_B)))}
        expert = routed([teachers[role].rows for role in self.experts], cluster_B)
        return {
            "ce": self.ce_weight * supervised(learner, batch),
            "clusters": self.kd_weight * soft_kl(learner.rows, expert, self.temperature),
        }
