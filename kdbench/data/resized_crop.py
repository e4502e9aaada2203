"""Random resized crop: a random window of each image, resampled to the network's input size.

C. Szegedy et al., "Going deeper with convolutions", CVPR 2015, section 6. Windows are drawn as torchvision's
`RandomResizedCrop` draws them: a share of the area, uniform in `scale`; an aspect ratio, log-uniform in `ratio`; ten
attempts, then the largest window in the middle whose ratio is allowed. Deviation: ratios lie on a grid of 4096 values,
because exp differs in the last bit between devices.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from kdbench.streams import derive, integers
from kdbench.suite.fields import ResizedCrop

ATTEMPTS = 10
GRID = 4096
STEPS = 1 << 24  # of the share of the area


def boxes(
    index_B: Tensor, height_B: Tensor, width_B: Tensor, crop: ResizedCrop, *, seed: int, epoch: int, view: int = 0
) -> Tensor:
    """The windows of examples `index_B`, whose images are `height_B` x `width_B`: a function of all that and no more.

    Returns:
        int64 (B, 4): top, left, height, width, in pixels of the image; always inside it.
    """
    real = _real(index_B.device)
    counter_BA = index_B[:, None] * ATTEMPTS + torch.arange(ATTEMPTS, device=index_B.device)
    whole_B2 = torch.stack([height_B, width_B], dim=1)

    def draw(name: str, high: int) -> Tensor:
        return integers(derive(seed, "resized_crop", name, epoch, view), counter_BA, high)

    low, high = crop.scale
    share_BA = low + (high - low) * (draw("area", STEPS).to(real) / STEPS)
    side_BA = (share_BA * (height_B * width_B).to(real)[:, None]).sqrt()
    root_BA = _roots(crop.ratio, index_B.device)[draw("ratio", GRID)]
    size_BA2 = torch.stack([side_BA / root_BA, side_BA * root_BA], dim=2).round().long()
    room_BA2 = whole_B2[:, None] - size_BA2
    fits_BA = ((size_BA2 > 0) & (room_BA2 >= 0)).all(2)
    place_BA2 = torch.stack([draw("top", 1 << 31), draw("left", 1 << 31)], dim=2) % (room_BA2 + 1).clamp_min(1)
    first_B = (fits_BA * torch.arange(ATTEMPTS, 0, -1, device=index_B.device)).argmax(1)
    every = torch.cat([place_BA2, size_BA2], dim=2)
    drawn_B4 = every.gather(1, first_B[:, None, None].expand(-1, 1, 4)).squeeze(1)
    return torch.where(fits_BA.any(1)[:, None], drawn_B4, _middle(whole_B2, crop.ratio))


def resampled(x: Tensor, box_B4: Tensor, size: int) -> Tensor:
    """Windows of uint8 images (B, channels, H, W) as uint8 (B, channels, size, size): bilinear, antialiased.

    The filter sees nothing outside the window. Rounded to the nearest level, in arithmetic that is exact enough for
    the same answer whatever the batch or the device.
    """
    out = windows(x, box_B4, size)
    return out.add_(0.5 + 1e-6).floor_().clamp_(0, 255).to(torch.uint8)  # ties go up, however they were summed


def windows(x: Tensor, box_B4: Tensor, size: int) -> Tensor:
    """The same before it is rounded, of any numbers: (B, channels, size, size) in double precision."""
    top_B, left_B, height_B, width_B = box_B4.unbind(1)
    rows = _weights(top_B, height_B, size, x.shape[2])
    columns = _weights(left_B, width_B, size, x.shape[3])
    return torch.einsum("bih,bchw,bjw->bcij", rows, x.to(rows.dtype), columns)


def _weights(start_B: Tensor, length_B: Tensor, size: int, total: int) -> Tensor:
    """(B, size, total): what each of `total` pixels gives to each of `size` answers; rows sum to 1."""
    real = _real(start_B.device)
    scale_B11 = length_B.to(real)[:, None, None] / size
    centre = (torch.arange(size, device=start_B.device, dtype=real)[:, None] + 0.5) * scale_B11  # (B, size, 1)
    pixel = torch.arange(total, device=start_B.device) - start_B[:, None, None]  # (B, 1, total), within the window
    weight = 1 - (pixel + 0.5 - centre).abs() / scale_B11.clamp_min(1)
    weight = weight.clamp_min(0) * ((pixel >= 0) & (pixel < length_B[:, None, None]))
    return weight / weight.sum(2, keepdim=True)


def _middle(whole_B2: Tensor, ratio: tuple[float, float]) -> Tensor:
    """The largest window in the middle with an allowed ratio (width / height): (B, 4)."""
    height_B, width_B = whole_B2.to(_real(whole_B2.device)).unbind(1)
    inner_B2 = torch.stack(
        [torch.minimum(height_B, (width_B / ratio[0]).round()), torch.minimum(width_B, (height_B * ratio[1]).round())],
        dim=1,
    ).long()
    inner_B2 = inner_B2.clamp_min(1)
    return torch.cat([(whole_B2 - inner_B2) // 2, inner_B2], dim=1)


@lru_cache(maxsize=16)
def _roots(ratio: tuple[float, float], device: torch.device) -> Tensor:
    """Square roots of GRID log-uniform ratios."""
    low, high = map(math.log, ratio)
    values = [math.exp((low + (high - low) * (i + 0.5) / GRID) / 2) for i in range(GRID)]
    return torch.tensor(values, dtype=torch.float64).to(_real(device)).to(device)


def _real(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64  # Apple's devices have no float64
