"""CIFAR-10 and CIFAR-100, 32x32 colour, from the official binary or Python folders; 50,000 + 10,000 images.

A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", technical report, University of Toronto, 2009.
CIFAR-100 is read with its 100 fine labels.

Binary: records of 1 label byte (CIFAR-100: a coarse and a fine one) and 3072 pixels, red, green, blue plane after
plane. Python: pickled dictionaries; they are read by an unpickler that can rebuild numpy arrays and nothing else.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from kdbench.data.raw import Layout, Raw, check_labels, content, damaged, describe, locate

NAMES = ("cifar10", "cifar100")

SHAPE = (3, 32, 32)
PIXELS = 3 * 32 * 32
OFFICIAL = (50_000, 10_000)
COARSE = 20
VAL = 5000

Part = tuple[NDArray[np.uint8], NDArray[np.int64]]


@dataclass(frozen=True)
class _Set:
    classes: int
    mean: tuple[float, float, float]  # of the 50,000 training images
    std: tuple[float, float, float]
    binary: str
    python: str
    files: tuple[str, ...]  # the last one is the test split
    labels: str  # key of the Python dictionaries


SETS = {
    "cifar10": _Set(
        classes=10,
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),
        binary="cifar-10-batches-bin",
        python="cifar-10-batches-py",
        files=(*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"),
        labels="labels",
    ),
    "cifar100": _Set(
        classes=100,
        mean=(0.5071, 0.4865, 0.4409),
        std=(0.2673, 0.2564, 0.2762),
        binary="cifar-100-binary",
        python="cifar-100-python",
        files=("train", "test"),
        labels="fine_labels",
    ),
}


def layouts(name: str) -> tuple[Layout, ...]:
    """The binary folder is preferred: faster, and nothing to unpickle. The root may be the folder itself."""
    facts = SETS[name]
    return (
        Layout("binary", (facts.binary, "."), tuple((f"{file}.bin",) for file in facts.files)),
        Layout("Python", (facts.python, "."), tuple((file,) for file in facts.files)),
    )


def status(name: str, root: Path) -> str:
    return describe(root, layouts(name))


def read(name: str, root: Path, *, download: bool = False) -> Raw:
    """Raises UserError when files are missing, damaged or disagree with each other."""
    facts = SETS[name]
    hit = locate(name, root, layouts(name), download)
    reader: Callable[[Path, _Set], Part] = _binary if hit.layout.label == "binary" else _python
    parts = [reader(path, facts) for path in hit.paths]
    _check_counts(hit.paths, [len(labels) for _, labels in parts])
    *train, (test_images, test_labels) = parts
    return Raw(
        train_images=np.concatenate([images for images, _ in train]),
        train_labels=np.concatenate([labels for _, labels in train]),
        test_images=np.ascontiguousarray(test_images),
        test_labels=test_labels,
        mean=facts.mean,
        std=facts.std,
        classes=facts.classes,
        val=VAL,
    )


def _check_counts(paths: tuple[Path, ...], counts: list[int]) -> None:
    """A file cut off between two records looks whole; its neighbours give it away."""
    *train, test = counts
    for path, count in zip(paths, train, strict=False):
        if count != max(train):
            raise damaged(path, f"{count} images, other training batches have {max(train)}")
    if sum(train) == OFFICIAL[0] and test != OFFICIAL[1]:
        raise damaged(paths[-1], f"{test} test images instead of {OFFICIAL[1]}")


def _binary(path: Path, facts: _Set) -> Part:
    label_bytes = 1 if facts.classes == 10 else 2
    data = content(path)
    record = label_bytes + PIXELS
    if not data or len(data) % record:
        raise damaged(path, f"{len(data)} bytes are no whole number of records of {record} bytes")
    records = np.frombuffer(data, dtype=np.uint8).reshape(-1, record)
    labels = records[:, label_bytes - 1].astype(np.int64)
    if label_bytes == 2:
        check_labels(path, records[:, 0], COARSE, "coarse label")
    check_labels(path, labels, facts.classes)
    return records[:, label_bytes:].reshape(-1, *SHAPE), labels


def _python(path: Path, facts: _Set) -> Part:
    batch = unpickle(path)
    images, labels = (batch.get(key, batch.get(key.encode())) for key in ("data", facts.labels))
    if not isinstance(images, np.ndarray) or images.shape[1:] != (PIXELS,):
        raise damaged(path, f"'data' is not a uint8 array of rows of {PIXELS} values")
    if not isinstance(labels, list) or any(type(label) is not int or label < 0 for label in labels):
        raise damaged(path, f"'{facts.labels}' is not a list of integers from 0")
    if not labels or len(labels) != len(images):
        raise damaged(path, f"{len(labels)} labels for {len(images)} images")
    classes = np.array([min(label, 2**62) for label in labels], dtype=np.int64)
    check_labels(path, classes, facts.classes)
    return np.ascontiguousarray(images).reshape(-1, *SHAPE), classes


class _Unsigned:
    """Stands in for `numpy.dtype` while unpickling: unsigned bytes, or nothing."""

    def __init__(self, code: Any, *_: Any) -> None:
        if code not in ("u1", b"u1"):
            raise pickle.UnpicklingError(f"an array of {code!r} instead of unsigned bytes")

    def __setstate__(self, state: Any) -> None:
        """Byte order and alignment: bytes have neither."""


class _Array:
    """Stands in for `numpy.ndarray`, so that no state from the file reaches numpy's own deserialiser."""

    value: NDArray[np.uint8] | None = None

    def __init__(self, *_: Any) -> None: ...

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, is_fortran, values = state
        if not isinstance(dtype, _Unsigned):
            raise pickle.UnpicklingError("an array without a type")
        self.value = np.frombuffer(values, dtype=np.uint8).reshape(shape, order="F" if is_fortran else "C")


