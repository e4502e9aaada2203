"""Handwritten digits, 8x8, embedded in scikit-learn: 1797 real images for tests and first steps, no files needed.

E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository, 1998;
scikit-learn ships the 1797 images of its test part (`sklearn.datasets.load_digits`). There is no official split of
those, so kdbench fixes one: 30 % (539 images), stratified by class, are the test split, chosen by a stream of their
own; `split_seed` does not move it.

`digits_lower_half` is the same images as a task on pixels: the lower half of an image, 32 numbers (1, 4, 8), from the
upper one, with ink from 0 to 1; the same images are its test split.

Stored values are ink counts 0..16. They become uint8 as floor((255 v + 8) / 16), that is 255 v / 16 rounded half up:
0 -> 0, 16 -> 255, and no two values meet.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from kdbench.data.cut import quotas, ranks
from kdbench.data.numbers import RawNumbers
from kdbench.data.raw import Raw
from kdbench.streams import derive

NAMES = ("digits", "digits_lower_half")
TASKS = {"digits": "classification", "digits_lower_half": "regression"}

TEST_SHARE = 30  # percent
# Of the 1258 images outside the test split, to four decimals.
MEAN, STD = (0.3064,), (0.3765,)


def read(name: str, root: Path) -> Raw | RawNumbers:
    """The whole set; `root` is not looked at."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    ink = pixels.astype(np.int64).reshape(-1, 1, 8, 8)
    labels = labels.astype(np.int64)
    quota_C = quotas(np.bincount(labels), len(labels) * TEST_SHARE // 100)
    is_test = ranks(labels, derive(0, "digits", "test")) < quota_C[labels]
    if name == "digits_lower_half":
        upper, lower = (ink[:, :, rows].astype(np.float32) / 16 for rows in (slice(0, 4), slice(4, 8)))
        return RawNumbers(
            train=upper[~is_test],
            train_labels=lower[~is_test],
            test=upper[is_test],
            test_labels=lower[is_test],
            outputs=1,
            val=180,
        )
    images = ((255 * ink + 8) // 16).astype(np.uint8)
    return Raw(
        train_images=images[~is_test],
        train_labels=labels[~is_test],
        test_images=images[is_test],
        test_labels=labels[is_test],
        mean=MEAN,
        std=STD,
        classes=10,
        val=180,
    )


def status(name: str, root: Path) -> str:
    return "embedded"
