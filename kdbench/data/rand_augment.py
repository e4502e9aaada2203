"""RandAugment: n random image operations of one strength, in batched tensor code where the images lie.

E. D. Cubuk, B. Zoph, J. Shlens, Q. V. Le, "RandAugment: Practical automated data augmentation with a reduced search
space", CVPR workshops 2020. Operations, strengths and rounding are those of `torchvision.transforms.RandAugment` on
uint8 tensors (31 strengths, nearest neighbour, black where the image ends); tests compare each with it.

In a round every example has one operation. Examples with the same operation cannot be picked out without waiting for
the device, so the operations are applied to all, in families that share their arithmetic, with a parameter under
which the family leaves the other examples as they are.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from kdbench.errors import UserError
from kdbench.streams import derive, integers
from kdbench.suite.fields import RandAugment

OPERATIONS = (
    *("identity", "shear_x", "shear_y", "translate_x", "translate_y", "rotate", "brightness", "color", "contrast"),
    *("sharpness", "posterize", "solarize", "auto_contrast", "equalize"),
)
STRENGTHS = 31  # m = 0 .. 30
GREY = (0.2989, 0.587, 0.114)


def rand_augmented(x: Tensor, index_B: Tensor, spec: RandAugment, *, seed: int, epoch: int, view: int = 0) -> Tensor:
    """uint8 (B, 1 or 3, H, W) -> the same shape; operation and sign are a function of (seed, epoch, view, index).

    Raises:
        UserError: the images are neither grey nor colour.
    """
    if x.shape[1] not in (1, 3):
        raise UserError(f"recipe.augment.rand_augment needs 1 or 3 channels; these images have {x.shape[1]}")
    for number in range(spec.n):
        key = derive(seed, "rand_augment", epoch, view, number)
        draw_B = integers(key, index_B, 2 * len(OPERATIONS))
        x = apply(x, draw_B // 2, 1 - 2 * (draw_B % 2), spec.m)
    return x


def apply(x: Tensor, operation_B: Tensor, sign_B: Tensor, m: int) -> Tensor:
    """One operation (a position in OPERATIONS) for each example, with strength `m` and sign +1 or -1 where it has one.

    Returns:
        uint8, the shape of `x` (B, channels, H, W).
    """
    x = _moved(x, operation_B, sign_B, m)
    x = _blended(x, operation_B, sign_B, m)
    x = _quantised(x, operation_B, m)
    return _stretched(x, operation_B)


def strength(most: float, m: int) -> float:
    """m of the 31 strengths from 0 to `most`, rounded as torchvision's."""
    return float(torch.linspace(0.0, most, STRENGTHS)[m])


def _is(operation_B: Tensor, name: str) -> Tensor:
    return operation_B == OPERATIONS.index(name)


def _moved(x: Tensor, operation_B: Tensor, sign_B: Tensor, m: int) -> Tensor:
    """Shear, translate, rotate: one gather of the nearest pixel through each example's affine map."""
    batch, channels, height, width = x.shape
    real = torch.float32 if x.device.type == "mps" else torch.float64
    sign = sign_B.to(real)[:, None, None]

    def on(*names: str) -> Tensor:
        return sum((_is(operation_B, name) for name in names), torch.zeros_like(operation_B))[:, None, None].to(real)

    # Positions of pixels' centres; shears leave the upper left corner in place, rotations the middle.
    y = (torch.arange(height, device=x.device, dtype=real) + 0.5)[None, :, None]
    x_ = (torch.arange(width, device=x.device, dtype=real) + 0.5)[None, None, :]
    across, down = x_ - width / 2, y - height / 2
    turn = on("rotate") * sign * math.radians(strength(30.0, m))
    from_x = x_ + on("shear_x") * sign * strength(0.3, m) * y
    from_x = from_x - on("translate_x") * sign * int(strength(150 / 331 * width, m))
    from_x = from_x + (torch.cos(turn) - 1) * across - torch.sin(turn) * down
    from_y = y + on("shear_y") * sign * strength(0.3, m) * x_
    from_y = from_y - on("translate_y") * sign * int(strength(150 / 331 * height, m))
    from_y = from_y + torch.sin(turn) * across + (torch.cos(turn) - 1) * down
    row, column = (from_y - 0.5).round().long(), (from_x - 0.5).round().long()
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    at = row.clamp(0, height - 1) * width + column.clamp(0, width - 1)
    index = at.view(batch, 1, height * width).expand(batch, channels, height * width)
    return x.flatten(2).gather(2, index).view_as(x) * inside[:, None]