def _array_of_buffer(values: Any, dtype: Any, shape: Any, order: Any) -> _Array:
    """`numpy._core.numeric._frombuffer`, which pickles of protocol 5 call."""
    array = _Array()
    array.__setstate__((1, shape, dtype, order == "F", values))
    return array


def _latin1(text: str, encoding: str) -> bytes:
    """`_codecs.encode` as Python 3 uses it to write bytes with protocol 2; no other codec."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"unexpected codec {encoding!r}")
    return text.encode("latin1")


class _ArrayUnpickler(pickle.Unpickler):
    """Rebuilds built-in containers and arrays of bytes; a pickle that names anything else is refused, never run."""

    allowed: ClassVar[dict[tuple[str, str], Any]] = {
        ("numpy.multiarray", "_reconstruct"): _Array,
        ("numpy.numeric", "_frombuffer"): _array_of_buffer,
        ("numpy", "ndarray"): None,  # only ever an argument
        ("numpy", "dtype"): _Unsigned,
        ("_codecs", "encode"): _latin1,
    }

    def find_class(self, module: str, name: str) -> Any:
        plain = module.replace("numpy._core.", "numpy.").replace("numpy.core.", "numpy.")  # moved in numpy 2
        if (plain, name) not in self.allowed:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no CIFAR file needs")
        return self.allowed[plain, name]


def unpickle(path: Path) -> dict[Any, Any]:
    """The content of a pickled batch. Raises UserError when it is damaged or asks for anything but arrays."""
    data = content(path)
    try:
        batch = _ArrayUnpickler(io.BytesIO(data), encoding="bytes").load()
    except Exception as error:  # damaged pickles raise almost anything
        raise damaged(path, f"pickle: {error or type(error).__name__}") from error
    if not isinstance(batch, dict):
        raise damaged(path, "not a pickled dictionary")
    return {key: value.value if isinstance(value, _Array) else value for key, value in batch.items()}
