from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from kdbench import data
from kdbench.data import DataSet, Raw, digits
from kdbench.data.cut import cut, quotas, ranks
from kdbench.errors import UserError
from kdbench.suite.fields import Data

torch.set_num_threads(1)

HERE = Path()


def counts(labels: Tensor | np.ndarray, classes: int = 10) -> list[int]:
    return np.bincount(np.asarray(labels), minlength=classes).tolist()


@pytest.fixture(scope="module")
def small() -> DataSet:
    return data.load(Data(name="digits"), HERE)


# digits --------------------------------------------------------------------------------------------------------------


def test_digits_are_scikit_learns_and_scaled_without_loss() -> None:
    from sklearn.datasets import load_digits

    raw = digits.read("digits", HERE)
    stored = load_digits()
    table = {ink: int(np.floor(ink * 255 / 16 + 0.5)) for ink in range(17)}
    assert len(set(table.values())) == 17
    assert (table[0], table[16]) == (0, 255)
    scaled = [tuple(table[int(v)] for v in image.ravel()) for image in stored.images]
    kept = np.concatenate([raw.train_images, raw.test_images]).reshape(-1, 64).tolist()
    labels = np.concatenate([raw.train_labels, raw.test_labels]).tolist()
    assert sorted(zip(map(tuple, kept), labels, strict=True)) == sorted(
        zip(scaled, stored.target.tolist(), strict=True)
    )


def test_digits_splits_are_stratified_and_statistics_are_of_the_training_images(small: DataSet) -> None:
    assert (small.classes, small.channels, small.size) == (10, 1, 8)
    assert [len(s.labels) for s in (small.train, small.val, small.test)] == [1078, 180, 539]
    whole = np.array(counts(torch.cat([small.train.labels, small.val.labels, small.test.labels])))
    assert counts(small.val.labels) == [18] * 10
    assert np.abs(np.array(counts(small.test.labels)) - whole * 539 / 1797).max() < 1
    raw = digits.read("digits", HERE)
    scaled = np.asarray(raw.train_images) / 255
    assert (small.mean, small.std) == ((round(scaled.mean(), 4),), (round(scaled.std(), 4),))
    assert small.train.images.dtype == torch.uint8
    assert small.train.labels.dtype == torch.int64
    assert small.train.images.shape == (1078, 1, 8, 8)
    assert small.train.images.is_contiguous()


def test_loading_is_pinned_to_the_bit(small: DataSet) -> None:
    """These go into job keys: a library update that changes one makes every stored result stale."""
    assert (small.fingerprint, small.split) == ("2455ab75017b0886", "b0f0134c24dd1631")


def test_split_seed_moves_validation_but_not_the_test_split(small: DataSet) -> None:
    other = data.load(Data(name="digits", split_seed=1), HERE)
    assert torch.equal(other.test.images, small.test.images)
    assert other.fingerprint == small.fingerprint
    assert other.split != small.split
    assert not torch.equal(other.val.images, small.val.images)
    again = data.load(Data(name="digits", split_seed=1), HERE)
    assert torch.equal(again.val.images, other.val.images)
    assert again.split == other.split


# cuts ----------------------------------------------------------------------------------------------------------------

UNEVEN = np.random.default_rng(0).permutation(np.repeat(np.arange(5), [400, 37, 1, 2, 160]))


def test_ranks_number_each_class_in_the_order_of_the_stream() -> None:
    from kdbench.streams import counter_bits

    expected = np.empty(len(UNEVEN), dtype=np.int64)
    bits = counter_bits(9, torch.arange(len(UNEVEN))).tolist()
    for c in range(5):
        members = sorted((i for i in range(len(UNEVEN)) if UNEVEN[i] == c), key=lambda i: bits[i])
        for place, i in enumerate(members):
            expected[i] = place
    assert ranks(UNEVEN, 9).tolist() == expected.tolist()


@pytest.mark.parametrize("total", [0, 1, 3, 100, 299, 590, 595])
def test_quotas_are_proportional_and_spare_one_of_each_class(total: int) -> None:
    sizes = np.array([400, 37, 1, 2, 160, 0])
    quota = quotas(sizes, total)
    assert quota.sum() == total
    assert (quota[sizes > 0] < sizes[sizes > 0]).all()
    free = quota < sizes - 1  # a class at its limit hands its share on
    if total <= 300:
        assert (np.abs(quota - total * sizes / 600)[free] < 1).all()


