"""Images as files: read, cropped and resized by worker processes ahead of the step that needs them.

What a file becomes is a function of its bytes and the request alone, so neither the number of workers nor an
interruption changes a pixel. PyTorch's DataLoader runs the processes: it keeps the order, ends them with the program
(also after Ctrl-C or a kill), and says when one died.

Conventions are those of torchvision's ImageFolder: every image becomes RGB (alpha is dropped), EXIF orientation is
ignored. Resampling is Pillow's, antialiased.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import os
import signal
import time
import warnings
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kdbench.errors import UserError
from kdbench.lazy import torch

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

CHUNK = 32  # images of one piece of work
AHEAD = 4  # pieces of work in flight for each worker
MOST_WORKERS = 16  # by default
ATTEMPTS = 3  # at reading a file: network file systems have hiccups

Piece = tuple[NDArray[np.int64], NDArray[np.int64] | None]  # rows of files, and their boxes


@dataclass(frozen=True)
class Geometry:
    """Side of the images, of the shorter side before the middle is cut out (for evaluation), and the filter."""

    size: int
    resize: int
    interpolation: str = "bilinear"

    def middle(self, image: Image) -> Image:
        """The shorter side resized to `resize`, then the central square of `size`."""
        width, height = image.size
        short = min(width, height)
        image = image.resize((self.resize * width // short, self.resize * height // short), self.filter)
        left, top = round((image.width - self.size) / 2), round((image.height - self.size) / 2)
        return image.crop((left, top, left + self.size, top + self.size))

    def window(self, image: Image, box: Iterable[int]) -> Image:
        """The box (top, left, height, width) resized to `size`."""
        top, left, height, width = map(int, box)
        cut = image.crop((left, top, left + width, top + height))
        return cut.resize((self.size, self.size), self.filter)

    @property
    def filter(self) -> Any:
        from PIL.Image import Resampling

        return Resampling[self.interpolation.upper()]


def decode(content: bytes) -> Image:
    """All pixels of an image file, as RGB.

    Raises:
        Exception: of many kinds, where the bytes are no whole image.
    """
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of odd metadata, large images and palettes with transparency
        with Image.open(io.BytesIO(content)) as image:
            return image.convert("RGB")


@dataclass(frozen=True)
class Reader:
    """What a worker process does with a piece of work: file names below `folder`, as bytes of the file system."""

    folder: bytes
    names_N: NDArray[np.bytes_]
    geometry: Geometry

    def __len__(self) -> int:
        return len(self.names_N)

    def __getitem__(self, piece: Piece) -> Tensor | str:
        """uint8 (n, 3, size, size); or a sentence about a file that cannot be read."""
        rows, boxes = piece
        size = self.geometry.size
        out = np.empty((len(rows), 3, size, size), dtype=np.uint8)
        for i, row in enumerate(rows):
            path = os.path.join(self.folder, bytes(self.names_N[row]))  # noqa: PTH118 (bytes)
            try:
                image = decode(_content(path))
            except Exception as error:
                said = str(error) or type(error).__name__
                return f"{os.fsdecode(path)} was readable when the data set was indexed and is not now ({said})"
            made = self.geometry.middle(image) if boxes is None else self.geometry.window(image, boxes[i])
            out[i] = np.asarray(made).transpose(2, 0, 1)
        return torch.from_numpy(out)


@dataclass(frozen=True)
class Checker:
    """Decodes each file once: what a worker process does when a folder is indexed."""

    folder: bytes
    names_N: NDArray[np.bytes_]

    def __len__(self) -> int:
        return len(self.names_N)

    def __getitem__(self, rows: NDArray[np.int64]) -> list[tuple[int, int, str, str]]:
        """(width, height, sha256 of the bytes, "" or what is wrong) of each file."""
        return [self._facts(os.path.join(self.folder, bytes(self.names_N[row]))) for row in rows]  # noqa: PTH118

    def _facts(self, path: bytes) -> tuple[int, int, str, str]:
        sha = ""
        try:
            content = _content(path)
            sha = hashlib.sha256(content).hexdigest()[:32]
            width, height = decode(content).size
            return width, height, sha, ""
        except Exception as error:
            said = " ".join(str(error).split()) or type(error).__name__
            return 0, 0, sha, ("not an image" if "cannot identify image file" in said else said)[:120]


def _content(path: bytes) -> bytes:
    for attempt in range(ATTEMPTS):
        try:
            with open(path, "rb") as file:  # noqa: PTH123 (bytes)
                return file.read()
        except FileNotFoundError:
            raise
        except OSError:
            if attempt == ATTEMPTS - 1:
                raise
            time.sleep(0.2 * (attempt + 1))
    raise AssertionError("unreachable")


@dataclass
class Queue:
    """The pieces of work that the workers get next."""

    pieces: Iterable[Any] = ()

    def __iter__(self) -> Iterator[Any]:
        return iter(self.pieces)


def default_workers() -> int:
    """As many as this process may use CPUs, at most 16."""
    counted = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(MOST_WORKERS, counted)


def loader(source: Any, workers: int, *, pin: bool = False, keep: bool = True) -> Any:
    """A DataLoader over pieces of work, whose `sampler` is a `Queue`; workers start with the first iteration."""
    many: dict[str, Any] = {"prefetch_factor": AHEAD, "persistent_workers": keep} if workers else {}
    return torch.utils.data.DataLoader(
        source,
        batch_size=None,
        sampler=Queue(),
        num_workers=workers,
        collate_fn=_as_it_is,
        worker_init_fn=_calm,
        pin_memory=pin,
        generator=torch.Generator(),  # its own: the global one belongs to the training
        **many,
    )


def arriving(source: Any) -> Iterator[Any]:
    """What the workers make of the pieces, in order. Raises UserError where a worker died."""
    try:
        yield from source
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise UserError(
            "a process that decodes images died (out of memory, or of shared memory: a container's /dev/shm is "
            "often small); free some, or lower `workers` in data.options, 0 for none"
        ) from error


def _as_it_is(made: Any) -> Any:
    return made


def _calm(worker: int) -> None:
    """Ctrl-C reaches the whole group of processes; the main one decides. SIGTERM is PyTorch's to handle."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@dataclass
