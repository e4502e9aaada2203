"""Metrics against plain numpy loops and scikit-learn."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss, top_k_accuracy_score

from kdbench.batch import call
from kdbench.data.batches import Numbers
from kdbench.data.signature import Input, Signature
from kdbench.models import size
from kdbench.models.taps import profile
from kdbench.tasks import classification
from kdbench.tasks.classification import Classification
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


def test_answers_come_in_order_whatever_the_batch() -> None:
    x = torch.randn(23, 5)
    split = Numbers(x, torch.arange(23), torch.zeros(1, 5), torch.ones(1, 5))
    model = torch.nn.Linear(5, 3).train()
    with torch.no_grad():
        whole = model(x)
    for batch in (1, 4, 23):
        found = list(evaluate.asked([model, whole + 1], split, batch=batch))
        assert torch.cat([index for index, _ in found]).tolist() == list(range(23))
        torch.testing.assert_close(torch.cat([answers[0] for _, answers in found]), whole)
        assert torch.equal(torch.cat([answers[1] for _, answers in found]), whole + 1)
    assert model.training
    torch.testing.assert_close(evaluate.split_answers(model, split), whole)


def test_models_are_in_eval_mode_while_they_are_asked_and_get_their_mode_back() -> None:
    split = Numbers(torch.ones(6, 2), torch.arange(6), torch.zeros(1, 2), torch.ones(1, 2))
    model = torch.nn.Sequential(torch.nn.Dropout(0.9), torch.nn.Identity().eval())
    parts = evaluate.asked([model], split, batch=2)
    _, (answer,) = next(parts)
    assert torch.equal(answer, torch.ones(2, 2))
    parts.close()
    assert model.training


def test_scores_of_a_split_are_those_of_all_its_rows_at_once() -> None:
    made = torch.Generator().manual_seed(0)
    said, taught, labels = (torch.randn(1200, 7, generator=made) for _ in range(3))
    labels = labels.argmax(1)
    split = Numbers(said, labels, torch.zeros(1, 7), torch.ones(1, 7))
    found = evaluate.scores([said, said / 3], split, Classification(7), combine="mean", teacher=taught)
    assert found == classification.scores((said + said / 3) / 2, labels, taught)


def test_a_model_of_several_inputs_is_asked_by_name() -> None:
    class Both(torch.nn.Module):
        def forward(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
            return left - right

    signature = Signature({"right": Input((3,)), "left": Input((3,))})
    assert call(Both(), {"right": torch.ones(2, 3), "left": torch.zeros(2, 3)}).tolist() == [[-1.0] * 3] * 2
    assert size.count(Both(), signature) == (0, 0)
    assert profile(Both(), "student", (), classes=3, examples=9, input_shape=signature).input_shape == ()
    assert evaluate.latency_ms(Both(), signature.zeros(4)) > 0


def test_latency_is_positive_milliseconds() -> None:
    assert 0 < evaluate.latency_ms(torch.nn.Linear(4, 4), torch.zeros(1, 4)) < 1000
