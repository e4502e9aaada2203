"""The official file layouts in miniature, for tests: real formats, few images, random pixels."""

from __future__ import annotations

import gzip
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np

RNG = np.random.default_rng(0)


def write_idx(path: Path, array: np.ndarray, magic: bytes | None = None) -> None:
    head = struct.pack(">HBB", 0, 8, array.ndim) if magic is None else magic
    payload = head + struct.pack(f">{array.ndim}I", *array.shape) + array.astype(np.uint8).tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(payload) if path.suffix == ".gz" else payload)


GREY = {
    "train-images{}idx3-ubyte": RNG.integers(0, 256, (40, 28, 28)),
    "train-labels{}idx1-ubyte": np.arange(40) % 10,
    "t10k-images{}idx3-ubyte": RNG.integers(0, 256, (20, 28, 28)),
    "t10k-labels{}idx1-ubyte": np.arange(20) % 10,
}


def make_mnist(root: Path, folder: str = "MNIST/raw", mark: str = "-", suffix: str = "") -> Path:
    for name, array in GREY.items():
        write_idx(root / folder / (name.format(mark) + suffix), array)
    return root / folder


class Python2Pickler(pickle._Pickler):  # type: ignore[name-defined]
    """Writes text and bytes as Python 2 wrote its strings, as in the published CIFAR files."""

    dispatch = dict(pickle._Pickler.dispatch)  # type: ignore[attr-defined]  # noqa: RUF012

    def save_string(self, value: str | bytes) -> None:
        raw = value if isinstance(value, bytes) else value.encode("latin1")
        self.write(b"T" + struct.pack("<I", len(raw)) + raw)

    dispatch[str] = dispatch[bytes] = save_string


def dump(path: Path, value: Any, protocol: int | str) -> None:
    with path.open("wb") as file:
        if protocol == "python2":
            Python2Pickler(file, 2).dump(value)
        else:
            pickle.dump(value, file, int(protocol))


FOLDERS = {
    ("cifar10", "bin"): "cifar-10-batches-bin",
    ("cifar10", "py"): "cifar-10-batches-py",
    ("cifar100", "bin"): "cifar-100-binary",
    ("cifar100", "py"): "cifar-100-python",
}


def cifar_parts(name: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(1)
    files = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"] if name == "cifar10" else ["train", "test"]
    n, classes = (20, 10) if name == "cifar10" else (200, 100)
    return {file: (rng.integers(0, 256, (n, 3072), dtype=np.uint8), np.arange(n) % classes) for file in files}


def make_cifar(root: Path, name: str, layout: str, protocol: int | str = 2, folder: str | None = None) -> Path:
    target = root / (FOLDERS[name, layout] if folder is None else folder)
    target.mkdir(parents=True, exist_ok=True)
    for file, (pixels, labels) in cifar_parts(name).items():
        if layout == "bin":
            coarse = [] if name == "cifar10" else [labels[:, None] // 5]
            columns = [*coarse, labels[:, None], pixels]
            (target / f"{file}.bin").write_bytes(np.concatenate(columns, axis=1).astype(np.uint8).tobytes())
        else:
            fine = {"labels": labels.tolist()} if name == "cifar10" else {"fine_labels": labels.tolist()}
            dump(target / file, {"data": pixels, "filenames": ["a.png"], **fine}, protocol)
    return target


FORMATS = (("RGB", "JPEG"), ("RGB", "png"), ("L", "JPEG"), ("CMYK", "jpg"), ("RGBA", "PNG"), ("P", "png"), ("1", "bmp"))


def make_images(folder: Path, count: int, shade: int, rng: np.random.Generator, sides: tuple[int, int]) -> None:
    """Noise on a shade of the class, of many sizes, modes and formats; learnable, so that training can be seen."""
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        height, width = rng.integers(*sides, 2)
        pixels = np.clip(rng.normal(shade, 20, (height, width, 3)), 0, 255).astype(np.uint8)
        mode, suffix = FORMATS[number % len(FORMATS)]
        Image.fromarray(pixels).convert(mode).save(folder / f"{number:03}.{suffix}")


def make_folder(
    root: Path,
    name: str = "tree",
    classes: tuple[str, ...] = ("n01", "n02", "n03"),
    train: int = 14,
    val: int = 7,
    held_out: str = "val",
    sides: tuple[int, int] = (20, 60),
) -> Path:
    """An ImageNet-style directory of real JPEG, PNG and BMP files."""
    rng = np.random.default_rng(2)
    for label, kind in enumerate(classes):
        shade = 40 + 170 * label // max(1, len(classes) - 1)
        make_images(root / name / "train" / kind, train, shade, rng, sides)
        make_images(root / name / held_out / kind, val, shade, rng, sides)
    return root / name


def break_images(folder: Path) -> list[str]:
    """One truncated file, one that is no image, one that is empty; their names below the set's folder."""
    jpeg = next(path for path in sorted(folder.glob("train/n01/*.JPEG")))
    jpeg.write_bytes(jpeg.read_bytes()[:-200])
    (folder / "train/n02/text.png").write_text("no image")
    (folder / "val/n03/empty.jpg").write_bytes(b"")
    return [f"train/n01/{jpeg.name}", "train/n02/text.png", "val/n03/empty.jpg"]
