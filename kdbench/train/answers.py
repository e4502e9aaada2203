"""A file of answers: what a teacher says of each training example, where the teacher itself is not at hand (an API).

An .npz or .safetensors file, by training index (after the cut): one of `labels` (N,), `probabilities` (N, C), `logits`
(N, C), or `values` and `indices` (N, K), the K largest probabilities and their classes, whose rest is spread evenly;
and `data`, the digest of the data set and its cut that `data_digest` gives, as bytes.

The answers are of the examples, not of their pixels: exact without augmentation only.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors import numpy as safetensors
from torch import Tensor

from kdbench.data import DataSet
from kdbench.errors import UserError
from kdbench.files import write_atomically

FLOOR = 1e-8  # of a probability, whose logarithm is a logit
_KINDS = (("labels",), ("probabilities",), ("logits",), ("values", "indices"))


def data_digest(data: DataSet) -> str:
    """Of the decoded examples and of the choice of those for training."""
    return f"{data.fingerprint}-{data.split}"


def read(path: Path, data: DataSet) -> Tensor:
    """Logits (N, C) of the training examples, float32 on the CPU; a softmax gives the probabilities in the file.

    Raises:
        UserError: no such file, a damaged one, or one of other data or shapes.
    """
    held = _arrays(path)
    kinds = [names for names in _KINDS if set(names) <= set(held)]
    if len(kinds) != 1:
        raise UserError(f"{path}: needs `labels`, `probabilities`, `logits`, or `values` with `indices`; one of them")
    digest = bytes(np.asarray(held.get("data", np.zeros(0)), dtype=np.uint8)).decode(errors="replace")
    if digest != data_digest(data):
        raise UserError(
            f"{path}: its answers are of other data ('{digest}') than the suite's training examples "
            f"('{data_digest(data)}'): `data` must be that digest"
        )
    arrays = [np.asarray(held[name]) for name in kinds[0]]
    n, c = len(data.train.labels), data.classes
    shapes = {"labels": (n,), "probabilities": (n, c), "logits": (n, c)}
    for name, array in zip(kinds[0], arrays, strict=True):
        if array.shape != shapes.get(name, (n, *array.shape[1:2])):
            raise UserError(f"{path}: {name} are {array.shape} for {n} training examples of {c} classes")
        if not np.isfinite(array).all() or (name in ("probabilities", "values") and array.min() < 0):
            raise UserError(f"{path}: {name} holds numbers that are none of that kind (negative, or not finite)")
        if name in ("labels", "indices") and (array.dtype.kind not in "iu" or array.min() < 0 or array.max() >= c):
            raise UserError(f"{path}: {name} must be whole numbers from 0 to {c - 1}")
    tensors = [torch.from_numpy(array.astype(np.int64 if array.dtype.kind in "iu" else np.float32)) for array in arrays]
    return _logits(kinds[0][0], tensors, c)


def _logits(kind: str, tensors: list[Tensor], classes: int) -> Tensor:
    if kind == "logits":
        return tensors[0].float()
    if kind == "labels":
        probabilities_NC = torch.nn.functional.one_hot(tensors[0], classes).float()
    elif kind == "probabilities":
        probabilities_NC = tensors[0].float()
    else:
        values_NK, index_NK = tensors[0].float(), tensors[1]
        rest_N1 = (1 - values_NK.sum(1, keepdim=True)).clamp_min(0) / max(1, classes - values_NK.shape[1])
        probabilities_NC = rest_N1.expand(-1, classes).scatter(1, index_NK, values_NK)
    return probabilities_NC.clamp_min(FLOOR).log()


def write(path: Path, logits_NC: Tensor, data: DataSet, top_k: int | None = None) -> None:
    """The answers of a teacher: its logits, or with `top_k` its largest probabilities.

    Raises:
        UserError: an unknown ending, or the file cannot be written.
    """
    held: dict[str, Any] = {"data": np.frombuffer(data_digest(data).encode(), dtype=np.uint8)}
    if top_k is None:
        held["logits"] = logits_NC.float().cpu().numpy()
    else:
        values_NK, index_NK = logits_NC.float().cpu().softmax(1).topk(min(top_k, logits_NC.shape[1]))
        held |= {"values": values_NK.numpy(), "indices": index_NK.numpy()}
    if path.suffix == ".safetensors":
        payload = safetensors.save(held)
    elif path.suffix == ".npz":
        buffer = io.BytesIO()
        np.savez(buffer, **held)
        payload = buffer.getvalue()
    else:
        raise UserError(f"{path}: answers are written to .npz or .safetensors")
    try:
        write_atomically(path, payload)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from error


def _arrays(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        raise UserError(f"{path}: there is no such file of answers")
    try:
        if path.suffix == ".safetensors":
            return safetensors.load(path.read_bytes())
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as held:
                return {name: held[name] for name in held.files}
    except (OSError, ValueError, EOFError, SafetensorError, KeyError) as error:
        raise UserError(f"{path}: cannot be read as answers; it seems damaged ({type(error).__name__})") from error
    except Exception as error:  # zipfile's own kinds
        raise UserError(f"{path}: cannot be read as answers; it seems damaged ({error})") from error
    raise UserError(f"{path}: answers are read from .npz or .safetensors")
