"""Metrics against plain numpy loops and scikit-learn."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss, top_k_accuracy_score

from kdbench.tasks import classification
from kdbench.train import evaluate


def example(n: int = 200, classes: int = 7) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(0)
    logits = torch.randn(n, classes, generator=rng) * 3
    teacher = torch.randn(n, classes, generator=rng) * 3
    return logits, torch.randint(0, classes, (n,), generator=rng), teacher


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def test_every_metric_equals_a_numpy_loop() -> None:
    logits, labels, teacher = example()
    found = classification.scores(logits, labels, teacher)
    p, t, y = softmax(logits.double().numpy()), softmax(teacher.double().numpy()), labels.numpy()
    n, right, brier, kl, agree, errors, repeated = len(y), 0, 0.0, 0.0, 0, 0, 0
    bins = [[] for _ in range(15)]
    for i in range(n):
        answer = int(np.argmax(p[i]))
        right += answer == y[i]
        brier += sum((p[i, c] - (c == y[i])) ** 2 for c in range(7))
        kl += sum(t[i, c] * math.log(t[i, c] / p[i, c]) for c in range(7))
        agree += answer == np.argmax(t[i])
        if np.argmax(t[i]) != y[i]:
            errors += 1
            repeated += answer == np.argmax(t[i])
        bins[min(14, math.ceil(p[i, answer] * 15) - 1)].append((answer == y[i], p[i, answer]))
    ece = sum(len(b) / n * abs(np.mean([h for h, _ in b]) - np.mean([c for _, c in b])) for b in bins if b)
    expected = {
        "top1": 100 * right / n,
        "top5": 100 * top_k_accuracy_score(y, p, k=5),
        "nll": log_loss(y, p, labels=range(7)),
        "ece": ece,
        "brier": brier / n,
        "agreement": agree / n,
        "agreement_on_errors": repeated / errors,
        "kl": kl / n,
    }
    assert found == pytest.approx(expected, rel=1e-9)


def test_a_perfect_student_of_a_perfect_teacher() -> None:
    labels = torch.arange(6)
    logits = 100.0 * torch.eye(6)
    found = classification.scores(logits, labels, logits)
    assert found["top1"] == 100
    assert found["agreement"] == 1
    assert found["nll"] == pytest.approx(0, abs=1e-12)
    assert found["kl"] == pytest.approx(0, abs=1e-12)
    assert found["ece"] == pytest.approx(0, abs=1e-12)
    assert "agreement_on_errors" not in found  # the teacher makes none


def test_uniform_predictions_are_calibrated_on_balanced_classes() -> None:
    found = classification.scores(torch.zeros(40, 4), torch.arange(40) % 4)
    assert found["nll"] == pytest.approx(math.log(4))
    assert found["brier"] == pytest.approx(0.75)
    assert found["ece"] == pytest.approx(0.0)
    assert "top5" not in found


def test_logits_come_in_order_whatever_the_batch() -> None:
    x = torch.randn(23, 5)
    model = torch.nn.Linear(5, 3).eval()
    whole = evaluate.logits(model, [x])
    for batch in (1, 7, 64):
        torch.testing.assert_close(evaluate.logits(model, x.split(batch)), whole)
    assert not whole.requires_grad


def test_latency_is_positive_milliseconds() -> None:
    assert 0 < evaluate.latency_ms(torch.nn.Linear(4, 4), torch.zeros(1, 4)) < 1000
