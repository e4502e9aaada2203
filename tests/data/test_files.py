"""Official layouts in miniature: read alike, and refused with the file's name when they are damaged."""

from __future__ import annotations

import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data_layouts import GREY, cifar_parts, dump, make_cifar, make_mnist, write_idx

from kdbench import data
from kdbench.errors import UserError
from kdbench.suite.fields import Data

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _no_download(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KDBENCH_DOWNLOAD", raising=False)


def load(name: str, root: Path, **fields: Any) -> data.DataSet:
    return data.load(Data(name=name, **{"val": 10, **fields}), root)


def refused(name: str, root: Path, *said: str) -> None:
    """The sentence holds each of `said`, and is one sentence."""
    with pytest.raises(UserError) as caught:
        load(name, root)
    for part in said:
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


# layouts -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", ["MNIST/raw", "MNIST", "mnist", "."])
@pytest.mark.parametrize(("mark", "suffix"), [("-", ""), (".", ""), ("-", ".gz"), (".", ".gz")])
def test_mnist_in_every_layout(tmp_path: Path, folder: str, mark: str, suffix: str) -> None:
    make_mnist(tmp_path, folder, mark, suffix)
    loaded = load("mnist", tmp_path)
    images, labels, test_images, test_labels = GREY.values()
    assert torch.equal(loaded.test.images, torch.tensor(test_images, dtype=torch.uint8)[:, None])
    assert loaded.test.labels.tolist() == test_labels.tolist()
    stored = {image.astype(np.uint8).tobytes(): int(label) for image, label in zip(images, labels, strict=True)}
    seen = [
        (image.numpy().tobytes(), int(label))
        for split in (loaded.train, loaded.val)
        for image, label in zip(split.images, split.labels, strict=True)
    ]
    assert sorted(seen) == sorted(stored.items())
    assert data.found(tmp_path)["mnist"] == f"found (IDX in {folder})"


def test_fashion_mnist_is_never_taken_for_mnist(tmp_path: Path) -> None:
    """Both have the same file names: in a folder without a telling name they are MNIST."""
    make_mnist(tmp_path / "flat", ".")
    refused("fashion_mnist", tmp_path / "flat", "FashionMNIST/raw/")
    make_mnist(tmp_path, "FashionMNIST/raw")
    assert len(load("fashion_mnist", tmp_path).test.labels) == 20
    for root in (tmp_path / "FashionMNIST", tmp_path / "FashionMNIST" / "raw"):
        assert len(load("fashion_mnist", root).test.labels) == 20
        refused("mnist", root, "MNIST/raw/")


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_is_the_same_in_every_layout(tmp_path: Path, name: str) -> None:
    make_cifar(tmp_path / "bin", name, "bin")
    make_cifar(tmp_path / "flat", name, "bin", folder=".")
    for protocol in (2, 4, 5, "python2"):
        make_cifar(tmp_path / str(protocol), name, "py", protocol)
    loaded = [load(name, tmp_path / root) for root in ("bin", "flat", "2", "4", "5", "python2")]
    assert len({(each.fingerprint, each.split) for each in loaded}) == 1
    pixels, labels = list(cifar_parts(name).values())[-1]
    for i in (0, 7, len(labels) - 1):
        for plane in range(3):  # red, green, blue; each row by row
            expected = pixels[i, 1024 * plane : 1024 * (plane + 1)].reshape(32, 32)
            assert loaded[0].test.images[i, plane].tolist() == expected.tolist()
    assert loaded[0].test.labels.tolist() == labels.tolist()


def test_column_major_arrays_are_read_in_their_order(tmp_path: Path) -> None:
    folder = make_cifar(tmp_path, "cifar10", "py")
    before = load("cifar10", tmp_path).fingerprint
    pixels, labels = cifar_parts("cifar10")["test_batch"]
    for protocol in (2, 5):
        dump(folder / "test_batch", {"data": np.asfortranarray(pixels), "labels": labels.tolist()}, protocol)
        assert load("cifar10", tmp_path).fingerprint == before


# missing -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("mnist", ["train-images-idx3-ubyte", "t10k-labels-idx1-ubyte", "MNIST/raw"]),
        ("fashion_mnist", ["train-images-idx3-ubyte", "FashionMNIST/raw"]),
        ("cifar10", ["data_batch_5.bin", "cifar-10-batches-bin", "test_batch", "cifar-10-batches-py"]),
        ("cifar100", ["train.bin", "cifar-100-binary", "cifar-100-python"]),
    ],
)
def test_missing_files_are_named_with_their_place_and_the_way_out(tmp_path: Path, name: str, said: list[str]) -> None:
    refused(name, tmp_path, name, str(tmp_path), "--data-root", "KDBENCH_DATA", *said)
    assert data.found(tmp_path)[name].startswith("missing: expects ")


