"""Where a job is done: one device, the data on it, the frozen teachers; `perform` makes a job into a result."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors.torch import save as safetensors
from torch import Tensor, nn

from kdbench import data
from kdbench.data import DataSet
from kdbench.data.batches import Source
from kdbench.files import write_atomically
from kdbench.method import Refusal
from kdbench.models import size
from kdbench.models.make import network
from kdbench.models.mamba import scan
from kdbench.result import Cost, Exit, Prefix, Result, Teacher
from kdbench.streams import seeded
from kdbench.suite.job import FrozenRole, Job
from kdbench.train import checkpoint, evaluate, gates, memory, prefixes, teachers
from kdbench.train.devices import one_thread
from kdbench.train.engine import Engine
from kdbench.train.prefixes import THRESHOLDS, Steps
from kdbench.train.provenance import device_name, provenance, versions
from kdbench.train.recipe import precision_on
from kdbench.train.state import Diverged, Progress, Trained, Training
from kdbench.train.table import Shelf
from kdbench.train.teachers import Frozen


@dataclass
class Workbench:
    """Shared by all jobs of one process. `watch` hears of every epoch, `warn` of damaged files.

    `timed`: whether the latency of deployed answers is measured. `room`: bytes that teachers' stored answers on views
    of training examples may take below `runs`; 0: every teacher runs on every batch.
    """

    data: DataSet
    device: torch.device
    runs: Path
    watch: Callable[[str, Progress], None] = lambda what, progress: None
    warn: Callable[[str], None] = lambda sentence: None
    frozen: dict[str, Frozen] = field(default_factory=dict)
    timed: bool = True
    room: int = 0
    told: set[str] = field(default_factory=set)  # warnings that would come with every job

    @classmethod
    def load(cls, job: Job, root: Path, device: torch.device, runs: Path, **callbacks: Any) -> Workbench:
        """The job's data set, read and put on the device."""
        if device.type == "cpu":
            memory.keep_pages()
            one_thread()
        return cls(on_device(data.load(job.data, root, job.folder, job.task), device), device, runs, **callbacks)

    def teacher(self, role: FrozenRole) -> Frozen:
        """A frozen role, from memory, from disk, or trained now."""
        if role.key not in self.frozen:
            self.frozen[role.key] = teachers.obtain(
                role,
                self.data,
                self.runs,
                watch=lambda progress: self.watch(f"teacher {role.model.model}", progress),
                warn=self.warn,
            )
            if sentence := teachers.suspicion(role, self.frozen[role.key].record, self.data):
                self.warn(sentence)
        return self.frozen[role.key]

    def perform(self, job: Job, splits: Sequence[str] = ("val", "test")) -> Result:
        """Train, deploy, and evaluate once on the test split. A tuning trial looks at `splits=("val",)` alone.

        Refusals, teachers below their gate and non-finite losses become results; every other exception is the
        caller's to record.
        """
        precision = precision_on(job.recipe.precision, self.device)
        base = job.result("ok", provenance=provenance(self.device, precision) | self.data.provenance)
        try:
            frozen = {role: self.teacher(spec) for role, spec in job.frozen.items()}
            for role, spec in job.frozen.items():
                if sentence := gates.missed(spec.model, self.data.task, frozen[role].record.scores, role):
                    raise Refusal(f"{sentence} (pairs.{job.pair}.{role}.{spec.model.gate_field})")
            doubts = [teachers.suspicion(spec, frozen[role].record, self.data) for role, spec in job.frozen.items()]
            # A tuning trial is told nothing about the test split.
            base = dataclasses.replace(base, notes=[doubt for doubt in doubts if doubt and "test" in splits])
            record = frozen["teacher"].record
            scores = {name: value for name, value in record.scores.items() if name.split("/")[0] in splits}
            base = dataclasses.replace(base, teacher=Teacher(record.key, record.sha256, scores))
            memory.reset_peak(self.device)
            trained = self._train(job, frozen)
            return self._measure(base, job, trained, frozen, precision, splits)
        except Refusal as refusal:
            return dataclasses.replace(base, status="skipped", reason=str(refusal))
        except Diverged as error:
            return dataclasses.replace(base, status="diverged", reason=str(error))

    def build(self, job: Job, role: str, frozen: Mapping[str, Frozen] = MappingProxyType({})) -> nn.Module:
        """A learner with the initial weights of (seed, role), the same for every method, or of a frozen role."""
        spec = job.roles[role]
        with seeded(job.seed, "init", role):
            made = network(spec, self.data, job.folder).to(self.device)
        if spec.init is not None and spec.init in frozen:
            teachers.start(made, spec, frozen[spec.init].model, self.data)
        return made

    def _train(self, job: Job, frozen: dict[str, Frozen]) -> Trained:
        learners = {role: self.build(job, role, frozen) for role in job.plan.learners}
        task = Training(
            method=job.method,
            plan=job.plan,
            models={role: model.model for role, model in frozen.items()} | learners,
            data=self.data,
            recipe=job.recipe,
            seed=job.seed,
            folders={role: teachers.folder_of(self.runs, spec) for role, spec in job.frozen.items()},
            shelves={role: self._shelf(spec, frozen[role]) for role, spec in job.frozen.items()} if self.room else {},
        )
        path = checkpoint.path_of(self.runs, job.key)
        trained = Engine(
            task,
            state=checkpoint.begin(path, task.models.values(), self.device, self.warn),
            save=lambda state: checkpoint.save(path, state),
            spacing=checkpoint.SPACING,
            watch=lambda progress: self.watch(f"{job.name} seed {job.seed}", progress),
        ).train()
        for role, model in frozen.items():
            if teachers.fingerprint(model.model) != model.record.sha256:
                raise RuntimeError(f"the frozen {role} changed while it taught; its sha256 no longer fits")
        return trained

    def _shelf(self, spec: FrozenRole, found: Frozen) -> Shelf:
        """Where the answers of a frozen role are kept, and all of a machine that may change a bit of them."""
        identity = {
            "teacher": found.record.sha256,
            "data": [self.data.fingerprint, self.data.split, self.data.mean, self.data.std],
            "device": device_name(self.device),
            "versions": versions(),
            "scan": scan.backend_in_use(found.model),
        }
        return Shelf(teachers.folder_of(self.runs, spec), identity, self.room, self._warn_once)

    def _warn_once(self, sentence: str) -> None:
        if sentence not in self.told:
            self.told.add(sentence)
            self.warn(sentence)

    def _measure(
        self,
        base: Result,
        job: Job,
        trained: Trained,
        frozen: dict[str, Frozen],
        precision: str,
        splits: Sequence[str],
    ) -> Result:
        """Scores and costs of the deployed answer; a final student's weights are kept.

        The checkpoint is not touched: whoever has stored the result lets it go.

        Raises:
            Diverged: weights, logits or scores are not finite, though every loss was.
        """
        peak = memory.peak_mb(self.device)
        final = "test" in splits
        teacher = frozen["teacher"]
        parameters, macs = size.count(trained.answer, self.data.signature)
        chosen = [part for part in self._splits(teacher) if part[0] in splits]
        found = {name: self._steps(job, trained, split, taught, precision) for name, split, taught in chosen}
        scores = {
            f"{name}/{metric}": value
            for name, steps in found.items()
            for metric, value in steps.together[-1].scores().items()
        }
        wrong = evaluate.not_finite(trained.answer, {name: steps.finite for name, steps in found.items()})
        if wrong or not all(map(math.isfinite, scores.values())):
            raise Diverged(f"after its last epoch {wrong or 'a score is not finite'}")
        cost = Cost(
            train_seconds=trained.seconds,
            cpu_seconds=trained.cpu_seconds,
            looked_up_seconds=trained.looked_up,
            teacher_seconds=sum(model.record.train_seconds for model in frozen.values()),
            images_per_second=trained.images / max(trained.seconds, 1e-9),
            peak_memory_mb=peak,
            learner_parameters=trained.learner_parameters,
            head_parameters=trained.head_parameters,
            parameters=parameters,
            macs=macs,
            teacher_parameters=teacher.record.parameters,
            teacher_macs=teacher.record.macs,
            latency_ms_batch1=self._latency(trained.answer, 1),
            latency_ms_batch256=self._latency(trained.answer, 256),
            epochs=trained.epochs,
            trials=job.trials,
            queries=trained.queries,
            zeros=size.zeros(trained.answer),
        )
        if final:
            state = {k: v.detach().cpu().contiguous().clone() for k, v in trained.answer.state_dict().items()}
            write_atomically(self.runs / "students" / f"{job.key}.safetensors", safetensors(state))
        made = base.provenance
        if (backend := scan.backend_in_use(trained.answer)) is not None:
            made = {**made, "scan": backend}
        steps, exits = self._anytime(job, trained, found)
        return dataclasses.replace(
            base,
            scores=scores,
            curves=trained.curves,
            cost=cost,
            provenance=made,
            notes=[*base.notes, *trained.notes],
            prefixes=steps,
            exits=exits,
        )

    def _steps(self, job: Job, trained: Trained, split: Source, taught: Tensor | None, precision: str) -> Steps:
        """A split's scores of every prefix of the answer, its whole the last, batch by batch."""
        task, parts = self.data.task, trained.parts
        steps = Steps(task, len(parts), job.plan.combine, THRESHOLDS if len(parts) > 1 else ())
        for index_B, answers in evaluate.asked(parts, split, precision):
            said = None if taught is None else task.rows(taught[index_B])
            steps.add(answers, task.targets(split.labels[index_B]), said)
        return steps

    def _anytime(self, job: Job, trained: Trained, found: Mapping[str, Steps]) -> tuple[list[Prefix], list[Exit]]:
        """Prefixes and exits of an answer of several roles; none of a single one, nor where a split is left out."""
        if len(trained.parts) == 1 or set(found) != {"val", "test"}:
            return [], []
        sizes = [size.count(part, self.data.signature) for part in trained.parts]
        return prefixes.prefixes(job.plan.answer, sizes, found), prefixes.exits([macs for _, macs in sizes], found)

    def _splits(self, teacher: Frozen) -> list[tuple[str, Source, Tensor | None]]:
        """What answers are evaluated on, and what the teacher answers there."""
        return [("val", self.data.val, teacher.val), ("test", self.data.test, teacher.test)]

    def _latency(self, model: nn.Module, batch: int) -> float:
        """0 where it is not measured, or the batch does not fit into memory: that is no fault of the training."""
        if not self.timed:
            return 0.0
        try:
            x = self.data.signature.zeros(batch, device=self.device)
            if isinstance(x, Tensor) and x.ndim == 4:
                x = x.contiguous(memory_format=torch.channels_last)
            return evaluate.latency_ms(model, x)
        except (MemoryError, RuntimeError) as error:
            if not memory.out_of_memory(error):
                raise
            return 0.0


def on_device(loaded: DataSet, device: torch.device) -> DataSet:
    """The same set, whose batches come on the device."""
    splits = {name: getattr(loaded, name).move(device) for name in ("train", "val", "test")}
    return dataclasses.replace(loaded, **splits)