class Pool:
    """The workers of one data set, shared by its splits. Kept between streams; closed with the last reference."""

    reader: Reader
    heights_N: NDArray[np.int32]
    widths_N: NDArray[np.int32]
    workers: int
    idle: dict[bool, list[Any]] = field(default_factory=dict)  # by whether memory is pinned; one for each open stream

    def stream(self, requests: Iterable[Piece], device: torch.device) -> Iterator[Tensor]:
        """uint8 (B, 3, size, size) on the device for each request, in order."""
        pin = device.type == "cuda"
        free = self.idle.setdefault(pin, [])
        source = free.pop() if free else loader(self.reader, self.workers, pin=pin)
        counts: deque[int] = deque()

        def pieces() -> Iterator[Piece]:
            for rows, boxes in requests:
                starts = range(0, len(rows), CHUNK)
                counts.append(len(starts))
                for i in starts:
                    yield rows[i : i + CHUNK], None if boxes is None else boxes[i : i + CHUNK]

        source.sampler.pieces = pieces()
        made = arriving(source)
        for first in made:
            parts = [first, *(next(made) for _ in range(counts.popleft() - 1))]
            for sentence in (part for part in parts if isinstance(part, str)):
                raise UserError(f"{sentence}; repair the data, then the same command continues")
            yield torch.cat([part.to(device, non_blocking=pin) for part in parts])
        free.append(source)  # a stream that was left early is not: its processes end with it

    def close(self) -> None:
        """End the processes; a later stream starts others."""
        self.idle.clear()


@dataclass(frozen=True)
class Files:
    """A split's images: some rows of a pool. Looks like a uint8 array (N, 3, size, size) as far as that goes."""

    pool: Pool
    rows_N: NDArray[np.int64]
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    ndim = 4
    dtype = np.dtype(np.uint8)

    @property
    def shape(self) -> tuple[int, ...]:
        size = self.pool.reader.geometry.size
        return (len(self.rows_N), 3, size, size)

    def __len__(self) -> int:
        return len(self.rows_N)

    def __getitem__(self, chosen: NDArray[np.int64]) -> Files:
        return dataclasses.replace(self, rows_N=self.rows_N[chosen])

    def to(self, device: torch.device | str) -> Files:
        """The same files, whose pixels will lie on that device."""
        return dataclasses.replace(self, device=torch.device(device))

    def name(self, index: int) -> str:
        """The file's name below the folder of the data set."""
        return os.fsdecode(bytes(self.pool.reader.names_N[self.rows_N[index]]))

    def sizes(self, index_B: Tensor) -> tuple[Tensor, Tensor]:
        """See `kdbench.data.augment.Source`."""
        rows_B = self.rows_N[index_B.numpy()]
        height_B, width_B = (of[rows_B].astype(np.int64) for of in (self.pool.heights_N, self.pool.widths_N))
        return torch.from_numpy(height_B), torch.from_numpy(width_B)

    def read(self, requests: Iterable[tuple[Tensor, Tensor | None]]) -> Iterator[Tensor]:
        """See `kdbench.data.augment.Source`."""
        pieces = (
            (self.rows_N[index_B.numpy()], None if box_B4 is None else box_B4.numpy()) for index_B, box_B4 in requests
        )
        return self.pool.stream(pieces, self.device)

    def close(self) -> None:
        self.pool.close()
