"""Classification: rows are examples, logits over classes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal

from kdbench.lazy import F, torch
from kdbench.losses import cross_entropy
from kdbench.targets import Targets
from kdbench.tasks import Metric, Task

if TYPE_CHECKING:
    from torch import Tensor

ECE_BINS = 15


@dataclass(frozen=True)
class Classification(Task):
    """One class for each example, out of `outputs`."""

    kind: ClassVar[Literal["categorical"]] = "categorical"
    headline: ClassVar[Metric] = Metric(
        "top1", "%", "up", 2, gap=0.5, bounds=(0.0, 100.0), title="top-1", word="accuracy"
    )
    metrics: ClassVar[tuple[Metric, ...]] = (
        headline,
        Metric("top5", "%", "up", 2, bounds=(0.0, 100.0), title="top-5", column=False),
        Metric(
            "agreement", "", "up", 1, bounds=(0.0, 1.0), title="agree", share=True, against_teacher=True,
            about="test images on which student and teacher give the same answer; **on errors**: the same among the "
            "teacher's mistakes",
        ),
        Metric(
            "agreement_on_errors", "", "up", 1, bounds=(0.0, 1.0), title="on errors", share=True, against_teacher=True,
            about="",
        ),
        Metric("nll", "nats", "down", bounds=(0.0, float("inf")), title="NLL", about=""),
        Metric("ece", "", "down", bounds=(0.0, 1.0), title="ECE", about="15 bins"),
        Metric("brier", "", "down", bounds=(0.0, 2.0), column=False),
        Metric("kl", "nats", "down", bounds=(0.0, float("inf")), column=False, against_teacher=True),
    )  # fmt: skip

    followed: ClassVar[tuple[str, ...]] = ("top1", "nll")

    def targets(self, labels: Tensor) -> Targets:
        return Targets(labels, self.outputs)

    def supervised(self, rows: Tensor, targets: Targets) -> dict[str, Tensor]:
        return {"ce": cross_entropy(rows, targets)}

    def running(self, rows: Tensor, targets: Targets) -> dict[str, Tensor]:
        return {"top1": 100.0 * (rows.argmax(1) == targets.labels).float().mean()}

    def confidence(self, rows: Tensor) -> Tensor:
        """The largest class probability."""
        return rows.double().softmax(-1).amax(-1)

    def scorer(self) -> Scores:
        return Scores()


@dataclass
class Scores:
    """Metrics of one split: top1 and top5 in percent, the rest as fractions or nats. Keeps a few numbers a row.

    top1, top5 (absent with fewer than six classes), nll, ece (15 equal-width bins), brier (sum over classes of squared
    error, 0..2), and with a teacher agreement, agreement_on_errors (the share of the teacher's mistakes that the model
    repeats; absent when it makes none) and kl = mean KL(p_t || p_s) at T = 1.
    """

    seen: dict[str, list[Tensor]] = field(default_factory=dict)  # name -> (R,) of each batch

    def add(self, rows: Tensor, targets: Targets, teacher_rows: Tensor | None = None) -> None:
        rows, labels = rows.double(), targets.labels
        log_p = F.log_softmax(rows, dim=1)
        p = log_p.exp()
        confidence, answer = p.max(dim=1)
        found = {"confidence": confidence, "correct": answer == labels}
        if rows.shape[1] > 5:
            found["among5"] = (rows.topk(5, dim=1).indices == labels[:, None]).any(dim=1)
        found["log_likelihood"] = log_p.gather(1, labels[:, None]).squeeze(1)
        found["brier"] = (p - F.one_hot(labels, p.shape[1])).square().sum(dim=1)
        if teacher_rows is not None:
            log_t = F.log_softmax(teacher_rows.double(), dim=1)
            taught = log_t.argmax(dim=1)
            found["same"], found["teacher_wrong"] = taught == answer, taught != labels
            found["kl"] = (log_t.exp() * (log_t - log_p)).sum(dim=1)
        for name, values in found.items():
            self.seen.setdefault(name, []).append(values)

    def scores(self) -> dict[str, float]:
        of = {name: torch.cat(values) for name, values in self.seen.items()}
        out = {"top1": 100.0 * of["correct"].double().mean().item()}
        if "among5" in of:
            out["top5"] = 100.0 * of["among5"].double().mean().item()
        # nll_loss's own mean, so that records of earlier versions are met to the last bit.
        zeros = torch.zeros_like(of["log_likelihood"], dtype=torch.int64)
        out["nll"] = F.nll_loss(of["log_likelihood"][:, None], zeros).item()
        out["ece"] = _ece(of["confidence"], of["correct"].double())
        out["brier"] = of["brier"].mean().item()
        if "same" in of:
            same = of["same"].double()
            out["agreement"] = same.mean().item()
            if of["teacher_wrong"].any():
                out["agreement_on_errors"] = same[of["teacher_wrong"]].mean().item()
            out["kl"] = of["kl"].mean().item()
        return out


def scores(logits_NC: Tensor, labels_N: Tensor, teacher_NC: Tensor | None = None) -> dict[str, float]:
    """The metrics of a whole split at once: logits (N, C), true classes (N,), the teacher's logits (N, C)."""
    scorer = Scores()
    scorer.add(logits_NC, Targets(labels_N, logits_NC.shape[1]), teacher_NC)
    return scorer.scores()


def _ece(confidence_N: Tensor, correct_N: Tensor) -> float:
    """sum_b (n_b / N) |accuracy_b - confidence_b| over bins (b/15, (b+1)/15] (Guo et al., 2017, Eq. 3)."""
    bin_N = (confidence_N * ECE_BINS).ceil().long().clamp_(1, ECE_BINS) - 1
    gap_b = torch.zeros(ECE_BINS, dtype=torch.float64, device=confidence_N.device)
    gap_b.index_add_(0, bin_N, correct_N - confidence_N)
    return gap_b.abs().sum().item() / len(confidence_N)
