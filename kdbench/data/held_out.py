"""A validation split of one's own, for sets that are arrays: a .npz file with `x_val` and `y_val`."""

from __future__ import annotations

import dataclasses
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from kdbench.data.files import Files
from kdbench.data.raw import Raw
from kdbench.errors import UserError


def with_own(raw: Raw, name: str, root: Path, file: Any) -> Raw:
    """The set with the validation split in a file below the data root, instead of one cut from training.

    The name of the file is part of a job's identity, so it is relative: the same on every machine.

    Raises:
        UserError: no such file, or none with images and labels like those of the set, or it repeats their images.
    """
    said = f"data.options.val of '{name}'"
    if not isinstance(file, str) or Path(file).is_absolute() or Path(file).suffix != ".npz":
        raise UserError(f"{said} is the name of a .npz file below the data root, with x_val and y_val, not {file!r}")
    if isinstance(raw.train_images, Files):
        raise UserError(f"{said}: a file of arrays cannot stand beside a set of image files")
    path = root / file
    if not path.is_file():
        raise UserError(f"{said}: there is no file {path}")
    try:
        with np.load(path, allow_pickle=False) as stored:
            images, labels = stored["x_val"], stored["y_val"]
    except KeyError as error:
        raise UserError(f"{path} ({said}) has no array {error.args[0].split()[0]}: it needs x_val and y_val") from error
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} ({said}) cannot be read as .npz: it is damaged, or of another kind") from error
    images = images[:, None] if images.ndim == 3 else images
    for part in ("train", "test") if images.ndim == 4 else ():  # else it is refused like any other set's
        if shared := _shared(images, np.asarray(getattr(raw, f"{part}_images"))):
            raise UserError(
                f"{path} ({said}): {shared} of its images are among those of the {part} split; leave them out"
            )
    return dataclasses.replace(raw, val_images=images, val_labels=labels)


def _shared(images: Any, others: Any) -> int:
    """How many images are bit for bit among the others."""
    known = {image.tobytes() for image in others}
    return sum(image.tobytes() in known for image in images)