def _blended(x: Tensor, operation_B: Tensor, sign_B: Tensor, m: int) -> Tensor:
    """Brightness, colour, contrast, sharpness: factor * image + (1 - factor) * its poor version, cut to 0..255."""
    pixels = x.to(torch.float32)
    grey = pixels
    if x.shape[1] == 3:
        grey = sum(weight * pixels[:, i : i + 1] for i, weight in enumerate(GREY)).floor()  # type: ignore[union-attr]
    poor = torch.where(_is(operation_B, "contrast")[:, None, None, None], grey.mean((1, 2, 3), keepdim=True), 0.0)
    poor = torch.where(_is(operation_B, "color")[:, None, None, None], grey, poor)
    poor = torch.where(_is(operation_B, "sharpness")[:, None, None, None], _blurred(pixels), poor)
    names = ("brightness", "contrast", "sharpness", *(("color",) if x.shape[1] == 3 else ()))
    is_used = sum((_is(operation_B, name) for name in names), 0 * operation_B)[:, None, None, None] > 0
    up, change = (sign_B > 0)[:, None, None, None], strength(0.9, m)
    factor = torch.where(up, 1.0 + change, 1.0 - change)
    rest = torch.where(up, 1.0 - (1.0 + change), 1.0 - (1.0 - change))
    blend = (factor * pixels + rest * poor).clamp(0, 255).to(torch.uint8)
    return torch.where(is_used, blend, x)


def _blurred(pixels: Tensor) -> Tensor:
    """Each inner pixel's mean with its neighbours, itself weighted 5 of 13; the border stays."""
    height, width = pixels.shape[2:]
    if height <= 2 or width <= 2:
        return pixels
    box = F.avg_pool2d(pixels, 3, stride=1) * 9
    inner = ((box + 4 * pixels[:, :, 1:-1, 1:-1]) / 13).round()
    out = pixels.clone()
    out[:, :, 1:-1, 1:-1] = inner
    return out


def _quantised(x: Tensor, operation_B: Tensor, m: int) -> Tensor:
    """Posterize drops low bits; solarize inverts bright pixels."""
    bits = 8 - round(m / ((STRENGTHS - 1) / 4))
    mask_B = torch.where(_is(operation_B, "posterize"), 256 - 2 ** (8 - bits), 255).to(torch.uint8)
    threshold = float(torch.linspace(255.0, 0.0, STRENGTHS)[m])
    x = x & mask_B[:, None, None, None]
    inverted = _is(operation_B, "solarize")[:, None, None, None] & (x >= threshold)
    return torch.where(inverted, 255 - x, x)


def _stretched(x: Tensor, operation_B: Tensor) -> Tensor:
    """Auto-contrast and equalise, each channel by itself: one table of 256 levels, then one look-up."""
    flat = x.flatten(2)  # (B, channels, HW)
    level = torch.arange(256, device=x.device).expand(*flat.shape[:2], 256)
    low, high = (edge[..., None].to(torch.float32) for edge in flat.aminmax(dim=2))
    scale = 255 / (high - low)
    contrast = torch.where(high > low, ((level - low) * scale).clamp(0, 255), level).long()
    count = torch.zeros(level.shape, dtype=torch.int64, device=x.device)
    count.scatter_add_(2, flat.long(), torch.ones((), dtype=torch.int64, device=x.device).expand(flat.shape))
    step = (flat.shape[2] - count.gather(2, high.long())) // 255  # pixels below the brightest level, by 255
    below = count.cumsum(2) - count
    equal = torch.where(step > 0, ((below + step // 2) // step.clamp_min(1)).clamp(0, 255), level)
    table = torch.where(_is(operation_B, "auto_contrast")[:, None, None], contrast, level)
    table = torch.where(_is(operation_B, "equalize")[:, None, None], equal, table)
    return table.to(torch.uint8).gather(2, flat.long()).view_as(x)
