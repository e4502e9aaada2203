"""Frozen roles: trained once per content key, or read from a file, or pretrained; shared by every job.

Kept under `runs/teachers/<key>/`: the weights, the answers on validation and test, and a record of scores and cost.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from kdbench.batch import Batch, Out
from kdbench.data import DataSet
from kdbench.errors import UserError
from kdbench.files import set_aside, write_atomically
from kdbench.losses import supervised
from kdbench.method import Method, Plan, Stage
from kdbench.models import size, weights
from kdbench.models.make import network
from kdbench.streams import seeded
from kdbench.suite.job import FrozenRole
from kdbench.train import checkpoint, evaluate, lease
from kdbench.train.engine import Engine
from kdbench.train.recipe import precision_on
from kdbench.train.state import Progress, Training


@dataclass(frozen=True)
class Record:
    """What is known about a frozen model; stored beside its weights."""

    key: str
    sha256: str  # of all parameters and buffers
    scores: dict[str, float]
    train_seconds: float
    parameters: int
    macs: int


@dataclass(frozen=True)
class Frozen:
    """A frozen model on the device, its record, and its answers (N, ...) on validation and test."""

    model: nn.Module
    record: Record
    val: Tensor
    test: Tensor


@dataclass(frozen=True)
class Supervised(Method):
    """What the task asks of a learner, alone: how a teacher is trained."""

    def plan(self, roles: tuple[str, ...]) -> Plan:
        return Plan(stages=(Stage({roles[0]: ()}),), answer=(roles[0],))

    def loss(self, learner: Out, teachers: Mapping[str, Out], batch: Batch, heads: nn.Module) -> dict[str, Tensor]:
        return {"ce": supervised(learner, batch)}


def fingerprint(model: nn.Module) -> str:
    """sha256 of every parameter and buffer, bit by bit, in canonical layout."""
    sha = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        sha.update(f"{name}{value.dtype}{tuple(value.shape)}".encode())
        sha.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()


def obtain(
    role: FrozenRole,
    data: DataSet,
    runs: Path,
    *,
    watch: Callable[[Progress], None] = lambda progress: None,
    warn: Callable[[str], None] = lambda sentence: None,
) -> Frozen:
    """The frozen model of a role, on the data's device, in eval mode.

    Raises:
        UserError: weights that do not fit the model, or pretrained weights that cannot be had.
        kdbench.train.state.Diverged: its training diverged.
    """
    folder = runs / "teachers" / role.key
    model = _initial(role, data)
    stored = _stored(folder, model)
    if stored is None:
        with lease.waited(runs / "leases" / role.key, f"teacher {role.model.model}"):  # another run may be training it
            stored = _stored(folder, model, warn)
            if stored is None:
                model, stored = _make(role, data, runs, folder, watch, warn)
    record, logits = stored
    model.requires_grad_(False).eval()
    model.to(memory_format=torch.channels_last)
    device = data.train.device
    return Frozen(model, record, logits["val"].to(device), logits["test"].to(device))


def _make(
    role: FrozenRole,
    data: DataSet,
    runs: Path,
    folder: Path,
    watch: Callable[[Progress], None],
    warn: Callable[[str], None],
) -> tuple[nn.Module, tuple[Record, dict[str, Tensor]]]:
    """Train, read or fetch the model, score it, and keep it."""
    device = data.train.device
    model = _initial(role, data)  # anew: a damaged file may have left its weights in the first
    parameters, macs = size.count(model, data.signature)
    seconds = 0.0
    if role.recipe is not None:
        model, seconds = _train(model, role, data, runs, watch, warn)
    elif role.model.weights is not None:
        weights.load(model, role.folder / role.model.weights)
    model.requires_grad_(False).eval()
    precision = precision_on(role.recipe.precision if role.recipe else "auto", device)
    splits = {"val": data.val, "test": data.test}
    answers = {name: evaluate.split_answers(model, split, precision) for name, split in splits.items()}
    found = {
        f"{name}/{metric}": value
        for name, split in splits.items()
        for metric, value in evaluate.scores([answers[name]], split, data.task).items()
    }
    record = Record(role.key, fingerprint(model), found, seconds, parameters, macs)
    _keep(folder, model, answers, record)
    return model, (record, answers)


def _initial(role: FrozenRole, data: DataSet) -> nn.Module:
    with seeded(role.model.seed, "init", "teacher"):
        made = network(role.model, data, role.folder, pretrained=role.model.pretrained)
        return made.to(data.train.device)


def _train(
    model: nn.Module,
    role: FrozenRole,
    data: DataSet,
    runs: Path,
    watch: Callable[[Progress], None],
    warn: Callable[[str], None],
) -> tuple[nn.Module, float]:
    assert role.recipe is not None
    method, path = Supervised(), checkpoint.path_of(runs, role.key)
    task = Training(method, method.plan(("teacher",)), {"teacher": model}, data, role.recipe, role.model.seed)
    trained = Engine(
        task,
        state=checkpoint.begin(path, [model], data.train.device, warn),
        save=lambda state: checkpoint.save(path, state),
        watch=watch,
    ).train()
    path.unlink(missing_ok=True)
    return trained.answer, trained.seconds


def _keep(folder: Path, model: nn.Module, logits: Mapping[str, Tensor], record: Record) -> None:
    """The record is written last: a folder without one is unfinished and done again."""
    state = {f"model.{name}": value.cpu().contiguous().clone() for name, value in model.state_dict().items()}
    state |= {f"logits.{name}": value.cpu().contiguous() for name, value in logits.items()}
    try:
        write_atomically(folder / "weights.safetensors", save(state))
        write_atomically(folder / "record.json", (json.dumps(asdict(record), indent=1) + "\n").encode())
    except OSError as error:
        raise UserError(
            f"{folder}: cannot write the teacher ({error.strerror}); free space or give --runs DIR"
        ) from error


def _stored(
    folder: Path, model: nn.Module, warn: Callable[[str], None] | None = None
) -> tuple[Record, dict[str, Tensor]] | None:
    """A kept teacher, loaded into `model` and checked against its digest.

    A damaged one is set aside with a warning; without `warn`, as long as others may be at work on it, it is let be.
    """
    if not (folder / "record.json").exists():
        return None
    try:
        record = Record(**json.loads((folder / "record.json").read_text(encoding="utf-8")))
        tensors = load((folder / "weights.safetensors").read_bytes())
        model.load_state_dict({k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")})
        if fingerprint(model) != record.sha256:
            raise ValueError("its weights do not fit their digest")
        logits = {k.removeprefix("logits."): v for k, v in tensors.items() if k.startswith("logits.")}
        return record, {"val": logits["val"], "test": logits["test"]}
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, SafetensorError) as error:
        if warn is not None:
            warn(f"{folder.name}: damaged teacher ({error}); set aside as {set_aside(folder).name} and made again")
        return None
