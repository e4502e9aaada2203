"""Windows are torchvision's in distribution, and what they become is torchvision's in pixels."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms import functional as V

from kdbench.data.augment import pixels
from kdbench.data.resized_crop import boxes, resampled
from kdbench.suite.fields import Augment, ResizedCrop

torch.set_num_threads(1)

N = 20_000


def drawn(height: int, width: int, crop: ResizedCrop | None = None, n: int = N, **key: int) -> torch.Tensor:
    index = torch.arange(n)
    sizes = (torch.full((n,), height), torch.full((n,), width))
    return boxes(index, *sizes, crop or ResizedCrop(), **{"seed": 0, "epoch": 0, **key})


@pytest.mark.parametrize(("height", "width"), [(50, 70), (200, 31), (31, 200), (1, 1), (7, 3)])
def test_windows_lie_inside(height: int, width: int) -> None:
    top, left, h, w = drawn(height, width).unbind(1)
    assert bool(((top >= 0) & (left >= 0) & (h > 0) & (w > 0) & (top + h <= height) & (left + w <= width)).all())


def test_windows_are_distributed_as_torchvisions() -> None:
    """Two-sample tests of all four numbers against torchvision's own sampler."""
    torch.manual_seed(0)
    image = torch.zeros(3, 60, 90)
    theirs = np.array([RandomResizedCrop.get_params(image, [0.08, 1.0], [0.75, 4 / 3]) for _ in range(4000)])
    ours = drawn(60, 90).numpy()
    for column in range(4):
        assert stats.ks_2samp(ours[:, column], theirs[:, column]).pvalue > 1e-3
    assert np.corrcoef(ours.T) == pytest.approx(np.corrcoef(theirs.T), abs=0.06)


def test_where_no_window_fits_it_is_torchvisions_middle() -> None:
    for height, width in ((10, 100), (100, 10), (40, 40)):
        narrow = ResizedCrop(scale=(1.0, 1.0), ratio=(1.2, 1.4))
        expected = RandomResizedCrop.get_params(torch.zeros(3, height, width), [1.0, 1.0], [1.2, 1.4])
        assert drawn(height, width, narrow, 20).unique(dim=0).tolist() == [list(expected)]


def test_a_window_is_a_function_of_seed_epoch_view_and_index() -> None:
    first = drawn(50, 70, n=500)
    assert torch.equal(drawn(50, 70, n=500), first)
    some = torch.tensor([499, 3, 3])
    sizes = (torch.full((3,), 50), torch.full((3,), 70))
    assert torch.equal(boxes(some, *sizes, ResizedCrop(), seed=0, epoch=0), first[some])
    for key in ({"seed": 1}, {"epoch": 1}, {"view": 1}):
        assert (drawn(50, 70, n=500, **key) == first).all(1).float().mean() < 0.02


@pytest.mark.parametrize("size", [8, 21, 40])
def test_resampling_is_torchvisions_example_by_example(size: int) -> None:
    """Up, down and mixed; rounding may differ by one level, and does in few places."""
    x = torch.randint(0, 256, (24, 3, 33, 27), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    box_B4 = drawn(33, 27, n=24)
    ours = resampled(x, box_B4, size)
    assert ours.dtype == torch.uint8
    for i, box in enumerate(box_B4.tolist()):
        exact = V.resized_crop(x[i].double(), *box, [size, size], antialias=True)
        assert (ours[i] - exact).abs().max() <= 0.5 + 1e-4
        theirs = V.resized_crop(x[i], *box, [size, size], antialias=True)
        assert (ours[i].int() - theirs.int()).abs().max() <= 1


def test_the_whole_window_at_its_own_size_is_the_image() -> None:
    x = torch.randint(0, 256, (2, 1, 9, 9), dtype=torch.uint8)
    assert torch.equal(resampled(x, torch.tensor([[0, 0, 9, 9]] * 2), 9), x)


def test_in_memory_images_are_cropped_flipped_and_normalised() -> None:
    images = torch.randint(0, 256, (30, 3, 12, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    index, zero, one = torch.tensor([4, 29, 0, 4]), (0.0,) * 3, (1 / 255,) * 3
    crop = Augment(random_resized_crop=ResizedCrop(scale=(0.2, 0.8)))
    both = crop.model_copy(update={"flip": True})
    plain = pixels(images, index, augment=crop, seed=1, epoch=2, mean=zero, std=one)
    sizes = (torch.full_like(index, 12),) * 2
    box_B4 = boxes(index, *sizes, ResizedCrop(scale=(0.2, 0.8)), seed=1, epoch=2)
    assert torch.equal(plain, resampled(images[index], box_B4, 12).float())
    out = pixels(images, torch.arange(30), augment=both, seed=1, epoch=2, mean=zero, std=one)
    whole = pixels(images, torch.arange(30), augment=crop, seed=1, epoch=2, mean=zero, std=one)
    flipped = (out == whole.flip(3)).flatten(1).all(1)
    assert torch.equal(torch.where(flipped[:, None, None, None], whole.flip(3), whole), out)
    assert 5 < int(flipped.sum()) < 25
    parts = [
        pixels(images, part, augment=both, seed=1, epoch=2, mean=zero, std=one) for part in torch.arange(30).split(7)
    ]
    assert torch.equal(torch.cat(parts), out)


def test_nothing_waits_for_the_device() -> None:
    images = torch.empty(9, 3, 12, 12, dtype=torch.uint8, device="meta")
    augment = Augment.model_validate({"flip": True, "random_resized_crop": {}, "rand_augment": {}})
    index = torch.empty(4, dtype=torch.int64, device="meta")
    out = pixels(images, index, augment=augment, seed=0, epoch=0, mean=(0.5,) * 3, std=(0.5,) * 3)
    assert out.shape == (4, 3, 12, 12)


def test_areas_and_ratios_keep_to_their_ranges() -> None:
    *_, h, w = drawn(200, 200, ResizedCrop(scale=(0.3, 0.5), ratio=(0.5, 2.0))).double().unbind(1)
    area, ratio = h * w / 200**2, w / h
    assert 0.29 < area.min() < 0.31
    assert 0.49 < area.max() < 0.51
    assert stats.kstest(np.log(ratio.numpy()), stats.uniform(-math.log(2), 2 * math.log(2)).cdf).statistic < 0.02


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_devices_agree_to_the_bit() -> None:
    x = torch.randint(0, 256, (64, 3, 33, 33), dtype=torch.uint8)
    box_B4 = drawn(33, 33, n=64)
    there = boxes(torch.arange(64).cuda(), *(torch.full((64,), 33).cuda(),) * 2, ResizedCrop(), seed=0, epoch=0)
    assert torch.equal(there.cpu(), box_B4)
    assert torch.equal(resampled(x.cuda(), there, 20).cpu(), resampled(x, box_B4, 20))
