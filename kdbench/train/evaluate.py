"""Accuracy, calibration and fidelity from logits, and latency of a deployed model."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.data import DataSet, Split
from kdbench.data.augment import stream
from kdbench.train.recipe import autocast

ECE_BINS = 15
BATCH = 512


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


def logits(model: Callable[[Tensor], Tensor], pixels: Iterable[Tensor]) -> Tensor:
    """The model's logits (N, C) in float32 on batches of pixels. The caller sets eval mode."""
    with torch.inference_mode():
        return torch.cat([model(x).float() for x in pixels])


def split_logits(model: nn.Module, split: Split, data: DataSet, precision: str = "fp32") -> Tensor:
    """A model's logits (N, C) on a split, in eval mode, without augmentation; its training mode is restored."""
    training = model.training
    model.eval()
    device = split.labels.device
    batches = torch.arange(len(split.labels), device=device).split(BATCH)
    pixels = (x for (x,) in stream(split, data, batches))
    with autocast(precision, device):
        out = logits(model, pixels)
    model.train(training)
    return out


def latency_ms(model: torch.nn.Module, x: torch.Tensor, repeats: int = 5) -> float:
    """Median milliseconds of a forward pass in eval mode, after one warm-up."""
    times = []
    with torch.inference_mode():
        for _ in range(repeats + 1):
            start = time.perf_counter()
            model(x)
            if x.is_cuda:
                torch.cuda.synchronize(x.device)
            times.append(time.perf_counter() - start)
    return 1000.0 * sorted(times[1:])[repeats // 2]
