from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from kdbench.data.augment import parameters, pixels
from kdbench.suite.fields import Augment

torch.set_num_threads(1)

MEAN, STD = (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)
CROP_FLIP = Augment(crop=4, flip=True)
N, SIZE = 40, 12


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randint(0, 256, (N, 3, SIZE, SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def augmented(images: Tensor, index: Tensor, augment: Augment | None = CROP_FLIP, **key: int) -> Tensor:
    return pixels(images, index, augment=augment, mean=MEAN, std=STD, **{"seed": 0, "epoch": 0, **key})


def reference(images: Tensor, index: Tensor, augment: Augment, seed: int, epoch: int, view: int) -> np.ndarray:
    """Image by image, with numpy's own pad, slice and flip, and a textbook normalisation in float64."""
    tops, lefts, flips = parameters(index, augment, seed=seed, epoch=epoch, view=view)
    p, out = augment.crop, []
    for i, top, left, flip in zip(index.tolist(), tops.tolist(), lefts.tolist(), flips.tolist(), strict=True):
        padded = np.pad(images[i].numpy(), ((0, 0), (p, p), (p, p)))
        image = padded[:, top : top + images.shape[2], left : left + images.shape[3]]
        image = image[:, :, ::-1] if flip else image
        out.append((image / 255 - np.reshape(MEAN, (3, 1, 1))) / np.reshape(STD, (3, 1, 1)))
    return np.stack(out)


@pytest.mark.parametrize(
    "augment", [CROP_FLIP, Augment(crop=2), Augment(flip=True), Augment(crop=SIZE), Augment(crop=30, flip=True)]
)
def test_equals_pad_crop_flip_normalise_image_by_image(images: Tensor, augment: Augment) -> None:
    index = torch.tensor([3, 39, 0, 17, 3, *range(20, 35)])
    for key in ({"seed": 0, "epoch": 0, "view": 0}, {"seed": 5, "epoch": 7, "view": 1}):
        out = augmented(images, index, augment, **key)
        assert out.dtype == torch.float32
        np.testing.assert_allclose(out.numpy(), reference(images, index, augment, **key), rtol=0, atol=3e-6)


def test_pixels_that_move_are_exactly_the_stored_ones(images: Tensor) -> None:
    """No interpolation, no rounding: undoing the normalisation gives whole numbers found in the image, or black."""
    out = pixels(images, torch.arange(N), augment=CROP_FLIP, seed=1, epoch=1, mean=(0.0,) * 3, std=(1 / 255,) * 3)
    tops, lefts, flips = parameters(torch.arange(N), CROP_FLIP, seed=1, epoch=1)
    for i in range(N):
        padded = torch.zeros(3, SIZE + 8, SIZE + 8)
        padded[:, 4 : 4 + SIZE, 4 : 4 + SIZE] = images[i]
        window = padded[:, tops[i] : tops[i] + SIZE, lefts[i] : lefts[i] + SIZE]
        assert torch.equal(out[i], window.flip(2) if flips[i] else window)


@pytest.mark.parametrize("augment", [None, Augment()])
def test_without_augmentation_only_normalises(images: Tensor, augment: Augment | None) -> None:
    index = torch.tensor([5, 5, 1])
    expected = (images[index].numpy() / 255 - np.reshape(MEAN, (3, 1, 1))) / np.reshape(STD, (3, 1, 1))
    out = augmented(images, index, augment, seed=3)
    np.testing.assert_allclose(out.numpy(), expected, rtol=0, atol=3e-6)
    assert torch.equal(out, augmented(images, index, augment, seed=4, epoch=9, view=1))


@pytest.mark.parametrize("size", [1, 3, 7, 39])
def test_batching_changes_no_bit(images: Tensor, size: int) -> None:
    order = torch.randperm(N, generator=torch.Generator().manual_seed(1))
    whole = augmented(images, order, epoch=2)
    assert torch.equal(torch.cat([augmented(images, part, epoch=2) for part in order.split(size)]), whole)
    by_position = torch.empty_like(whole)
    by_position[order] = whole
    assert torch.equal(augmented(images, torch.arange(N), epoch=2), by_position)


def test_resuming_in_a_later_epoch_changes_no_bit(images: Tensor) -> None:
    index = torch.arange(N)
    torch.manual_seed(0)
    through = [augmented(images, index, epoch=epoch) for epoch in range(4)]
    torch.manual_seed(123)  # a resumed process has another global state ...
    before = torch.get_rng_state()
    assert torch.equal(augmented(images, index, epoch=3), through[3])
    assert torch.equal(torch.get_rng_state(), before)  # ... which augmentation neither reads nor moves


def test_seed_epoch_and_view_each_change_the_crops(images: Tensor) -> None:
    keys = [{}, {"seed": 1}, {"epoch": 1}, {"view": 1}, {"epoch": 1, "view": 1}]
    outs = [augmented(images, torch.arange(N), **key) for key in keys]
    for a in range(len(outs)):
        for b in range(a):
            same = (outs[a] == outs[b]).flatten(1).all(dim=1).float().mean()
            assert same < 0.2, (keys[a], keys[b])


def test_places_and_flips_are_uniform_and_independent() -> None:
    n = 40_000
    tops, lefts, flips = parameters(torch.arange(n), CROP_FLIP, seed=0, epoch=0)
    counts = torch.bincount((tops * 9 + lefts) * 2 + flips, minlength=162).numpy()
    assert counts.shape == (162,)
    assert stats.chisquare(counts).pvalue > 1e-4
    later, *_ = parameters(torch.arange(n), CROP_FLIP, seed=0, epoch=1)
    table = torch.bincount(tops * 9 + later, minlength=81).view(9, 9).numpy()
    assert stats.chi2_contingency(table).pvalue > 1e-4


def test_crop_alone_never_flips_and_flip_alone_never_moves() -> None:
    index = torch.arange(1000)
    tops, lefts, flips = parameters(index, Augment(crop=4), seed=0, epoch=0)
    assert not flips.any()
    assert {*tops.tolist()} == {*lefts.tolist()} == set(range(9))
    tops, lefts, flips = parameters(index, Augment(flip=True), seed=0, epoch=0)
    assert not tops.any()
    assert not lefts.any()
    assert 400 < int(flips.sum()) < 600


def test_grey_images_and_input_untouched() -> None:
    images = torch.full((4, 1, 8, 8), 255, dtype=torch.uint8)
    out = pixels(images, torch.arange(4), augment=Augment(crop=8), seed=0, epoch=0, mean=(0.5,), std=(0.5,))
    assert {*out.unique().tolist()} <= {-1.0, 1.0}  # black padding is -1, white 1
    assert (images == 255).all()
    assert out.is_contiguous()


def test_nothing_waits_for_the_device() -> None:
    """Tensors of the meta device have no values: whatever reads one on the host raises."""
    images = torch.empty(N, 3, SIZE, SIZE, dtype=torch.uint8, device="meta")
    out = augmented(images, torch.empty(16, dtype=torch.int64, device="meta"))
    assert out.shape == (16, 3, SIZE, SIZE)
    assert out.dtype == torch.float32


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_devices_agree_to_the_bit(images: Tensor) -> None:
    index, there = torch.arange(N), images.cuda()
    index_there = index.cuda()
    augmented(there, index_there)  # the constants are copied once
    torch.cuda.set_sync_debug_mode("error")
    try:
        out = augmented(there, index_there, epoch=1)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(out.cpu(), augmented(images, index, epoch=1))