def test_what_an_incomplete_folder_lacks_is_named(tmp_path: Path) -> None:
    (make_mnist(tmp_path) / "t10k-labels-idx1-ubyte").unlink()
    refused("mnist", tmp_path, "MNIST/raw/ lacks t10k-labels-idx1-ubyte;")
    (make_cifar(tmp_path, "cifar10", "bin") / "data_batch_4.bin").unlink()
    refused("cifar10", tmp_path, "cifar-10-batches-bin/ lacks data_batch_4.bin;")
    make_cifar(tmp_path, "cifar10", "py")  # a complete layout beside it is taken
    assert len(load("cifar10", tmp_path).test.labels) == 20


def test_found_knows_digits_and_every_name(tmp_path: Path) -> None:
    found = data.found(tmp_path / "nowhere")
    assert set(found) >= {"digits", "mnist", "fashion_mnist", "cifar10", "cifar100"}
    assert found["digits"] == "embedded"


def test_download_is_asked_of_torchvision_only_when_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision import datasets

    asked = []

    def fake(root: str, download: bool) -> None:
        asked.append((root, download))
        make_cifar(Path(root), "cifar10", "py", "python2")

    monkeypatch.setattr(datasets, "CIFAR10", fake)
    refused("cifar10", tmp_path, "KDBENCH_DOWNLOAD=1")
    assert asked == []
    assert len(load("cifar10", tmp_path, options={"download": True}).test.labels) == 20
    load("cifar10", tmp_path, options={"download": True})  # now it is there
    assert asked == [(str(tmp_path), True)]
    monkeypatch.setenv("KDBENCH_DOWNLOAD", "1")
    load("cifar10", tmp_path / "other")
    assert asked[1:] == [(str(tmp_path / "other"), True)]
    with pytest.raises(UserError, match="true or false, not 'yes'"):
        load("cifar10", tmp_path, options={"download": "yes"})


def test_a_failed_download_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision import datasets

    def offline(root: str, download: bool) -> None:
        raise RuntimeError("Error downloading:\n<urlopen error>")

    monkeypatch.setattr(datasets, "MNIST", offline)
    monkeypatch.setenv("KDBENCH_DOWNLOAD", "1")
    refused("mnist", tmp_path, "could not download 'mnist'", "Error downloading: <urlopen error>", "KDBENCH_DATA")


# damaged IDX ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", [name.format("-") for name in GREY])
@pytest.mark.parametrize("keep", [0, 3, 7, -1])
def test_truncated_idx(tmp_path: Path, file: str, keep: int) -> None:
    path = make_mnist(tmp_path) / file
    path.write_bytes(path.read_bytes()[:keep])
    refused("mnist", tmp_path, str(path), "damaged")


def test_idx_with_bytes_too_many(tmp_path: Path) -> None:
    path = make_mnist(tmp_path) / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes() + b"\0")
    refused("mnist", tmp_path, str(path), "31361 bytes of values; its header announces 31360")


@pytest.mark.parametrize("magic", [b"\0\0\x0b\3", b"\0\0\x08\1", b"\1\0\x08\3", b"\x1f\x8b\x08\3"])
def test_wrong_magic_number(tmp_path: Path, magic: bytes) -> None:
    path = make_mnist(tmp_path) / "t10k-images-idx3-ubyte"
    write_idx(path, GREY["t10k-images{}idx3-ubyte"], magic)
    refused("mnist", tmp_path, str(path), f"magic number {magic.hex()} instead of 00000803")


@pytest.mark.parametrize(
    ("file", "array", "said"),
    [
        ("train-labels-idx1-ubyte", np.arange(39) % 10, "39 labels for the 40 images"),
        ("train-labels-idx1-ubyte", np.r_[np.arange(39) % 10, 10], "label 10 at position 39"),
        ("t10k-images-idx3-ubyte", np.zeros((28, 28, 20)), "28x20 instead of 28x28"),
        ("t10k-labels-idx1-ubyte", np.zeros(0), "no examples"),
    ],
)
def test_inconsistent_idx(tmp_path: Path, file: str, array: np.ndarray, said: str) -> None:
    path = make_mnist(tmp_path) / file
    write_idx(path, array)
    refused("mnist", tmp_path, str(path), said)


@pytest.mark.parametrize("position", [0, 11, 40, -3])  # header, block length, values, length at the end
def test_flipped_bit_in_gzip(tmp_path: Path, position: int) -> None:
    path = make_mnist(tmp_path, suffix=".gz") / "train-images-idx3-ubyte.gz"
    raw = bytearray(path.read_bytes())
    raw[position] ^= 0x10
    path.write_bytes(bytes(raw))
    refused("mnist", tmp_path, str(path), "gzip")
    path.write_bytes(bytes(raw[:2000]))
    refused("mnist", tmp_path, str(path), "gzip")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="needs a user who can be denied")
def test_unreadable_file(tmp_path: Path) -> None:
    path = make_mnist(tmp_path) / "train-images-idx3-ubyte"
    path.chmod(0)
    refused("mnist", tmp_path, str(path), "permissions")


