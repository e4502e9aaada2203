"""Diabetes: one year's progression of the disease from ten measurements, 442 patients; embedded in scikit-learn.

B. Efron, T. Hastie, I. Johnstone, R. Tibshirani, "Least Angle Regression", Annals of Statistics, 2004. Measurements are
those of scikit-learn's `load_diabetes(scaled=False)`: age, sex, body-mass index, blood pressure, six of the blood
serum. The target is from 25 to 346. There is no official split, so kdbench fixes one: 132 patients (30 %) are the test
split, chosen by a stream of their own; `split_seed` does not move it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from kdbench.data.cut import ranks
from kdbench.data.numbers import RawNumbers
from kdbench.streams import derive

NAMES = ("diabetes",)
TASK = "regression"

TEST = 132


def read(name: str, root: Path) -> RawNumbers:
    """The whole set; `root` is not looked at."""
    from sklearn.datasets import load_diabetes

    values, targets = load_diabetes(return_X_y=True, scaled=False)
    is_test = ranks(np.zeros(len(targets), dtype=np.int64), derive(0, "diabetes", "test")) < TEST
    return RawNumbers(
        train=values[~is_test],
        train_labels=targets[~is_test, None],
        test=values[is_test],
        test_labels=targets[is_test, None],
        outputs=1,
        val=62,
    )


def status(name: str, root: Path) -> str:
    return "embedded"
