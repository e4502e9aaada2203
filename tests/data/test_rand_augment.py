"""Every operation equals torchvision's with the same parameters, and draws are uniform and counter-based."""

from __future__ import annotations

import pytest
import torch
from scipy import stats
from torchvision.transforms import InterpolationMode, RandAugment
from torchvision.transforms.autoaugment import _apply_op

from kdbench.data.augment import pixels
from kdbench.data.rand_augment import OPERATIONS, apply, rand_augmented
from kdbench.errors import UserError
from kdbench.suite.fields import Augment
from kdbench.suite.fields import RandAugment as Spec

torch.set_num_threads(1)

THEIRS = dict(
    zip(
        OPERATIONS,
        (
            *("Identity", "ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness", "Color"),
            *("Contrast", "Sharpness", "Posterize", "Solarize", "AutoContrast", "Equalize"),
        ),
        strict=True,
    )
)
GEOMETRIC = OPERATIONS[1:6]


def images(batch: int = 4, channels: int = 3, height: int = 18, width: int = 25) -> torch.Tensor:
    """Smooth and noisy ones, a dark one, and one of a single colour."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randint(0, 256, (batch, channels, height, width), dtype=torch.uint8, generator=generator)
    x[1] = torch.linspace(20, 180, height * width).view(height, width).to(torch.uint8)
    x[2] //= 5
    x[3] = 77
    return x


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("m", [0, 9, 17, 30])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_an_operation_is_torchvisions(operation: str, m: int, channels: int) -> None:
    x = images(channels=channels)
    magnitudes, signed = RandAugment()._augmentation_space(31, (x.shape[2], x.shape[3]))[THEIRS[operation]]
    number = torch.full((4,), OPERATIONS.index(operation))
    for sign in (1, -1) if signed else (1,):
        magnitude = float(magnitudes[m]) * sign if magnitudes.ndim else 0.0
        ours = apply(x, number, torch.full((4,), sign), m)
        theirs = torch.stack(
            [_apply_op(image, THEIRS[operation], magnitude, InterpolationMode.NEAREST, None) for image in x]
        )
        if operation in GEOMETRIC:  # a pixel midway between two: float32 and float64 may choose differently
            assert (ours != theirs).any(1).float().mean() < 0.02
        elif operation == "contrast":  # float32 means, summed in another order
            assert (ours.int() - theirs.int()).abs().max() <= 1
            assert (ours != theirs).float().mean() < 0.01
        else:
            assert torch.equal(ours, theirs)


def test_operations_of_a_batch_do_not_touch_each_other() -> None:
    x = images(batch=len(OPERATIONS))
    every, sign = torch.arange(len(OPERATIONS)), torch.tensor([1, -1] * 7)
    together = apply(x, every, sign, 9)
    for i in range(len(OPERATIONS)):
        assert torch.equal(together[i : i + 1], apply(x[i : i + 1], every[i : i + 1], sign[i : i + 1], 9))
    assert torch.equal(together[0], x[0])  # identity


def test_draws_depend_on_the_example_alone_and_each_round_draws_anew() -> None:
    x, index = images(40), torch.randperm(40, generator=torch.Generator().manual_seed(0))
    key = {"seed": 1, "epoch": 2}
    whole = rand_augmented(x[index], index, Spec(), **key)
    parts = [rand_augmented(x[part], part, Spec(), **key) for part in index.split(7)]
    assert torch.equal(torch.cat(parts), whole)
    once = rand_augmented(x[index], index, Spec(n=1), **key)
    assert not torch.equal(once, whole)
    for other in ({"seed": 2, "epoch": 2}, {"seed": 1, "epoch": 3}, {**key, "view": 1}):
        assert not torch.equal(rand_augmented(x[index], index, Spec(), **other), whole)


def test_operations_are_uniform() -> None:
    """Told apart by what they make of one image, at a strength where all differ."""
    x = images(height=12, width=12)[:1]
    results = {}
    for number in range(len(OPERATIONS)):
        for sign in (1, -1):
            made = apply(x, torch.tensor([number]), torch.tensor([sign]), 20)
            results.setdefault(made.numpy().tobytes(), []).append(number)
    n = 2800
    out = rand_augmented(x.expand(n, -1, -1, -1), torch.arange(n), Spec(n=1, m=20), seed=0, epoch=0)
    counts = [0] * len(results)
    order = list(results)
    for image in out:
        counts[order.index(image.numpy().tobytes())] += 1
    expected = [n * len(numbers) / (2 * len(OPERATIONS)) for numbers in results.values()]
    assert len(results) >= 20
    assert stats.chisquare(counts, expected).pvalue > 1e-4


def test_it_comes_after_crop_and_flip_and_other_channel_counts_are_refused() -> None:
    stored = images(10, height=12, width=12)
    kinds = {"crop": 2, "flip": True}
    given = {"seed": 0, "epoch": 1, "mean": (0.0,) * 3, "std": (1 / 255,) * 3}
    moved = pixels(stored, torch.arange(10), augment=Augment(**kinds), **given)
    out = pixels(stored, torch.arange(10), augment=Augment(**kinds, rand_augment=Spec()), **given)
    expected = rand_augmented(moved.round().to(torch.uint8), torch.arange(10), Spec(), seed=0, epoch=1)
    assert torch.equal(out.round(), expected.float())
    with pytest.raises(UserError, match="needs 1 or 3 channels; these images have 2"):
        rand_augmented(images()[:, :2], torch.arange(4), Spec(), seed=0, epoch=0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_devices_agree() -> None:
    x, index = images(200), torch.arange(200)
    here = rand_augmented(x, index, Spec(), seed=0, epoch=0)
    there = rand_augmented(x.cuda(), index.cuda(), Spec(), seed=0, epoch=0).cpu()
    assert (here != there).float().mean() < 0.005
    assert ((here.int() - there.int()).abs() > 1).float().mean() < 0.005