def test_train_and_validation_are_disjoint_and_complete() -> None:
    train, val = cut(UNEVEN, 100, 1.0, seed=3)
    assert sorted([*train, *val]) == list(range(600))
    assert len(val) == 100
    assert train.tolist() == sorted(train)
    assert np.abs(np.array(counts(UNEVEN[val], 5)) - np.array([400, 37, 1, 2, 160]) / 6).max() < 1


def test_fractions_are_nested_stratified_and_keep_every_class() -> None:
    whole, val = cut(UNEVEN, 100, 1.0, seed=3)
    sizes = np.array(counts(UNEVEN[whole], 5))
    larger = set(whole)
    for fraction in (0.9, 0.5, 0.49, 0.25, 0.1, 0.01, 1e-9):
        train, same_val = cut(UNEVEN, 100, fraction, seed=3)
        assert set(train) <= larger
        larger = set(train)
        assert val.tolist() == same_val.tolist()
        kept = np.array(counts(UNEVEN[train], 5))
        assert kept.min() >= 1
        assert (np.abs(kept - np.maximum(1, fraction * sizes)) <= 0.5).all()
    assert counts(UNEVEN[train], 5) == [1] * 5


def test_seeds_cut_differently_and_alike_in_size() -> None:
    cuts = [cut(UNEVEN, 100, 0.5, seed) for seed in range(4)]
    assert len({tuple(val) for _, val in cuts}) == 4
    assert len({tuple(counts(UNEVEN[train], 5)) for train, _ in cuts}) == 1


def test_too_much_validation_is_refused_with_the_limit() -> None:
    assert len(data.load(Data(name="digits", val=1248), HERE).train.labels) == 10
    for val in (1249, 1258, 10**9):
        with pytest.raises(UserError, match=r"data\.val.*at most 1248"):
            data.load(Data(name="digits", val=val), HERE)


# load ----------------------------------------------------------------------------------------------------------------


def test_fingerprint_is_of_every_pixel_and_label_before_cuts(small: DataSet) -> None:
    raw = digits.read("digits", HERE)
    digest = hashlib.sha256()
    for array, kind in (
        (raw.train_images, "|u1"),
        (raw.train_labels, "<i8"),
        (raw.test_images, "|u1"),
        (raw.test_labels, "<i8"),
    ):
        digest.update(f"{kind}{array.shape}".encode() + array.astype(kind).tobytes())
    assert small.fingerprint == digest.hexdigest()[:16]
    assert data.load(Data(name="digits", fraction=0.1, val=10), HERE).fingerprint == small.fingerprint
    for field in ("train_images", "train_labels", "test_images", "test_labels"):
        changed = digits.read("digits", HERE)
        array = getattr(changed, field)
        array.flat[-1] = (array.flat[-1] + 1) % 10
        assert data.fingerprint(changed) != small.fingerprint


def test_unknown_names_and_options_are_sentences() -> None:
    with pytest.raises(UserError, match=r"no data set 'digit' .did you mean 'digits'"):
        data.load(Data(name="digit"), HERE)
    with pytest.raises(UserError, match=r"data\.options of 'digits'.*'colour'"):
        data.load(Data(name="digits", options={"colour": True}), HERE)


MINE = """
import numpy as np
from kdbench.data import Raw

def load(root, classes=3, **changes):
    labels = np.arange(30) % classes
    images = np.arange(30 * 48).reshape(30, 3, 4, 4) // 6
    images = images.astype(np.uint8)
    parts = dict(train_images=images, train_labels=labels, test_images=images[:6], test_labels=labels[:6],
                 mean=(0.5,) * 3, std=(0.2,) * 3, classes=3, val=6)
    for part, change in changes.items():
        parts[part] = {"float": images.astype(float), "oblong": images[:, :, :2], "short": labels[:5],
                       "fraction": labels / 2, "negative": labels - 1, "empty": labels[:0], "grey": (0.5,),
                       "small": images[:6, :, :2, :2], "flat": (0.0,) * 3}[change]
    return Raw(**parts)

def list_of_numbers(root):
    return [1, 2]
"""


@pytest.fixture
def mine(tmp_path: Path) -> Callable[..., DataSet]:
    (tmp_path / "mine.py").write_text(MINE)

    def load(function: str = "load", **options: object) -> DataSet:
        return data.load(Data(name=f"./mine.py:{function}", options=options), Path("anywhere"), folder=tmp_path)

    return load


