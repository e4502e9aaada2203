"""Classification: rows are examples, logits over classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

ECE_BINS = 15


def scores(logits_NC: torch.Tensor, labels_N: torch.Tensor, teacher_NC: torch.Tensor | None = None) -> dict[str, float]:
    """Metrics of one split: top1 and top5 in percent, the rest as fractions or nats.

    Args:
        logits_NC: the model's logits, any float type.
        labels_N: true classes, int64.
        teacher_NC: the teacher's logits on the same examples; adds the fidelity metrics.

    Returns:
        top1, top5 (absent with fewer than six classes), nll, ece (15 equal-width bins), brier
        (sum over classes of squared error, 0..2), and with a teacher agreement, agreement_on_errors (the share of the
        teacher's mistakes that the model repeats; absent when it makes none) and kl = mean KL(p_t || p_s) at T = 1.
    """
    logits_NC = logits_NC.double()
    log_p_NC = F.log_softmax(logits_NC, dim=1)
    p_NC = log_p_NC.exp()
    confidence_N, answer_N = p_NC.max(dim=1)
    correct_N = answer_N == labels_N
    out = {"top1": 100.0 * correct_N.double().mean().item()}
    if logits_NC.shape[1] > 5:
        top5_N5 = logits_NC.topk(5, dim=1).indices
        out["top5"] = 100.0 * (top5_N5 == labels_N[:, None]).any(dim=1).double().mean().item()
    out["nll"] = F.nll_loss(log_p_NC, labels_N).item()
    out["ece"] = _ece(confidence_N, correct_N.double())
    out["brier"] = (p_NC - F.one_hot(labels_N, p_NC.shape[1])).square().sum(dim=1).mean().item()
    if teacher_NC is not None:
        log_t_NC = F.log_softmax(teacher_NC.double(), dim=1)
        teacher_N = log_t_NC.argmax(dim=1)
        same_N = (teacher_N == answer_N).double()
        out["agreement"] = same_N.mean().item()
        wrong_N = teacher_N != labels_N
        if wrong_N.any():
            out["agreement_on_errors"] = same_N[wrong_N].mean().item()
        out["kl"] = (log_t_NC.exp() * (log_t_NC - log_p_NC)).sum(dim=1).mean().item()
    return out


def _ece(confidence_N: torch.Tensor, correct_N: torch.Tensor) -> float:
    """sum_b (n_b / N) |accuracy_b - confidence_b| over bins (b/15, (b+1)/15] (Guo et al., 2017, Eq. 3)."""
    bin_N = (confidence_N * ECE_BINS).ceil().long().clamp_(1, ECE_BINS) - 1
    gap_b = torch.zeros(ECE_BINS, dtype=torch.float64, device=confidence_N.device)
    gap_b.index_add_(0, bin_N, correct_N - confidence_N)
    return gap_b.abs().sum().item() / len(confidence_N)


def combined(logits: Sequence[Tensor], combine: Literal["sum", "mean"]) -> Tensor:
    """The logits of roles that answer together: (..., C) each -> (..., C)."""
    stacked = torch.stack(list(logits))
    return stacked.mean(0) if combine == "mean" else stacked.sum(0)


def leaving(logits_KNC: Tensor, threshold: float) -> Tensor:
    """The prefix (0 is the first role alone) at which each image leaves, int64 (N,): all leave at the last."""
    sure_KN = logits_KNC.double().softmax(2).amax(2) >= threshold
    sure_KN[-1] = True
    return sure_KN.int().argmax(0)  # the first that is sure: argmax takes the first of equals
