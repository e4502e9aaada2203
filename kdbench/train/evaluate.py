"""What models say of a split, batch by batch, and its scores; latency of a deployed model."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from kdbench.batch import call
from kdbench.data.batches import Source, stream
from kdbench.tasks import Task
from kdbench.train.recipe import autocast

BATCH = 512

Part = nn.Module | Tensor  # a model, or its answers on the whole split (N, ...), kept from before


def asked(
    parts: Sequence[Part], split: Source, precision: str = "fp32", batch: int = BATCH
) -> Iterator[tuple[Tensor, list[Tensor]]]:
    """Indices (B,) of each batch of a split in order, and what each part answers on it, in float32.

    Models are in eval mode meanwhile, without augmentation; their training mode is restored. Nothing is kept.
    """
    models = [part for part in parts if isinstance(part, nn.Module)]
    modes = [model.training for model in models]
    indices = torch.arange(len(split), device=split.device).split(batch)
    inputs: Iterable[Any] = (x for (x,) in stream(split, indices)) if models else [None] * len(indices)
    try:
        for model in models:
            model.eval()
        for index_B, x in zip(indices, inputs, strict=True):
            with torch.inference_mode(), autocast(precision, split.device):
                answers = [part[index_B] if isinstance(part, Tensor) else call(part, x).float() for part in parts]
            yield index_B, answers
    finally:
        for model, mode in zip(models, modes, strict=True):
            model.train(mode)


def not_finite(model: nn.Module, finite: Mapping[str, bool]) -> str:
    """What of a trained model is no finite number, "its weight conv.weight is not finite"; "" if nothing.

    Args:
        finite: split -> whether all of the model's answers on it are.
    """
    for name, weight in model.named_parameters():
        if not weight.isfinite().all():
            return f"its weight {name} is not finite"
    for name, value in model.named_buffers():
        # A mask may hold -inf from the start.
        if value.is_floating_point() and (value.isnan() | value.isposinf()).any():
            return f"its buffer {name} is not finite"
    return next((f"its {name} answers are not finite" for name, good in finite.items() if not good), "")


def split_answers(model: nn.Module, split: Source, precision: str = "fp32") -> Tensor:
    """A model's answers (N, ...) on a whole split: kept for what looks at them again and again (a teacher's)."""
    return torch.cat([answer for _, (answer,) in asked([model], split, precision)])


def scores(
    parts: Sequence[Part],
    split: Source,
    task: Task,
    precision: str = "fp32",
    *,
    combine: Literal["sum", "mean"] = "sum",
    teacher: Tensor | None = None,
) -> dict[str, float]:
    """Scores of what the parts answer together, computed batch by batch.

    Args:
        teacher: its answers (N, ...), for fidelity.
    """
    scorer = task.scorer()
    for index_B, answers in asked(parts, split, precision):
        together = answers[0] if len(answers) == 1 else task.combined(answers, combine)
        taught = None if teacher is None else task.rows(teacher[index_B])
        scorer.add(task.rows(together), task.targets(split.labels[index_B]), taught)
    return scorer.scores()


def latency_ms(model: Callable[..., Any], x: Any, repeats: int = 5) -> float:
    """Median milliseconds of a forward pass in eval mode, after one warm-up."""
    times = []
    with torch.inference_mode():
        for _ in range(repeats + 1):
            start = time.perf_counter()
            answer = call(model, x)
            if answer.is_cuda:
                torch.cuda.synchronize(answer.device)
            times.append(time.perf_counter() - start)
    return 1000.0 * sorted(times[1:])[repeats // 2]
