"""Where batches come from: sources of images, of image files read ahead of the step, and of numbers.

A source gives the inputs of a model for examples by index: a tensor, or a dict of tensors.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol, Self

import torch
from torch import Tensor

from kdbench.data.augment import augmented, normalised, pixels
from kdbench.data.cutmix import cut_and_mixed
from kdbench.data.resized_crop import boxes
from kdbench.errors import UserError
from kdbench.suite.fields import Augment, Recipe
from kdbench.targets import Targets

if TYPE_CHECKING:
    from kdbench.data.files import Files

Inputs = Any  # of a model: a tensor, or a dict of tensors


@dataclass(frozen=True)
class Draw:
    """What random augmentation is a function of, together with view and index."""

    augment: Augment
    seed: int
    epoch: int


class Source(Protocol):
    """The examples of a split. `labels` are as the data set stores them, (N, ...), on the source's device."""

    @property
    def labels(self) -> Tensor: ...

    @property
    def mean(self) -> Any:
        """What inputs are normalised by, with `std`: see the sources."""
        ...

    @property
    def std(self) -> Any: ...

    @property
    def device(self) -> torch.device: ...

    def __len__(self) -> int: ...

    def batches(self, indices: Sequence[Tensor], draw: Draw | None = None, views: int = 1) -> Iterator[list[Inputs]]:
        """For each batch of indices (B,) its inputs on the device, one entry a view, read ahead of whoever iterates.

        Args:
            draw: of augmentation; None for evaluation.
        """
        ...

    def move(self, device: torch.device) -> Self:
        """The same source, whose batches come on that device."""
        ...


class Readable(Protocol):
    """Images that do not lie in memory. Indices, sizes and boxes are int64 on the CPU; images uint8 on the device."""

    def sizes(self, index_B: Tensor) -> tuple[Tensor, Tensor]:
        """Heights and widths (B,) of images as they are stored."""
        ...

    def read(self, requests: Iterable[tuple[Tensor, Tensor | None]]) -> Iterator[Tensor]:
        """For each request its images (B, channels, H, H), in order, read ahead of whoever iterates.

        A request is (indices (B,), boxes (B, 4) of `kdbench.data.resized_crop`); without boxes the view for evaluation.
        """
        ...


@dataclass(frozen=True)
class Images:
    """Square images: a uint8 tensor (N, channels, H, H) on the device, or files that are read when they are needed.

    `mean` and `std` are per channel, of pixels scaled to [0, 1].
    """

    images: Tensor | Files
    labels: Tensor
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def device(self) -> torch.device:
        return self.images.device

    def __len__(self) -> int:
        return len(self.labels)

    def move(self, device: torch.device) -> Images:
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))

    def batches(self, indices: Sequence[Tensor], draw: Draw | None = None, views: int = 1) -> Iterator[list[Tensor]]:
        """Normalised pixels (B, channels, H, H)."""
        images = self.images
        if isinstance(images, Tensor):
            for index_B in indices:
                yield [self._pixels(images, index_B, draw, view) for view in range(views)]
            return
        known = torch.cat(list(indices)).cpu().split([len(index_B) for index_B in indices])  # one wait for the device
        requests = (_request(images, index_B, draw, view) for index_B in known for view in range(views))
        arriving = images.read(requests)
        for index_B in indices:
            made = [self._finished(next(arriving), index_B, draw, view) for view in range(views)]
            yield [x.contiguous(memory_format=torch.channels_last) for x in made]
        for _ in arriving:  # nothing is left: this lets the reader end its work
            raise AssertionError("a source gave more than was asked for")

    def _pixels(self, images: Tensor, index_B: Tensor, draw: Draw | None, view: int) -> Tensor:
        x = pixels(
            images,
            index_B,
            augment=draw.augment if draw else None,
            seed=draw.seed if draw else 0,
            epoch=draw.epoch if draw else 0,
            mean=self.mean,
            std=self.std,
            view=view,
        )
        return x.contiguous(memory_format=torch.channels_last)

    def _finished(self, x: Tensor, index_B: Tensor, draw: Draw | None, view: int) -> Tensor:
        if draw is not None:
            x = augmented(x, index_B, draw.augment, seed=draw.seed, epoch=draw.epoch, view=view)
        return normalised(x, self.mean, self.std)


@dataclass(frozen=True)
class Numbers:
    """Rows of a table (N, F), or maps (N, channels, H, W): float32 as stored, standardised batch by batch.

    `mean` and `std` are of the training split, shaped (1, F) or (1, channels, 1, 1).
    """

    values: Tensor
    labels: Tensor
    mean: Tensor
    std: Tensor

    @property
    def device(self) -> torch.device:
        return self.values.device

    def __len__(self) -> int:
        return len(self.values)

    def move(self, device: torch.device) -> Numbers:
        return Numbers(*(part.to(device) for part in (self.values, self.labels, self.mean, self.std)))

    def batches(self, indices: Sequence[Tensor], draw: Draw | None = None, views: int = 1) -> Iterator[list[Tensor]]:
        """Numbers in standard units; the same in every view.

        Raises:
            UserError: augmentation is asked for.
        """
        if draw is not None and draw.augment != Augment():
            raise UserError("recipe.augment changes images, and this data set holds numbers: remove it")
        for index_B in indices:
            x = (self.values.index_select(0, index_B) - self.mean) / self.std
            yield [x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x] * views


def fetch(
    split: Source, index: Tensor, recipe: Recipe | None = None, key: tuple[int, int] = (0, 0), view: int = 0
) -> Inputs:
    """Inputs of examples, augmented when a recipe and a (seed, epoch) key are given."""
    (views,) = stream(split, [index], recipe, key, view + 1)
    return views[view]


def stream(
    split: Source,
    batches: Sequence[Tensor],
    recipe: Recipe | None = None,
    key: tuple[int, int] = (0, 0),
    views: int = 1,
) -> Iterator[list[Inputs]]:
    """What `fetch` gives for each batch of indices, one entry a view, read ahead where it must be read."""
    return split.batches(batches, Draw(recipe.augment, *key) if recipe else None, views)


def mixed(
    views: Sequence[Tensor], targets: Targets, index_B: Tensor, recipe: Recipe, key: tuple[int, int]
) -> tuple[list[Tensor], Targets]:
    """Views and targets of a batch, mixed where the recipe's augmentation mixes examples; else as they are."""
    if recipe.augment.cutmix is None:
        return list(views), targets
    seed, epoch = key
    return cut_and_mixed(views, targets, index_B, recipe.augment.cutmix, seed=seed, epoch=epoch)


def _request(images: Readable, index_B: Tensor, draw: Draw | None, view: int) -> tuple[Tensor, Tensor | None]:
    if draw is None or draw.augment.random_resized_crop is None:
        return index_B, None
    sizes, crop = images.sizes(index_B), draw.augment.random_resized_crop
    return index_B, boxes(index_B, *sizes, crop, seed=draw.seed, epoch=draw.epoch, view=view)
