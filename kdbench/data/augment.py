"""Pixels of a batch: crop, flip, RandAugment and normalise in batched tensor code where the images lie.

Counter-based: what happens to an example depends on (seed, epoch, view, its index) and on nothing else, so it does not
matter how a run was batched, interrupted or resumed, nor which method is trained.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from kdbench.data.rand_augment import rand_augmented
from kdbench.data.resized_crop import boxes, resampled, windows
from kdbench.streams import derive, integers
from kdbench.suite.fields import Augment


def pixels(
    images: Tensor,
    index_B: Tensor,
    *,
    augment: Augment | None,
    seed: int,
    epoch: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    view: int = 0,
) -> Tensor:
    """Normalised pixels of the examples `index_B`.

    An image is padded with black (0) by `augment.crop` pixels on every side and cropped back to its size at a uniformly
    random place, or a random window of it is resampled to its size; it is flipped left to right with probability 1/2;
    RandAugment's operations follow; then x / 255 is normalised with `mean` and `std`.

    Args:
        images: uint8 (N, channels, H, W), on the device.
        index_B: int64 (B,), on the same device.
        augment: None for evaluation.
        seed, epoch, view: with the index, what the random parameters are a function of.
        mean, std: per channel, of pixels scaled to [0, 1].

    Returns:
        float32 (B, channels, H, W), on the same device. Nothing waits for the device.
    """
    x = images.index_select(0, index_B)
    if augment is not None:
        if augment.random_resized_crop is not None:
            height_B, width_B = (torch.full_like(index_B, side) for side in x.shape[2:])
            box_B4 = boxes(index_B, height_B, width_B, augment.random_resized_crop, seed=seed, epoch=epoch, view=view)
            x = resampled(x, box_B4, x.shape[2])
        x = augmented(x, index_B, augment, seed=seed, epoch=epoch, view=view)
    return normalised(x, mean, std)


def augmented(x: Tensor, index_B: Tensor, augment: Augment, *, seed: int, epoch: int, view: int) -> Tensor:
    """What follows a resized crop, on uint8 images (B, channels, H, W) that already lie on the device."""
    if augment.crop or augment.flip:
        top_B, left_B, flip_B = parameters(index_B, augment, seed=seed, epoch=epoch, view=view)
        x = _shift(x, top_B - augment.crop, left_B - augment.crop, flip_B)
    if augment.rand_augment is not None:
        x = rand_augmented(x, index_B, augment.rand_augment, seed=seed, epoch=epoch, view=view)
    return x


def followed(values: Tensor, index_B: Tensor, augment: Augment, *, seed: int, epoch: int, view: int = 0) -> Tensor:
    """Image-shaped values (B, D, H, W) of examples, real numbers, through the crop and flip of their pixels.

    Outside the image they are 0.
    """
    if augment.random_resized_crop is not None:
        height_B, width_B = (torch.full_like(index_B, side) for side in values.shape[2:])
        box_B4 = boxes(index_B, height_B, width_B, augment.random_resized_crop, seed=seed, epoch=epoch, view=view)
        values = windows(values, box_B4, values.shape[2]).to(values.dtype)
    if augment.crop or augment.flip:
        top_B, left_B, flip_B = parameters(index_B, augment, seed=seed, epoch=epoch, view=view)
        values = _shift(values, top_B - augment.crop, left_B - augment.crop, flip_B)
    return values


def normalised(x: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    scale, shift = _affine(mean, std, x.device)
    # Two roundings on every device; a fused multiply-add would round once, and only in some kernels.
    return x.to(torch.float32).mul_(scale).add_(shift)


def parameters(
    index_B: Tensor, augment: Augment, *, seed: int, epoch: int, view: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Top and left corner of the crop in the padded image, 0..2*crop, and whether it is then flipped: each (B,)."""
    places = 2 * augment.crop + 1
    flips = 2 if augment.flip else 1
    draw_B = drawn(index_B, augment, seed=seed, epoch=epoch, view=view)
    place_B = draw_B // flips
    return place_B // places, place_B % places, draw_B % flips == 1


def drawn(index_B: Tensor, augment: Augment, *, seed: int, epoch: int, view: int = 0) -> Tensor:
    """Which of its crops and flips each example is given (B,): numbers from 0, the same where the pixels are."""
    return integers(derive(seed, "augment", epoch, view), index_B, _crops(augment))


def choices(augment: Augment) -> int | None:
    """How many different inputs augmentation makes of an example, or None where they cannot be numbered by `drawn`."""
    if augment.random_resized_crop or augment.rand_augment or augment.cutmix:
        return None
    return _crops(augment)


def _crops(augment: Augment) -> int:
    return (2 * augment.crop + 1) ** 2 * (2 if augment.flip else 1)


def _shift(x: Tensor, down_B: Tensor, right_B: Tensor, flip_B: Tensor) -> Tensor:
    """Window of each image (B, channels, H, W) that starts at (down, right), black outside the image, then flipped."""
    batch, channels, height, width = x.shape
    columns = torch.arange(width, device=x.device)
    row_BH = torch.arange(height, device=x.device) + down_B[:, None]
    column_BW = torch.where(flip_B[:, None], width - 1 - columns, columns) + right_B[:, None]
    is_row_BH = (row_BH >= 0) & (row_BH < height)
    is_column_BW = (column_BW >= 0) & (column_BW < width)
    # One gather for crop and flip; its index is shared by the channels (stride 0), and uint8 keeps it small.
    at_BHW = row_BH.clamp(0, height - 1)[:, :, None] * width + column_BW.clamp(0, width - 1)[:, None, :]
    index = at_BHW.view(batch, 1, height * width).expand(batch, channels, height * width)
    inside = is_row_BH[:, None, :, None] & is_column_BW[:, None, None, :]
    return x.flatten(2).gather(2, index).view_as(x) * inside


@lru_cache(maxsize=16)
def _affine(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """x / 255, minus mean, over std, as x * scale + shift, (1, channels, 1, 1); kept, as a copy to the device waits."""
    scale = torch.tensor([1 / (255 * s) for s in std], dtype=torch.float32)
    shift = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)], dtype=torch.float32)
    return scale.view(1, -1, 1, 1).to(device), shift.view(1, -1, 1, 1).to(device)
