"""Checkpoints: the state of a training, now and then, checked by a digest and loaded with weights_only."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import nn

from kdbench.errors import UserError
from kdbench.files import set_aside, validated, write_atomically
from kdbench.models import weights
from kdbench.models.mamba.scan import backend_in_use
from kdbench.train.state import State

SPACING = 5.0  # seconds of training that a killed process may lose: writing one after every short epoch takes 3% of it


class Damaged(Exception):
    """A checkpoint whose digest does not fit, or that does not hold a state."""


def folder_of(runs: Path) -> Path:
    return runs / "checkpoints"


def path_of(runs: Path, key: str) -> Path:
    """Where the checkpoint of a job or a teacher lies while it is trained."""
    return folder_of(runs) / f"{key}.pt"


def save(path: Path, state: State) -> None:
    """Atomic. Not durable against a power cut: at worst the digest then fails and the job starts again."""
    buffer = io.BytesIO()
    torch.save(weights.compact({name: getattr(state, name) for name in state.__dataclass_fields__}), buffer)
    payload = buffer.getbuffer()
    write_atomically(path, hashlib.sha256(payload).digest() + payload, durable=False)


def load(path: Path, device: torch.device) -> State | None:
    """The state, or None when there is no checkpoint.

    Raises:
        Damaged: with a sentence; the file has been set aside.
    """
    if not path.exists():
        return None
    raw = path.read_bytes()
    reason = "its digest does not fit"
    if hashlib.sha256(raw[32:]).digest() == raw[:32]:
        try:
            return validated(State, torch.load(io.BytesIO(raw[32:]), map_location=device, weights_only=True))
        except ValueError as error:
            reason = str(error)
        except Exception:  # whatever torch says of a file that is not its own; some of it is advice to trust the file
            reason = "it holds no state of a training"
    raise Damaged(f"{path.name}: damaged checkpoint ({reason}); set aside as {set_aside(path).name}")


def begin(path: Path, models: Iterable[nn.Module], device: torch.device, warn: Callable[[str], None]) -> State:
    """Where the training of these models goes on, or its start.

    Raises:
        UserError: it was begun with another scan backend than the one that would now be used.
    """
    used = backend_in_use(nn.ModuleList(models))
    state = resume(path, device, warn) or State(scan=used)
    if used != state.scan and used is not None and state.scan is not None:
        raise UserError(
            f"{path}: its training was begun with scan backend '{state.scan}', and would go on with '{used}'; "
            f"set KDBENCH_SCAN={state.scan} (`kdbench doctor` lists what is available), or delete the file to restart"
        )
    return state


def resume(path: Path, device: torch.device, warn: Callable[[str], None]) -> State | None:
    """`load`, where a damaged checkpoint is only worth a warning: the training then starts again."""
    try:
        return load(path, device)
    except Damaged as error:
        warn(str(error))
        return None
