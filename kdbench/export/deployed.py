"""A finished job's deployed module, or a pair's teacher, made again without training and given its weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from kdbench import data, plugins
from kdbench.batch import call
from kdbench.data import DataSet, default_root
from kdbench.data.batches import Source, fetch
from kdbench.errors import UserError, did_you_mean, printable
from kdbench.method import Refusal
from kdbench.models import weights
from kdbench.models.make import network
from kdbench.suite.fields import Model
from kdbench.suite.job import FrozenRole, Job, expand
from kdbench.suite.load import Suite, load
from kdbench.suite.winners import current, tuned_job
from kdbench.train import teachers
from kdbench.train.engine import Engine
from kdbench.train.state import State, Training
from kdbench.train.teachers import Record
from kdbench.train.workbench import Workbench

TEACHER = "teacher"  # PAIR/teacher names the pair's teacher instead of a method's student


def cell_of(suite: Suite, name: str) -> tuple[str, str]:
    """`pair/method` or `pair/teacher` -> (pair, label).

    Raises:
        UserError: the suite has no such cell.
    """
    cells = dict.fromkeys(suite.cells)
    teachers = {(pair, TEACHER): None for pair, _ in cells}
    pair, _, label = name.partition("/")
    if (pair, label) in cells or (pair, label) in teachers:
        return pair, label
    names = ["/".join(cell) for cell in (*cells, *teachers)]
    hint = did_you_mean(name, names)
    if not hint:
        labels = [label for one, label in cells if one == pair]
        pairs, methods = (", ".join(dict.fromkeys(part)) for part in zip(*cells, strict=True))
        hint = f"; its pairs are {pairs}, its methods {methods}, and {TEACHER}"
        hint = f"; {pair} has {', '.join(labels)} and {TEACHER}" if labels else hint
    raise UserError(f"{suite.path.name} has no PAIR/METHOD '{name}'{hint}")


def job_of(
    suite: Suite,
    pair: str,
    label: str,
    seed: int | None = None,
    *,
    fingerprint: str | None,
    epochs: int | None = None,
    tuned: Path | None = None,
) -> Job:
    """The job of a cell; for `teacher` one of the pair's, whichever: they share it. Default seed: the suite's first.

    Args:
        tuned: the folder of the boards, for the knobs that `kdbench tune` chose.

    Raises:
        UserError: the cell was not tuned.
    """
    seeds = suite.file.seeds[:1] if seed is None else (seed,)
    if tuned is not None and not is_teacher(suite, pair, label):
        winner = current(suite, tuned)[0].get((pair, label))
        if winner is None:
            raise UserError(f"{pair}/{label} has not been tuned as the suite is now: `kdbench tune {suite.path}` does")
        return tuned_job(suite, winner, fingerprint, seed=seeds[0], epochs=epochs)
    jobs = expand(suite, fingerprint, epochs=epochs, seeds=seeds)
    return next(job for job in jobs if job.pair == pair and label in (job.label, TEACHER))


def is_teacher(suite: Suite, pair: str, label: str) -> bool:
    """Whether the name means the pair's teacher: it does, unless a method has that label."""
    return label == TEACHER and (pair, label) not in suite.cells


def untrained(job: Job, bench: Workbench) -> nn.Module:
    """The module that a job deploys, in eval mode on the bench's device, before it has its weights.

    Raises:
        UserError: the method refuses, or a model cannot be built.
    """
    frozen = {role: initial(spec.model, bench.data, spec.folder, bench.device) for role, spec in job.frozen.items()}
    learners = {role: bench.build(job, role) for role in job.plan.learners}
    task = Training(job.method, job.plan, frozen | learners, bench.data, job.recipe, job.seed)
    try:
        # All stages are behind it: the engine prepares every role, trains nothing and deploys.
        return _Rehearsal(task, state=State(stage=len(job.plan.stages))).train().answer
    except Refusal as refusal:
        raise UserError(f"{job.name}: {refusal}") from refusal


class _Rehearsal(Engine):
    """Roles without trained weights have nothing to say about the training set: nobody asks them at length."""

    def _source(self, number: int) -> Source:
        return self.training.data.train

    def _over_training(self, role: str) -> Tensor:
        data = self.training.data
        with torch.no_grad():
            answer = call(self.models[role].eval(), data.signature.zeros(2, device=self.device))
        return torch.ones(len(data.train), *answer.shape[1:], device=self.device)


def initial(spec: Model, loaded: DataSet, folder: Path, device: torch.device) -> nn.Module:
    """A network as the suite declares it, frozen, with throw-away weights."""
    return network(spec, loaded, folder).to(device).requires_grad_(False).eval()


