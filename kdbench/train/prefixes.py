"""What an answer of several roles is worth if one stops early: every prefix of it, and exits by confidence.

Pure: logits of each role in, records out. Role k costs what it costs alone; whoever asks the first k pays for all k.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from kdbench.result import Exit, Prefix
from kdbench.tasks import classification, combined
from kdbench.tasks.classification import leaving

# Of the largest class probability: a fixed grid, so that nothing is chosen on the test split. Whoever deploys chooses
# the threshold by validation; the test scores stand beside it.
THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.97, 0.99, 0.995, 0.999)

Logits = Mapping[str, Sequence[Tensor]]  # split -> one (N, C) for each role, in the order of the answer
Labels = Mapping[str, Tensor]  # split -> (N,)


def ladder(logits: Sequence[Tensor], combine: Literal["sum", "mean"]) -> list[Tensor]:
    """The answer of the first role, of the first two, ..., of all: (N, C) each."""
    return [combined(logits[: k + 1], combine) for k in range(len(logits))]


def prefixes(
    roles: Sequence[str],
    sizes: Sequence[tuple[int, int]],
    logits: Logits,
    labels: Labels,
    teacher: Mapping[str, Tensor | None],
    combine: Literal["sum", "mean"],
) -> list[Prefix]:
    """One record for each prefix of an answer.

    Args:
        roles: of the answer, in order.
        sizes: (parameters, MACs of one image) of each role alone.
        logits: of each role alone, by split.
        labels: true classes by split.
        teacher: the teacher's logits (N, C) by split, for fidelity.
    """
    together = {split: ladder(said, combine) for split, said in logits.items()}

    def scores(said: Mapping[str, Sequence[Tensor]], k: int) -> dict[str, float]:
        found = {split: classification.scores(said[split][k], labels[split], teacher[split]) for split in said}
        return {f"{split}/{name}": value for split, values in found.items() for name, value in values.items()}

    return [
        Prefix(
            role=role,
            scores=scores(together, k),
            alone=scores(logits, k),
            parameters=sum(parameters for parameters, _ in sizes[: k + 1]),
            macs=sum(macs for _, macs in sizes[: k + 1]),
        )
        for k, role in enumerate(roles)
    ]


def exits(
    macs: Sequence[int],
    logits: Logits,
    labels: Labels,
    combine: Literal["sum", "mean"],
    thresholds: Sequence[float] = THRESHOLDS,
) -> list[Exit]:
    """Early exit by the largest class probability: accuracy and expected MACs on `val` and `test` at each threshold.

    Args:
        macs: of one image, of each role alone.
        logits: of each role alone; splits `val` and `test`.
        thresholds: rising; an image goes on to the next role while it is less sure than this.
    """
    together = {split: torch.stack(ladder(said, combine)) for split, said in logits.items()}
    cumulative_K = torch.tensor(macs, dtype=torch.float64).cumsum(0)
    out = []
    for threshold in thresholds:
        left = {split: leaving(said_KNC, threshold) for split, said_KNC in together.items()}
        scores, costs = {}, {}
        for split, at_N in left.items():
            answer_N = together[split].argmax(2).gather(0, at_N[None])[0]
            scores[f"{split}/top1"] = 100.0 * (answer_N == labels[split]).double().mean().item()
            costs[split] = cumulative_K[at_N.cpu()].mean().item()
        share_K = torch.bincount(left["test"], minlength=len(macs)).double() / len(left["test"])
        out.append(Exit(threshold, scores, costs, share_K.tolist()))
    return out
