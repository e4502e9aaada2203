"""Surveys: a quantity of a frozen role for each training example, made once and kept beside the role's weights.

They are made from the unaugmented images, in the order of the training split; `batch.index_B` picks a batch's own.
Image-shaped ones then take the crop and flip that the pixels of their example take.
"""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from kdbench.data import DataSet
from kdbench.data.augment import followed
from kdbench.data.batches import stream
from kdbench.errors import UserError
from kdbench.files import set_aside, write_atomically
from kdbench.method import Refusal, Survey
from kdbench.suite.fields import Augment
from kdbench.train.evaluate import BATCH


@dataclass(frozen=True)
class Surveyed:
    """A survey and its values (N, ...), in the order of the training split, on the device."""

    survey: Survey
    values_N: Tensor
    seconds: tuple[float, float]  # of the clock and of the processor, that it took to make, whoever made it
    kept: bool = False  # whether it had been made before

    def of(self, index_B: Tensor, augment: Augment, key: tuple[int, int]) -> Tensor:
        """The values (B, ...) of a batch; `key` is (seed, epoch)."""
        values_B = self.values_N.index_select(0, index_B)
        if not self.survey.image:
            return values_B
        return followed(values_B, index_B, augment, seed=key[0], epoch=key[1])


def survey(asked: Survey, model: nn.Module, data: DataSet, augment: Augment, folder: Path | None = None) -> Surveyed:
    """A survey of a frozen model, from `folder` (of the role) or made now and kept there.

    Raises:
        Refusal: its values do not fit what it declares, or cannot follow the augmentation.
        UserError: it cannot be written.
    """
    if asked.image:
        _check_augmentation(asked, augment, data)
    path = None if folder is None else folder / "surveys" / f"{_key(asked)}.safetensors"
    found = kept = _kept(path, len(data.train.labels)) if path is not None else None
    if found is None:
        clock, cpu = time.perf_counter(), time.process_time()
        values_N = _made(asked, model, data).cpu().contiguous()
        seconds = torch.tensor([time.perf_counter() - clock, time.process_time() - cpu], dtype=torch.float64)
        found = {"values": values_N, "seconds": seconds}
        if path is not None:
            try:
                write_atomically(path, save(found))
            except OSError as error:
                raise UserError(
                    f"{path}: cannot write the survey ({error.strerror}); free space, or give --runs DIR"
                ) from error
    clock_seconds, cpu_seconds = found["seconds"].tolist()
    return Surveyed(asked, found["values"].to(data.train.labels.device), (clock_seconds, cpu_seconds), kept is not None)


def _key(asked: Survey) -> str:
    """Two methods may call different surveys by one name."""
    maker = hashlib.sha256(f"{asked.make.__module__}.{asked.make.__qualname__}".encode()).hexdigest()[:8]
    return f"{asked.name}.{asked.revision}.{maker}"


def _kept(path: Path, examples: int) -> dict[str, Tensor] | None:
    """What was kept: `values` and `seconds`; None where there is nothing, or nothing whole."""
    found: dict[str, Tensor] = {}
    try:
        found = load(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, SafetensorError):
        pass
    if {"values", "seconds"} <= found.keys() and len(found["values"]) == examples:
        return found
    set_aside(path)
    return None


def _made(asked: Survey, model: nn.Module, data: DataSet) -> Tensor:
    batches = torch.arange(len(data.train.labels), device=data.train.labels.device).split(BATCH)
    pixels = stream(data.train, batches)
    parts = []
    for index_B, (x,) in zip(batches, pixels, strict=True):
        values_B = asked.make(model, x).detach()
        if len(values_B) != len(index_B):
            raise Refusal(f"survey '{asked.name}' answers {tuple(values_B.shape)} for {len(index_B)} examples")
        parts.append(values_B)
    values_N = torch.cat(parts)
    if asked.image and values_N.shape[2:] != x.shape[2:]:
        raise Refusal(
            f"survey '{asked.name}' is an image of each example: it must be (B, D, {x.shape[2]}, {x.shape[3]}), "
            f"not {tuple(values_N.shape)}"
        )
    return values_N if asked.finish is None else asked.finish(values_N)


def _check_augmentation(asked: Survey, augment: Augment, data: DataSet) -> None:
    cannot = [name for name in ("rand_augment", "cutmix") if getattr(augment, name) is not None]
    if augment.random_resized_crop is not None and not isinstance(getattr(data.train, "images", None), Tensor):
        cannot.append("random_resized_crop of image files")
    if cannot:
        raise Refusal(f"survey '{asked.name}' is an image of each example and cannot follow {cannot[0]}: remove it")
