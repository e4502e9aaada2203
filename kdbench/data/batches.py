"""Batches of pixels: from a tensor on the device, or from a source that reads ahead of the step.

Images are a tensor on the device, or a `Source` that reads them when they are needed: then `stream`, which knows the
batches of an epoch beforehand, lets it read ahead of the step.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from kdbench.data.augment import augmented, normalised, pixels
from kdbench.data.cutmix import cut_and_mixed
from kdbench.data.resized_crop import boxes
from kdbench.suite.fields import Augment, Recipe
from kdbench.targets import Targets

if TYPE_CHECKING:
    from kdbench.data import DataSet, Split


class Source(Protocol):
    """Images that do not lie in memory. Indices, sizes and boxes are int64 on the CPU; images uint8 on the device."""

    def sizes(self, index_B: Tensor) -> tuple[Tensor, Tensor]:
        """Heights and widths (B,) of images as they are stored."""
        ...

    def read(self, requests: Iterable[tuple[Tensor, Tensor | None]]) -> Iterator[Tensor]:
        """For each request its images (B, channels, H, H), in order, read ahead of whoever iterates.

        A request is (indices (B,), boxes (B, 4) of `kdbench.data.resized_crop`); without boxes the view for evaluation.
        """
        ...


def fetch(
    split: Split,
    data: DataSet,
    index: Tensor,
    recipe: Recipe | None = None,
    key: tuple[int, int] = (0, 0),
    view: int = 0,
) -> Tensor:
    """Normalised pixels of examples, augmented when a recipe and a (seed, epoch) key are given."""
    images, augment = split.images, recipe.augment if recipe else None
    if isinstance(images, Tensor):
        seed, epoch = key
        x = pixels(images, index, augment=augment, seed=seed, epoch=epoch, mean=data.mean, std=data.std, view=view)
    else:
        (read,) = images.read([_request(images, index.cpu(), augment, key, view)])
        x = _finished(read, data, index, augment, key, view)
    return x.contiguous(memory_format=torch.channels_last)


def stream(
    split: Split,
    data: DataSet,
    batches: Sequence[Tensor],
    recipe: Recipe | None = None,
    key: tuple[int, int] = (0, 0),
    views: int = 1,
) -> Iterator[list[Tensor]]:
    """What `fetch` gives for each batch of indices, one tensor a view; images that must be read are read ahead."""
    images, augment = split.images, recipe.augment if recipe else None
    if isinstance(images, Tensor):
        for index_B in batches:
            yield [fetch(split, data, index_B, recipe, key, view) for view in range(views)]
        return
    known = torch.cat(list(batches)).cpu().split([len(index_B) for index_B in batches])  # one wait for the device
    requests = (_request(images, index_B, augment, key, view) for index_B in known for view in range(views))
    arriving = images.read(requests)
    for index_B in batches:
        made = [_finished(next(arriving), data, index_B, augment, key, view) for view in range(views)]
        yield [x.contiguous(memory_format=torch.channels_last) for x in made]
    for _ in arriving:  # nothing is left: this lets the source end its work
        raise AssertionError("a source gave more than was asked for")


def mixed(
    views: Sequence[Tensor], targets: Targets, index_B: Tensor, recipe: Recipe, key: tuple[int, int]
) -> tuple[list[Tensor], Targets]:
    """Views and targets of a batch, mixed where the recipe's augmentation mixes examples; else as they are."""
    if recipe.augment.cutmix is None:
        return list(views), targets
    seed, epoch = key
    return cut_and_mixed(views, targets, index_B, recipe.augment.cutmix, seed=seed, epoch=epoch)


def _request(
    images: Source, index_B: Tensor, augment: Augment | None, key: tuple[int, int], view: int
) -> tuple[Tensor, Tensor | None]:
    if augment is None or augment.random_resized_crop is None:
        return index_B, None
    seed, epoch = key
    sizes = images.sizes(index_B)
    return index_B, boxes(index_B, *sizes, augment.random_resized_crop, seed=seed, epoch=epoch, view=view)


def _finished(
    x: Tensor, data: DataSet, index_B: Tensor, augment: Augment | None, key: tuple[int, int], view: int
) -> Tensor:
    if augment is not None:
        x = augmented(x, index_B, augment, seed=key[0], epoch=key[1], view=view)
    return normalised(x, data.mean, data.std)