# damaged CIFAR -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "record", "file"), [("cifar10", 3073, "data_batch_3.bin"), ("cifar100", 3074, "test.bin")]
)
def test_damaged_binary(tmp_path: Path, name: str, record: int, file: str) -> None:
    path = make_cifar(tmp_path, name, "bin") / file
    whole = path.read_bytes()
    for damaged in (b"", whole[:-1], whole + b"\0"):
        path.write_bytes(damaged)
        refused(name, tmp_path, str(path), f"records of {record} bytes")
    label = bytearray(whole)
    label[2 * record + record - 3073] = 100 if name == "cifar100" else 10
    path.write_bytes(bytes(label))
    refused(name, tmp_path, str(path), "at position 2, but there are")


def test_coarse_labels_and_batch_sizes(tmp_path: Path) -> None:
    path = make_cifar(tmp_path, "cifar100", "bin") / "train.bin"
    raw = bytearray(path.read_bytes())
    raw[3074] = 20
    path.write_bytes(bytes(raw))
    refused("cifar100", tmp_path, str(path), "coarse label 20 at position 1")
    path = make_cifar(tmp_path, "cifar10", "bin") / "data_batch_2.bin"
    path.write_bytes(path.read_bytes()[:-3073])  # cut between two records
    refused("cifar10", tmp_path, str(path), "19 images, other training batches have 20")


def test_published_sets_have_their_whole_test_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_cifar(tmp_path, "cifar10", "bin") / "test_batch.bin"
    path.write_bytes(path.read_bytes()[:-3073])
    assert len(load("cifar10", tmp_path).test.labels) == 19  # a stand-in may have any size
    monkeypatch.setattr("kdbench.data.cifar.OFFICIAL", (100, 20))
    refused("cifar10", tmp_path, str(path), "19 test images instead of 20")


class Evil:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("protocol", [2, 4])
def test_malicious_pickle_is_refused_and_not_run(tmp_path: Path, protocol: int) -> None:
    path = make_cifar(tmp_path, "cifar10", "py") / "data_batch_1"
    dump(path, {"data": Evil(tmp_path / "owned"), "labels": [0]}, protocol)
    refused("cifar10", tmp_path, str(path), "mkdir")
    assert not (tmp_path / "owned").exists()
    with path.open("rb") as file:
        pickle.load(file)
    assert (tmp_path / "owned").exists()  # the very file does run under the plain unpickler
    shutil.rmtree(tmp_path / "owned")


@pytest.mark.parametrize(
    "value", [np.float32, eval, pickle.loads, np.load, np.zeros((1, 3072), dtype=object), np.zeros((1, 3072), np.int8)]
)
def test_pickles_of_anything_else_are_refused(tmp_path: Path, value: Any) -> None:
    path = make_cifar(tmp_path, "cifar100", "py") / "train"
    dump(path, {"data": value, "fine_labels": [0]}, 2)
    refused("cifar100", tmp_path, str(path), "pickle:")


@pytest.mark.parametrize(
    ("batch", "said"),
    [
        ([1, 2], "not a pickled dictionary"),
        ({}, "'data' is not"),
        ({"data": np.zeros((4, 3072), np.uint8)}, "'labels' is not"),
        ({"data": np.zeros((4, 3071), np.uint8), "labels": [0] * 4}, "'data' is not"),
        ({"data": np.zeros((4, 3072), np.uint8), "labels": [0] * 3}, "3 labels for 4 images"),
        ({"data": np.zeros((0, 3072), np.uint8), "labels": []}, "0 labels for 0 images"),
        ({"data": np.zeros((4, 3072), np.uint8), "labels": [0, 1, 2, 10]}, "label 10 at position 3"),
        ({"data": np.zeros((4, 3072), np.uint8), "labels": [0, 1, 2, 10**30]}, "at position 3"),
        ({"data": np.zeros((4, 3072), np.uint8), "labels": [0, 1, 2, -1]}, "'labels' is not"),
        ({"data": np.zeros((4, 3072), np.uint8), "labels": [0, 1, 2, True]}, "'labels' is not"),
    ],
)
def test_pickles_of_wrong_structure(tmp_path: Path, batch: Any, said: str) -> None:
    path = make_cifar(tmp_path, "cifar10", "py") / "test_batch"
    dump(path, batch, "python2")
    refused("cifar10", tmp_path, str(path), said)


@pytest.mark.parametrize("protocol", [2, 5, "python2"])
def test_truncated_pickles(tmp_path: Path, protocol: int | str) -> None:
    path = make_cifar(tmp_path, "cifar10", "py", protocol) / "data_batch_5"
    whole = path.read_bytes()
    for keep in (0, 1, 30, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:keep])
        refused("cifar10", tmp_path, str(path), "pickle:")


def test_pickles_with_flipped_bits_are_read_or_refused_but_never_crash(tmp_path: Path) -> None:
    path = make_cifar(tmp_path, "cifar10", "py", "python2") / "data_batch_5"
    whole = path.read_bytes()
    refusals = 0
    for position in [*range(0, 150, 3), *range(len(whole) - 60, len(whole), 3)]:
        flipped = bytearray(whole)
        flipped[position] ^= 0x04
        path.write_bytes(bytes(flipped))
        try:
            load("cifar10", tmp_path)
        except UserError as error:
            refusals += 1
            assert str(path) in str(error)  # noqa: PT017 (either outcome is right)
    assert refusals > 20
