"""Weights of a model from a file: .pt or .pth (read with `weights_only`), or .safetensors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from kdbench.errors import UserError

_INSIDE = ("model", "state_dict")  # where checkpoints of training scripts keep the weights
_PREFIXES = ("module.", "_orig_mod.")  # left behind by DataParallel and torch.compile
_SHOWN = 3


def load(model: nn.Module, path: Path) -> None:
    """Copy the weights in a file into `model`, all of them or, on an error, none.

    The file holds a state dict, or one under "model" or "state_dict"; prefixes "module." are dropped. Counters of
    BatchNorm (`num_batches_tracked`) may be missing, as in files of old versions.

    Raises:
        UserError: no such file, a damaged one, or one whose names or shapes are not the model's.
    """
    fit(model, read(path), path)


def read(path: Path) -> dict[str, Tensor]:
    """The state dict in a file.

    Raises:
        UserError: no such file, a damaged one, or one without a state dict.
    """
    return _tensors(path, _read(path))


def fit(model: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Copy weights into `model`, all of them or, on an error, none; `path` is where they come from.

    Raises:
        UserError: names or shapes are not the model's.
    """
    expected = model.state_dict()
    missing = [name for name in expected if name not in state and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in state if name not in expected]
    reshaped = [
        f"{name} {tuple(state[name].shape)} for {tuple(value.shape)}"
        for name, value in expected.items()
        if name in state and state[name].shape != value.shape
    ]
    wrong = (("missing", missing), ("not the model's", unexpected), ("of another shape", reshaped))
    if found := "; ".join(f"{what}: {_few(names)}" for what, names in wrong if names):
        raise UserError(f"{path}: these are not the weights of this {type(model).__name__} ({found})")
    # Not strict for the counters alone: everything else has just been checked.
    model.load_state_dict(state, strict=False)


def _read(path: Path) -> Any:
    if not path.is_file():
        raise UserError(f"{path}: there is no such file of weights")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        if path.suffix in (".pt", ".pth"):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        if "weights_only" in str(error).lower() or "weights only" in str(error).lower():
            raise UserError(
                f"{path}: holds more than tensors, which is not read for safety; save the model's state_dict() alone"
            ) from error
        raise UserError(f"{path}: cannot be read as weights ({type(error).__name__}); it seems damaged") from error
    raise UserError(f"{path}: weights are read from .pt, .pth or .safetensors")


def _tensors(path: Path, read: Any) -> dict[str, Tensor]:
    while isinstance(read, Mapping) and (inside := [key for key in _INSIDE if isinstance(read.get(key), Mapping)]):
        read = read[inside[0]]
    if not isinstance(read, Mapping) or not read or not all(isinstance(value, Tensor) for value in read.values()):
        raise UserError(f"{path}: holds no state dict, neither itself nor under 'model' or 'state_dict'")
    state = {str(name): value for name, value in read.items()}
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state


def _few(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
