"""PaCKD: Pattern-Clustered Knowledge Distillation for Compressing Memory Access Prediction Models, on classes.

N. Gupta, P. Zhang, R. Kannan, V. Prasanna. HPEC 2023.

    c(x) = cluster of x: k-means on the teacher's logits, or on its pooled features; or a group of classes
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
from functools import partial
from typing import TYPE_CHECKING, Any

from kdbench.batch import Batch, Out, Profile
from kdbench.lazy import nn, torch
from kdbench.losses import soft_kl, supervised
from kdbench.method import Method, Needs, Paper, Plan, Refusal, Stage, Survey, knob

if TYPE_CHECKING:
    from torch import Tensor


def k_means(rows_NC: Tensor, clusters: int) -> Tensor:
    """The cluster of each row, int64 (N,); the same for the same rows."""
    from sklearn.cluster import KMeans

    found = KMeans(clusters, n_init=11, random_state=0).fit_predict(rows_NC.double().cpu().numpy())
    return torch.as_tensor(found, dtype=torch.int64)


def pooled(model: Any, x: Tensor) -> Tensor:
    """What the classifier is given, (B, D)."""
    seen: list[Tensor] = []
    layer = model.get_submodule(model.kd_classifier)
    hook = layer.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach().flatten(1)))
    try:
        with torch.no_grad():
            model(x)
    finally:
        hook.remove()
    return seen[-1]


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
    by: str = knob(
        "logits",
        "k-means on the teacher's, or groups of classes",
        choices=("logits", "features", "classes"),
        since=2,
    )

    @property
    def experts(self) -> tuple[str, ...]:
        return tuple(f"expert{number + 1}" for number in range(self.clusters))

    def needs(self) -> Needs:
        """`classes` are in `clusters` groups, in their order."""
        if self.by == "classes":
            return Needs(hard_labels=True, categorical=True)
        if self.by == "logits":
            return Needs(probe=True, categorical=True)
        finish = partial(k_means, clusters=self.clusters)
        return Needs(survey=(Survey(f"cluster{self.clusters}", "teacher", pooled, finish=finish),), categorical=True)

    def _cluster(self, batch: Batch, heads: nn.Module) -> Tensor:
        if self.by == "classes":
            return batch.labels * self.clusters // batch.targets.classes
        if self.by == "features":
            return batch.surveys[f"cluster{self.clusters}"]
        return heads.get_buffer("cluster_N")[batch.index_B]

    def plan(self, roles: tuple[str, ...]) -> Plan:
        first = Stage(dict.fromkeys(self.experts, ("teacher",)), self.share)
        stages = (first, Stage({"student": ("teacher", *self.experts)}))
        return Plan(stages, copies=dict.fromkeys(self.experts, "teacher"))

    def heads(self, learner: Profile, teachers: Mapping[str, Profile]) -> nn.Module:
        expected = {"teacher"} if learner.role in self.experts else {"teacher", *self.experts}
        rows_NC = teachers["teacher"].rows_NC if "teacher" in teachers else None
        if set(teachers) != expected or (rows_NC is None and self.by == "logits"):
            raise Refusal(f"clusters wants the teachers {', '.join(sorted(expected))}, not {', '.join(teachers)}")
        known, what = (learner.classes, "classes") if self.by == "classes" else (learner.examples, "training examples")
        if known < self.clusters:
            raise Refusal(f"{known} {what} cannot form {self.clusters} clusters")
        heads = nn.Module()
        if rows_NC is not None and self.by == "logits":
            heads.register_buffer("cluster_N", k_means(rows_NC, self.clusters))
        return heads

    def loss(self, learner: Out, teachers: Mapping[str, Out], batch: Batch, heads: nn.Module) -> dict[str, Tensor]:
        cluster_B = self._cluster(batch, heads)
        if learner.role in self.experts:
            own_B = (cluster_B == self.experts.index(learner.role)).to(learner.rows.dtype)
            return {"ce": supervised(learner, replace(batch, targets=replace(batch.targets, weight=own_B)))}
        expert = routed([teachers[role].rows for role in self.experts], cluster_B)
        return {
            "ce": self.ce_weight * supervised(learner, batch),
            "clusters": self.kd_weight * soft_kl(learner.rows, expert, self.temperature),
        }
