"""Frozen roles: trained once per content key, or read from a file, or pretrained; shared by every job.

Kept under `runs/teachers/<key>/`: the weights, the answers on validation and test, and a record of scores and cost,
under one digest. What does not fit it is set aside and made again.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from kdbench.batch import Batch, Out
from kdbench.data import DataSet
from kdbench.errors import UserError, printable
from kdbench.files import STRICT, Amount, Count, parsed, set_aside, write_atomically
from kdbench.losses import supervised
from kdbench.method import Method, Plan, Refusal, Stage
from kdbench.models import layers, size, weights
from kdbench.models.box import Box
from kdbench.models.make import network
from kdbench.models.taps import profile
from kdbench.result import Scores
from kdbench.streams import seeded
from kdbench.suite.fields import Model
from kdbench.suite.job import FrozenRole
from kdbench.train import answers, checkpoint, evaluate, lease
from kdbench.train.engine import Engine
from kdbench.train.recipe import precision_on
from kdbench.train.state import Diverged, Progress, Training

SUSPICIOUS = 5.0  # percentage points of top-1 on validation above test


@dataclass(frozen=True)
class Record:
    """What is known about a frozen model; stored beside its weights."""

    __pydantic_config__ = STRICT

    key: str
    sha256: str  # of all parameters and buffers
    scores: Scores
    train_seconds: Amount
    parameters: Count | None  # None: unknown, of a file of answers
    macs: Count | None
    digest: str = ""  # of the file of weights and logits, and of every other field here

    def signed(self, payload: bytes) -> Record:
        """The record with the digest of itself and of the bytes of its weights and logits."""
        content = asdict(self) | {"digest": hashlib.sha256(payload).hexdigest()}
        text = json.dumps(content, sort_keys=True, allow_nan=False)
        return replace(self, digest=hashlib.sha256(text.encode()).hexdigest())


@dataclass(frozen=True)
class Frozen:
    """A frozen model on the device, its record, and its answers (N, ...) on validation and test."""

    model: nn.Module
    record: Record
    val: Tensor | None  # None: of a file of answers
    test: Tensor | None


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


def suspicion(role: FrozenRole, record: Record, data: DataSet) -> str:
    """A sentence where a teacher that was trained elsewhere knows the validation images too well, else "".

    Weights from a file, or pretrained ones, may have been trained on images that are cut from the training set for
    validation. Then it answers those far better than the test images: by more than 5 points, and by more than chance
    (three standard errors of the difference).
    """
    headline = data.task.headline
    val, test = (record.scores.get(f"{split}/{headline.name}") for split in ("val", "test"))
    if role.recipe is not None or headline.unit != "%" or val is None or test is None:
        return ""
    sizes = len(data.val.labels), len(data.test.labels)
    share = (val * sizes[0] + test * sizes[1]) / (100 * sum(sizes))
    chance = 300 * math.sqrt(share * (1 - share) * (1 / sizes[0] + 1 / sizes[1]))
    if val - test <= max(SUSPICIOUS, chance):
        return ""
    return (
        f"the teacher {role.model.model} reaches {val:.1f}% on validation and {test:.1f}% on test: its weights have "
        f"probably been trained on the validation images, so what is chosen by them is not to be trusted; give a "
        f"validation split that it has not seen (data.options.val)"
    )


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
        UserError: weights that do not fit the model or are not finite, pretrained weights that are unavailable, or a
            model that cannot learn or does not answer logits of the data's classes.
        kdbench.train.state.Diverged: its training diverged.
    """
    if role.model.answers is not None:
        return _box(role, role.model.answers, data)
    folder = folder_of(runs, role)
    model = _initial(role, data)
    stored = _stored(folder, role.key, model)
    if stored is None:
        with lease.waited(runs / "leases" / role.key, f"teacher {role.model.model}"):  # another run may be training it
            stored = _stored(folder, role.key, model, warn)
            if stored is None:
                model, stored = _make(role, data, runs, folder, watch, warn)
    record, logits = stored
    model.requires_grad_(False).eval()
    model.to(memory_format=torch.channels_last)
    device = data.train.device
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
    device = data.train.device
    model = _initial(role, data)  # anew: a damaged file may have left its weights in the first
    parameters, macs = size.count(model, data.signature)
    seconds = 0.0
    try:
        if role.recipe is not None:
            model, seconds = _train(model, role, data, runs, watch, warn)
        elif role.source is not None:
            start(model, role.model, obtain(role.source, data, runs, watch=watch, warn=warn).model, data)
        else:
            if role.model.weights is not None:
                weights.load(model, role.folder / role.model.weights)
            profile(
                model, "teacher", (),
                classes=data.classes, examples=len(data.train), input_shape=data.signature, task=data.task,
            )  # fmt: skip
    except Refusal as refusal:
        raise UserError(f"model '{role.model.model}': {refusal}") from refusal
    model.requires_grad_(False).eval()
    precision = precision_on(role.recipe.precision if role.recipe else "auto", device)
    splits = {"val": data.val, "test": data.test}
    said = {name: evaluate.split_answers(model, split, precision) for name, split in splits.items()}
    if wrong := evaluate.not_finite(model, {name: bool(answer.isfinite().all()) for name, answer in said.items()}):
        raise _unusable(role, wrong)
    found = {
        f"{name}/{metric}": value
        for name, split in splits.items()
        for metric, value in evaluate.scores([said[name]], split, data.task).items()
    }
    record = Record(role.key, fingerprint(model), found, seconds, parameters, macs)
    record = _keep(folder, model, said, record)
    checkpoint.path_of(runs, role.key).unlink(missing_ok=True)  # not before: a full disk must not cost the training
    return model, (record, said)


