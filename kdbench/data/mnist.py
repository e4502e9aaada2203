"""MNIST and Fashion-MNIST, 28x28 grey, from IDX files (plain or .gz). 60,000 training and 10,000 test images.

Y. LeCun, L. Bottou, Y. Bengio and P. Haffner, "Gradient-based learning applied to document recognition", Proc. IEEE,
1998; H. Xiao, K. Rasul and R. Vollgraf, "Fashion-MNIST: a novel image dataset for benchmarking machine learning
algorithms", arXiv:1708.07747, 2017. Both come under the same four file names, so only the folder tells them apart.

An IDX file is: two zero bytes, a type code (8: unsigned byte), the number of dimensions, each dimension as a
big-endian 32-bit integer, then the values.
"""

from __future__ import annotations

import math
import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kdbench.data.raw import Layout, Raw, check_labels, content, damaged, describe, locate

NAMES = ("mnist", "fashion_mnist")

FOLDERS = {
    "mnist": ("MNIST/raw", "MNIST", "mnist/raw", "mnist"),
    "fashion_mnist": ("FashionMNIST/raw", "FashionMNIST", "fashion_mnist/raw", "fashion_mnist", "fashion-mnist"),
}
FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
STATISTICS = {"mnist": (0.1307, 0.3081), "fashion_mnist": (0.2860, 0.3530)}  # mean and std of the 60,000
SIZE, CLASSES, VAL = 28, 10, 5000
UNSIGNED_BYTE = 8


def layouts(name: str, root: Path) -> tuple[Layout, ...]:
    """Where the files may lie. The root itself counts for the set that its name suggests, MNIST unless "fashion"."""
    names = tuple((plain, dotted, f"{plain}.gz", f"{dotted}.gz") for plain, dotted in map(_spellings, FILES))
    *_, parent, last = "", *root.resolve().parts
    is_fashion = "fashion" in (parent if last == "raw" else last).lower()
    own_root = (".", "raw") if is_fashion == (name == "fashion_mnist") else ()
    return (Layout("IDX", (*FOLDERS[name], *own_root), names),)


def _spellings(name: str) -> tuple[str, str]:
    return name, name.replace("-idx", ".idx")


def status(name: str, root: Path) -> str:
    return describe(root, layouts(name, root))


def read(name: str, root: Path, *, download: bool = False) -> Raw:
    """Raises UserError when files are missing, damaged or disagree with each other."""
    train_images, train_labels, test_images, test_labels = locate(name, root, layouts(name, root), download).paths
    mean, std = STATISTICS[name]
    train, test = _pair(train_images, train_labels), _pair(test_images, test_labels)
    return Raw(*train, *test, mean=(mean,), std=(std,), classes=CLASSES, val=VAL)


def _pair(images_path: Path, labels_path: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    images, labels = idx(images_path, dimensions=3), idx(labels_path, dimensions=1)
    if images.shape[1:] != (SIZE, SIZE):
        raise damaged(images_path, f"images of {images.shape[1]}x{images.shape[2]} instead of {SIZE}x{SIZE}")
    if len(images) != len(labels):
        raise damaged(labels_path, f"{len(labels)} labels for the {len(images)} images of {images_path.name}")
    check_labels(labels_path, labels, CLASSES)
    return images[:, None], labels.astype(np.int64)


def idx(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """The array of an IDX file of unsigned bytes. Raises UserError where header and length disagree."""
    data = content(path)
    start = 4 + 4 * dimensions
    if len(data) < start:
        raise damaged(path, f"{len(data)} bytes are too few for an IDX header")
    zeros, kind, rank = struct.unpack(">HBB", data[:4])
    if zeros != 0 or kind != UNSIGNED_BYTE or rank != dimensions:
        wanted = struct.pack(">HBB", 0, UNSIGNED_BYTE, dimensions).hex()
        raise damaged(path, f"IDX magic number {data[:4].hex()} instead of {wanted}")
    shape = struct.unpack(f">{dimensions}I", data[4:start])
    if len(data) - start != math.prod(shape):
        raise damaged(path, f"{len(data) - start} bytes of values; its header announces {math.prod(shape)}")
    if math.prod(shape) == 0:
        raise damaged(path, "it holds no examples")
    return np.frombuffer(data, dtype=np.uint8, offset=start).reshape(shape)