def test_a_function_of_the_users_file(mine: Callable[..., DataSet]) -> None:
    loaded = mine()
    assert (loaded.channels, loaded.size, loaded.classes) == (3, 4, 3)
    assert [len(s.labels) for s in (loaded.train, loaded.val, loaded.test)] == [24, 6, 6]
    position = {bytes(image): i for i, image in enumerate((np.arange(1440) // 6).reshape(30, 48).astype(np.uint8))}
    for split in (loaded.train, loaded.val):
        assert [position[bytes(image.flatten().tolist())] % 3 for image in split.images] == split.labels.tolist()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"train_images": "float"}, "train_images must be uint8"),
        ({"test_images": "oblong"}, "test_images must be uint8 .*H, H"),
        ({"test_images": "small"}, "test_images are .*train_images"),
        ({"train_labels": "short"}, r"train_labels must be integers \(30,\)"),
        ({"test_labels": "fraction"}, "test_labels must be integers"),
        ({"train_labels": "negative"}, "train_labels go from -1 to 1; there are 3"),
        ({"test_labels": "empty"}, "test_labels must be integers"),
        ({"classes": 4}, "train_labels go from 0 to 3; there are 3"),
        ({"mean": "grey"}, "mean and std need 3 values"),
        ({"std": "flat"}, "std above 0"),
    ],
)
def test_a_users_file_is_checked_like_ours(mine: Callable[..., DataSet], options: dict, said: str) -> None:
    with pytest.raises(UserError, match=r"mine\.py:load.*" + said):
        mine(**options)


def test_a_function_that_returns_something_else(mine: Callable[..., DataSet]) -> None:
    with pytest.raises(UserError, match=r"must return a kdbench\.Raw, not list"):
        mine("list_of_numbers")


def test_tensors_are_welcome_in_raw() -> None:
    raw = digits.read("digits", HERE)
    parts = (raw.train_images, raw.train_labels, raw.test_images, raw.test_labels)
    same = Raw(*map(torch.from_numpy, parts), mean=raw.mean, std=raw.std, classes=10, val=180)  # type: ignore[arg-type]
    assert data.fingerprint(same) == data.fingerprint(raw)


# real data -----------------------------------------------------------------------------------------------------------


def real(name: str, **fields: object) -> DataSet:
    root = os.environ.get("KDBENCH_DATA")
    if not root:
        pytest.skip("KDBENCH_DATA names no folder of real data")
    if not data.found(Path(root))[name].startswith("found"):
        pytest.skip(f"KDBENCH_DATA has no {name}")
    return data.load(Data(name=name, **fields), Path(root))  # type: ignore[arg-type]


MNIST_TRAIN = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]  # LeCun et al., class by class
MNIST_TEST = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "train", "test", "total"),
    [
        ("mnist", MNIST_TRAIN, MNIST_TEST, 55_000),
        ("fashion_mnist", [6000] * 10, [1000] * 10, 55_000),
        ("cifar10", [5000] * 10, [1000] * 10, 45_000),
        ("cifar100", [500] * 100, [100] * 100, 45_000),
    ],
)
def test_published_sets_have_their_known_sizes_balance_and_statistics(
    name: str, train: list[int], test: list[int], total: int
) -> None:
    loaded = real(name)
    assert [len(s.labels) for s in (loaded.train, loaded.val, loaded.test)] == [total, 5000, 10_000]
    classes = loaded.classes
    both = np.array(counts(loaded.train.labels, classes)) + counts(loaded.val.labels, classes)
    assert both.tolist() == train
    assert counts(loaded.test.labels, classes) == test
    assert np.abs(np.array(counts(loaded.val.labels, classes)) - 5000 * both / both.sum()).max() < 1
    scaled = torch.cat([loaded.train.images, loaded.val.images]).transpose(0, 1).flatten(1)
    for c, (mean, std) in enumerate(zip(loaded.mean, loaded.std, strict=True)):
        values = scaled[c].float() / 255
        assert float(values.mean(dtype=torch.float64)) == pytest.approx(mean, abs=1e-4)
        assert float(values.double().std()) == pytest.approx(std, abs=1e-4)


@pytest.mark.data
def test_mnist_begins_as_is_well_known() -> None:
    loaded = real("mnist", val=1)
    assert loaded.test.labels[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]