def _unusable(role: FrozenRole, wrong: str) -> Exception:
    if role.recipe is not None:
        return Diverged(f"after its last epoch {wrong}")
    source = role.folder / role.model.weights if role.model.weights is not None else "pretrained"
    return UserError(f"{source}: no teacher ({role.model.model}): {wrong}")


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
        spacing=checkpoint.SPACING,
        watch=watch,
    ).train()
    return trained.answer, trained.seconds


def _keep(folder: Path, model: nn.Module, logits: Mapping[str, Tensor], record: Record) -> Record:
    """The record is written last: a folder without one is unfinished and done again. Returns it with its digest."""
    state = {f"model.{name}": value.cpu().contiguous().clone() for name, value in model.state_dict().items()}
    state |= {f"logits.{name}": value.cpu().contiguous() for name, value in logits.items()}
    payload = save(state)
    record = record.signed(payload)
    try:
        write_atomically(folder / "weights.safetensors", payload)
        write_atomically(folder / "record.json", (json.dumps(asdict(record), indent=1) + "\n").encode())
    except OSError as error:
        raise UserError(
            f"{folder}: cannot write the teacher ({error.strerror}); free space or give --runs DIR"
        ) from error
    return record


def read(folder: Path, key: str) -> tuple[Record, dict[str, Tensor]]:
    """A kept teacher: its record, and its tensors by `model.NAME` and `logits.SPLIT`.

    Raises:
        ValueError: it does not fit its digest, or is none; the message is a sentence.
        OSError: it cannot be read.
    """
    payload = (folder / "weights.safetensors").read_bytes()
    record = checked((folder / "record.json").read_bytes(), payload, key)
    try:
        return record, load(payload)
    except SafetensorError as error:
        raise ValueError(printable(error)) from error


def checked(record: bytes, payload: bytes, key: str) -> Record:
    """The record in a teacher's two files. Raises ValueError where they do not fit its digest or are another's."""
    found = parsed(Record, record)
    if found.key != key or found.signed(payload).digest != found.digest:
        raise ValueError("weights, logits and record do not fit their digest")
    return found


def _stored(
    folder: Path, key: str, model: nn.Module, warn: Callable[[str], None] | None = None
) -> tuple[Record, dict[str, Tensor]] | None:
    """A kept teacher, loaded into `model`.

    A damaged one is set aside with a warning; without `warn`, as long as others may be at work on it, it is left alone.
    """
    if not (folder / "record.json").exists():
        return None
    try:
        record, tensors = read(folder, key)
        model.load_state_dict({k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")})
        return record, {"val": tensors["logits.val"], "test": tensors["logits.test"]}
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        if warn is not None:
            reason = printable(error)
            warn(f"{folder.name}: damaged teacher ({reason}); set aside as {set_aside(folder).name} and made again")
        return None
