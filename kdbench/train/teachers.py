"""Frozen roles: trained once per content key, or read from a file, or pretrained; shared by every job.

Kept under `runs/teachers/<key>/`: the weights, the logits on validation and test, and a record of scores and cost.
"""

from __future__ import annotations

import copy
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
from kdbench.models import layers, size, weights
from kdbench.models.box import Box
from kdbench.models.make import network
from kdbench.streams import seeded
from kdbench.suite.fields import Model
from kdbench.suite.job import FrozenRole
from kdbench.tasks import classification
from kdbench.train import answers, checkpoint, evaluate, lease
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
    parameters: int | None  # None: unknown, of a file of answers
    macs: int | None


@dataclass(frozen=True)
class Frozen:
    """A frozen model on the device, its record, and its logits on validation and test."""

    model: nn.Module
    record: Record
    val_NC: Tensor | None  # None: of a file of answers
    test_NC: Tensor | None


@dataclass(frozen=True)
class Supervised(Method):
    """Cross-entropy alone: how a teacher is trained."""

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


def folder_of(runs: Path, role: FrozenRole) -> Path:
    """Where a frozen role is kept."""
    return runs / "teachers" / role.key


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
    if role.model.answers is not None:
        return _box(role, role.model.answers, data)
    folder = folder_of(runs, role)
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
    device = data.train.images.device
    return Frozen(model, record, logits["val"].to(device), logits["test"].to(device))


def _box(role: FrozenRole, file: str, data: DataSet) -> Frozen:
    """What is in a file of answers; there is nothing to keep."""
    box = Box(len(data.train.labels), data.classes)
    box.rows_NC.copy_(answers.read(role.folder / file, data))
    box.to(data.train.labels.device).eval()
    return Frozen(box, Record(role.key, fingerprint(box), {}, 0.0, None, None), None, None)


def _make(
    role: FrozenRole,
    data: DataSet,
    runs: Path,
    folder: Path,
    watch: Callable[[Progress], None],
    warn: Callable[[str], None],
) -> tuple[nn.Module, tuple[Record, dict[str, Tensor]]]:
    """Train, read or fetch the model, score it, and keep it."""
    device = data.train.images.device
    model = _initial(role, data)  # anew: a damaged file may have left its weights in the first
    parameters, macs = size.count(model, data.shape)
    seconds = 0.0
    if role.recipe is not None:
        model, seconds = _train(model, role, data, runs, watch, warn)
    elif role.source is not None:
        start(model, role.model, obtain(role.source, data, runs, watch=watch, warn=warn).model, data)
    elif role.model.weights is not None:
        weights.load(model, role.folder / role.model.weights)
    model.requires_grad_(False).eval()
    precision = precision_on(role.recipe.precision if role.recipe else "auto", device)
    logits = {
        name: evaluate.split_logits(model, split, data, precision)
        for name, split in (("val", data.val), ("test", data.test))
    }
    labels = {"val": data.val.labels, "test": data.test.labels}
    found = {
        f"{name}/{metric}": value
        for name, logits_NC in logits.items()
        for metric, value in classification.scores(logits_NC, labels[name]).items()
    }
    record = Record(role.key, fingerprint(model), found, seconds, parameters, macs)
    _keep(folder, model, logits, record)
    return model, (record, logits)


def start(model: nn.Module, spec: Model, source: nn.Module, data: DataSet) -> None:
    """Copy the weights of a frozen role into a network that is derived from it: all of it, or some of its layers."""
    source = copy.deepcopy(source)
    if spec.layers is not None:
        source = layers.keep(source, spec.layers, data.shape, f"{spec.init} {spec.model}")
    try:
        model.load_state_dict(source.state_dict())
    except RuntimeError as error:
        said = str(error).splitlines()[-1].strip()
        raise UserError(f"the weights of the {spec.init} do not fit the {spec.model} made of it ({said})") from error


def _initial(role: FrozenRole, data: DataSet) -> nn.Module:
    with seeded(role.model.seed, "init", "teacher"):
        made = network(role.model, data, role.folder, pretrained=role.model.pretrained)
        return made.to(data.train.images.device)


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
        state=checkpoint.begin(path, [model], data.train.images.device, warn),
        save=lambda state: checkpoint.save(path, state),
        spacing=checkpoint.SPACING,
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