# a validation split of one's own -------------------------------------------------------------------------------------
def with_file(tmp_path: Path, **arrays) -> Data:
    np.savez(tmp_path / "mine.npz", **arrays)
    return Data(name="digits", options={"val": "mine.npz"})


def test_validation_may_be_a_file_of_ones_own(tmp_path: Path) -> None:
    cut = data.load(Data(name="digits"), tmp_path)
    images = np.random.default_rng(0).integers(0, 256, (20, 8, 8), dtype=np.uint8)
    found = data.load(with_file(tmp_path, x_val=images, y_val=np.arange(20) % 10), tmp_path)
    assert torch.equal(found.val.images, torch.from_numpy(images)[:, None])
    assert found.val.labels.tolist() == (np.arange(20) % 10).tolist()
    assert torch.equal(found.test.images, cut.test.images)
    assert len(found.train.labels) == len(cut.train.labels) + len(cut.val.labels)  # nothing is cut from it
    assert found.fingerprint != cut.fingerprint
    images[0, 0, 0] ^= 1
    again = data.load(with_file(tmp_path, x_val=images, y_val=np.arange(20) % 10), tmp_path)
    assert again.fingerprint != found.fingerprint


def test_a_wrong_validation_file_is_a_sentence(tmp_path: Path) -> None:
    x, y = np.zeros((20, 8, 8), dtype=np.uint8), np.arange(20) % 10
    train = data.load(Data(name="digits"), tmp_path).train.images.numpy()

    def said(given: Data) -> str:
        with pytest.raises(UserError) as caught:
            data.load(given, tmp_path)
        return str(caught.value)

    assert "there is no file" in said(Data(name="digits", options={"val": "mine.npz"}))
    assert "has no array y_val" in said(with_file(tmp_path, x_val=x))
    assert "val_labels must be integers (20,)" in said(with_file(tmp_path, x_val=x, y_val=y[:3]))
    assert "val_labels go from 1 to 10" in said(with_file(tmp_path, x_val=x, y_val=y + 1))
    assert "val_images are (1, 9, 9), train_images (1, 8, 8)" in said(
        with_file(tmp_path, x_val=np.zeros((20, 9, 9), dtype=np.uint8), y_val=y)
    )
    assert "val_images must be uint8" in said(with_file(tmp_path, x_val=x / 2, y_val=y))
    assert "3 of its images are among those of the train split" in said(
        with_file(tmp_path, x_val=np.concatenate([x[:17, None], train[:3]]), y_val=y)
    )
    (tmp_path / "mine.npz").write_bytes(b"no archive")
    assert "cannot be read as .npz" in said(Data(name="digits", options={"val": "mine.npz"}))
    for wrong in (3, "mine.csv", str(tmp_path / "mine.npz")):
        assert "is the name of a .npz file below the data root" in said(Data(name="digits", options={"val": wrong}))
    both = with_file(tmp_path, x_val=x, y_val=y).model_copy(update={"val": 5})
    assert "data.val: 5 cuts validation from the training set" in said(both)


def test_one_class_is_refused_in_any_set(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import numpy as np\nfrom kdbench.data import Raw\n"
        "def load(root, classes, kinds):\n"
        "    x, y = np.zeros((8, 1, 4, 4), np.uint8), np.arange(8) % kinds\n"
        "    return Raw(x, y, x, y, mean=(0.5,), std=(0.5,), classes=classes, val=2)\n"
    )
    for options in ({"classes": 1, "kinds": 1}, {"classes": 3, "kinds": 1}):
        with pytest.raises(UserError, match="has one class only"):
            data.load(Data(name="./mine.py:load", options=options), tmp_path, tmp_path)
    assert data.load(Data(name="./mine.py:load", options={"classes": 3, "kinds": 2}), tmp_path, tmp_path).classes == 3


def test_a_reader_with_an_option_val_keeps_it(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import numpy as np\nfrom kdbench.data import Raw\n"
        "def load(root, val):\n"
        "    x, y = np.zeros((8, 1, 4, 4), np.uint8), np.arange(8) % 2\n"
        "    return Raw(x, y, x, y, mean=(0.5,), std=(0.5,), classes=2, val=val)\n"
    )
    assert len(data.load(Data(name="./mine.py:load", options={"val": 4}), tmp_path, tmp_path).val.labels) == 4
