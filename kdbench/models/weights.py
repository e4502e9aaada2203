"""Weights of a model from a file: what `torch.save` or safetensors wrote, whatever training script wrapped it.

What a file holds is told by its first bytes, not by its name. Pickles are read with `weights_only`.
"""

from __future__ import annotations

import argparse
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from kdbench.errors import UserError

SUFFIXES = (".pt", ".pth", ".pth.tar", ".ckpt", ".bin", ".safetensors")
# Where checkpoints of training scripts keep the weights; of several the first: averaged ones only where they are alone.
_INSIDE = (
    *("state_dict", "model", "model_state_dict", "model_state", "net", "network", "module", "weights", "params"),
    *("ema", "state_dict_ema", "model_ema", "ema_state_dict"),
)
# In front of all names: DataParallel and torch.compile, Lightning, and what training scripts call the network.
_OUTER = ("module", "_orig_mod", "model", "net", "network")
# Anywhere in a name: parts that were compiled, sharded or recomputed on their own.
_INNER = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_SAVED = (b"PK\x03\x04", b"\x80")  # how files of torch.save begin
_SHOWN = 3


def load(model: nn.Module, path: Path) -> None:
    """Copy the weights in a file into `model`, all of them or, on an error, none.

    Raises:
        UserError: see `read` and `fit`.
    """
    fit(model, read(path), path)


def read(path: Path) -> dict[str, Tensor]:
    """The state dict in a file, itself or inside a training script's checkpoint; names as they are there.

    Raises:
        UserError: no such file, a damaged one, one of another kind, or one without a state dict.
    """
    return _tensors(path, _read(path))


def fit(model: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Copy weights into `model`, all of them or, on an error, none; `path` is where they come from.

    Prefixes that wrappers leave behind (`module.`, `_orig_mod.`, Lightning's `model.`) are dropped where the model
    itself has no such names. Counters of BatchNorm (`num_batches_tracked`) may be missing, as in files of old versions.

    Raises:
        UserError: names or shapes are not the model's.
    """
    expected = model.state_dict()
    state = renamed(state, expected)
    missing = [name for name in _needed(expected) if name not in state]
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


def compact(value: Any) -> Any:
    """The same tensors in the same dicts and lists, none with more memory behind it than it shows.

    `torch.save` and `torch.export.save` write all that lies behind a view: of `table[:2]` the whole table.
    """
    if isinstance(value, Tensor):
        shown = value.numel() * value.element_size()
        if value.layout is not torch.strided or value.untyped_storage().nbytes() <= shown:
            return value
        copied = value.detach().clone()
        return nn.Parameter(copied, value.requires_grad) if isinstance(value, nn.Parameter) else copied
    if type(value) in (list, tuple):
        return type(value)(compact(item) for item in value)
    return {name: compact(item) for name, item in value.items()} if isinstance(value, Mapping) else value


# names ---------------------------------------------------------------------------------------------------------------
def renamed(state: Mapping[str, Tensor], expected: Mapping[str, Any]) -> Mapping[str, Tensor]:
    """The state under the model's names: with the shortest prefixes dropped that leave every name that it needs.

    Where nothing fits, what comes closest: good for an error.
    """
    needed = _needed(expected)
    best, most = state, -1
    for candidate in _candidates(state):
        hits = sum(name in candidate for name in needed)
        if hits > most:
            best, most = candidate, hits
        if hits == len(needed):
            break
    return best


def _needed(expected: Mapping[str, Any]) -> list[str]:
    return [name for name in expected if not name.endswith("num_batches_tracked")]


def _candidates(state: Mapping[str, Tensor]) -> Iterator[Mapping[str, Tensor]]:
    plain = {_INNER.sub("", name): value for name, value in state.items()}
    # Two names that become one: then those parts were no wrappers.
    for named in (state, plain) if len(plain) == len(state) else (state,):
        for prefix in sorted({prefix for name in named for prefix in _outer(name)}, key=lambda prefix: len(prefix)):
            yield {name.removeprefix(prefix): v for name, v in named.items() if name.startswith(prefix)}


def _outer(name: str) -> Iterator[str]:
    """ "", and every run of known prefixes in front of the name."""
    prefix = ""
    yield prefix
    for part in name.split(".")[:-1]:
        if part not in _OUTER:
            return
        prefix += f"{part}."
        yield prefix


# files ---------------------------------------------------------------------------------------------------------------
def _read(path: Path) -> Any:
    if not path.is_file():
        raise UserError(f"{path}: there is no such file of weights")
    if not path.name.lower().endswith(SUFFIXES):
        raise UserError(f"{path}: weights are read from {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}")
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error
    if sentence := _not_weights(head):
        raise UserError(f"{path}: {sentence}")
    if _is_safetensors(head) or (path.suffix == ".safetensors" and not head.startswith(_SAVED)):
        return _read_safetensors(path)
    return _read_pickle(path)


def _not_weights(head: bytes) -> str:
    """What a file is that begins so and holds no weights; "" where it may."""
    text = head.lstrip().lower()
    if not head:
        return "is empty; fetch it again"
    if text.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer, not the weights themselves: `git lfs pull` fetches them"
    if text.startswith((b"<html", b"<!doctype", b"<?xml", b"<head")):
        return "is a web page, not weights: the download answered with a page (a login, or an error); fetch it again"
    return ""


def _is_safetensors(head: bytes) -> bool:
    """Eight bytes of length, then JSON."""
    return head[8:9] == b"{" and 0 < int.from_bytes(head[:8], "little") < 100_000_000


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path}: is cut short or damaged, and no whole safetensors file; fetch it again") from error


def _read_pickle(path: Path) -> Any:
    try:
        # What scripts keep beside the weights; it is a plain holder of values.
        with torch.serialization.safe_globals([argparse.Namespace]), path.open("rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        # Never what torch says: it advises to load without `weights_only`, which runs the file as a program.
        raise UserError(f"{path}: {_unreadable(str(error))}") from error


def _unreadable(said: str) -> str:
    if "TorchScript" in said:
        return "is a TorchScript program, not a state dict; save the model's state_dict() alone"
    if found := re.search(r"(?:Unsupported (?:global|class)|GLOBAL) *:? *(?:GLOBAL )?([\w.]+\.\w+)", said):
        what = f"holds more than tensors ({found.group(1)})"
        return f"{what}, which is not read for safety; save the model's state_dict() alone"
    return "cannot be read as weights: it is cut short, damaged, or of another kind; fetch it again"


def _tensors(path: Path, read: Any) -> dict[str, Tensor]:
    while isinstance(read, Mapping) and (inside := [key for key in _INSIDE if isinstance(read.get(key), Mapping)]):
        read = read[inside[0]]
    if not isinstance(read, Mapping) or not read or not all(isinstance(value, Tensor) for value in read.values()):
        named = ", ".join(f"'{key}'" for key in _INSIDE[:5])
        raise UserError(f"{path}: holds no state dict, neither itself nor under {named} or the like")
    return {str(name): value for name, value in read.items()}


def _few(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