@dataclass(frozen=True)
class Deployed:
    """A trained module, and how to make an empty one of the same shape."""

    model: nn.Module
    fresh: Callable[[], nn.Module]
    specs: Mapping[str, Model]  # role -> network that it is, or was made of; several roles where they answer together
    plain: bool  # it is that one network, unchanged

    @property
    def spec(self) -> Model:
        """The last role's network."""
        return list(self.specs.values())[-1]

    @property
    def origin(self) -> str:
        """Whose network it is: `timm`, `kdbench`, `package` (an installed one), or `file` (the user's)."""
        if plugins.is_file(self.spec.model):
            return "file"
        if self.spec.model in plugins.installed_names("models"):
            return "package"
        return "kdbench" if self.spec.model in plugins.declared("models") else "timm"


def student(job: Job, bench: Workbench) -> Deployed:
    """A finished job's deployed answer.

    Raises:
        UserError: its weights are missing, damaged or of another module.
    """
    path = bench.runs / "students" / f"{job.key}.safetensors"
    specs = {role: job.roles[role] for role in job.plan.answer}
    kept = weights.read(path)
    model = _usual(untrained(job, bench))
    weights.fit(model, kept, path)
    bare = initial(job.roles[job.plan.answer[-1]], bench.data, job.folder, bench.device)
    plain = len(specs) == 1 and _is(model, bare, bench)
    return Deployed(model, lambda: _usual(untrained(job, bench)), specs, plain)


def teacher(role: FrozenRole, bench: Workbench) -> tuple[Deployed, Record]:
    """A pair's teacher, checked against its sha256, and its record.

    Raises:
        UserError: its weights are missing, damaged or not those of the record.
    """
    folder = bench.runs / "teachers" / role.key
    path = folder / "weights.safetensors"

    def fresh() -> nn.Module:
        return initial(role.model, bench.data, role.folder, bench.device)

    try:
        record, kept = teachers.read(folder, role.key)
    except FileNotFoundError as error:
        raise UserError(f"{error.filename}: there is no such file; `kdbench run` makes it") from error
    except (OSError, ValueError) as error:
        reason = printable(error)
        raise UserError(f"{folder}: damaged teacher ({reason}); `kdbench run` makes it again") from error
    model = fresh()
    weights.fit(model, {k.removeprefix("model."): v for k, v in kept.items() if k.startswith("model.")}, path)
    return Deployed(model, fresh, {TEACHER: role.model}, plain=True), record


def architecture(
    suite: Path | str,
    name: str,
    *,
    seed: int | None = None,
    tuned: Path | str | None = None,
    data_root: Path | None = None,
) -> nn.Module:
    """The module whose weights `kdbench export SUITE PAIR/METHOD` writes, without them, on the CPU.

    Args:
        tuned: the folder of the boards, for a student with tuned knobs.

    Raises:
        UserError: a mistake in the suite, no such cell, or no data.
    """
    declared = load(Path(suite))
    pair, label = cell_of(declared, name)
    loaded = data.load(declared.file.data, data_root or default_root(), declared.folder, declared.task_name)
    winners = None if tuned is None else Path(tuned)
    job = job_of(declared, pair, label, seed, fingerprint=loaded.fingerprint, tuned=winners)
    cpu = torch.device("cpu")
    if is_teacher(declared, pair, label):
        return initial(job.frozen[TEACHER].model, loaded, job.folder, cpu)
    return _usual(untrained(job, Workbench(loaded, cpu, Path("runs"))))


def pixels(bench: Workbench, most: int) -> Tensor:
    """The first validation images as stored: uint8 (B, channels, H, W), on the bench's device."""
    images = getattr(bench.data.val, "images", None)
    if images is None:
        raise UserError(f"{bench.data.name} holds no images: .pt2 and .onnx take pixels; use .safetensors")
    index_B = torch.arange(min(most, len(bench.data.val.labels)))
    if isinstance(images, Tensor):
        return images[: len(index_B)]
    (read,) = images.read([(index_B, None)])
    return read.to(bench.device)


def normalised(bench: Workbench, most: int) -> Tensor:
    """The same images as networks take them, float32."""
    index_B = torch.arange(min(most, len(bench.data.val.labels)), device=bench.device)
    return fetch(bench.data.val, index_B).contiguous()


def logits(model: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """(B, C) in float32 on the CPU."""
    with torch.inference_mode():
        return model(x).float().cpu()


def _usual(model: nn.Module) -> nn.Module:
    """Frozen, in eval mode, in the usual memory layout (the engine trains with channels last)."""
    return model.to(memory_format=torch.contiguous_format).requires_grad_(False).eval()


def _is(model: nn.Module, bare: nn.Module, bench: Workbench) -> bool:
    """Whether a trained module is the bare network with other weights: same names and shapes, and same answers."""
    state, given = bare.state_dict(), model.state_dict()
    if {name: value.shape for name, value in state.items()} != {name: value.shape for name, value in given.items()}:
        return False
    bare.load_state_dict(given)
    x = normalised(bench, 8)
    return torch.allclose(logits(bare, x), logits(model, x), rtol=1e-4, atol=1e-4)
