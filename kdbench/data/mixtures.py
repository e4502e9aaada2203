"""A source whose examples are mixtures of another's: what a method chose to train on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from kdbench.batch import Chosen
from kdbench.data.batches import Draw, Inputs, Source
from kdbench.targets import Targets
from kdbench.tasks import Task


@dataclass(frozen=True)
class Mixtures:
    """`share` of one example's inputs and the rest of another's; both parts are augmented before, each as its own."""

    source: Source
    chosen: Chosen

    @property
    def labels(self) -> Tensor:
        """Of the first parts."""
        return self.source.labels[self.chosen.first_M]

    @property
    def mean(self) -> Any:
        return self.source.mean

    @property
    def std(self) -> Any:
        return self.source.std

    @property
    def device(self) -> torch.device:
        return self.source.device

    def __len__(self) -> int:
        return len(self.chosen)

    def move(self, device: torch.device) -> Mixtures:
        parts = (part.to(device) for part in self.chosen.parts)
        return replace(self, source=self.source.move(device), chosen=Chosen(*parts))

    def batches(self, indices: Sequence[Tensor], draw: Draw | None = None, views: int = 1) -> Iterator[list[Inputs]]:
        pairs = [torch.cat([self.chosen.first_M[index_B], self.chosen.other_M[index_B]]) for index_B in indices]
        for index_B, inputs in zip(indices, self.source.batches(pairs, draw, views), strict=True):
            yield [self._mixed(x, self.chosen.share_M[index_B]) for x in inputs]

    def _mixed(self, both: Tensor, share_B: Tensor) -> Tensor:
        first, other = both.chunk(2)
        share = share_B.to(both.dtype).reshape(-1, *[1] * (both.ndim - 1))
        return share * first + (1 - share) * other

    def targets(self, task: Task, index_B: Tensor) -> Targets:
        """Both parts' targets, with their shares."""
        first_B, other_B, share_B = (part[index_B] for part in self.chosen.parts)
        both = task.targets(self.source.labels[torch.cat([first_B, other_B])])
        swapped = torch.arange(2 * len(index_B), device=index_B.device).roll(len(index_B))
        return both.mixed(swapped, torch.cat([share_B, 1 - share_B])).head(len(both.values) // 2)


def targets(source: Source, task: Task, index_B: Tensor) -> Targets:
    """What is right for a batch of any source."""
    if isinstance(source, Mixtures):
        return source.targets(task, index_B)
    return task.targets(source.labels[index_B])
