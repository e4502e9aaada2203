"""Where a job is done: one device, the data on it, the frozen teachers; `perform` makes a job into a result."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as safetensors
from torch import Tensor, nn

from kdbench import data
from kdbench.data import DataSet, Split
from kdbench.files import write_atomically
from kdbench.method import Refusal
from kdbench.models import size
from kdbench.models.make import network
from kdbench.models.mamba import scan
from kdbench.result import Cost, Exit, Prefix, Result, Teacher
from kdbench.streams import seeded
from kdbench.suite.job import FrozenRole, Job
from kdbench.tasks import classification, combined
from kdbench.train import checkpoint, evaluate, memory, prefixes, teachers
from kdbench.train.devices import one_thread
from kdbench.train.engine import Engine
from kdbench.train.provenance import provenance
from kdbench.train.recipe import precision_on
from kdbench.train.state import Diverged, Progress, Trained, Training
from kdbench.train.teachers import Frozen


@dataclass
class Workbench:
    """Shared by all jobs of one process. `watch` hears of every epoch, `warn` of damaged files.

    `timed`: whether the latency of deployed answers is measured.
    """

    data: DataSet
    device: torch.device
    runs: Path
    watch: Callable[[str, Progress], None] = lambda what, progress: None
    warn: Callable[[str], None] = lambda sentence: None
    frozen: dict[str, Frozen] = field(default_factory=dict)
    timed: bool = True

    @classmethod
    def load(cls, job: Job, root: Path, device: torch.device, runs: Path, **callbacks: Any) -> Workbench:
        """The job's data set, read and put on the device."""
        if device.type == "cpu":
            memory.keep_pages()
            one_thread()
        return cls(on_device(data.load(job.data, root, job.folder), device), device, runs, **callbacks)

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
                gate, top1 = spec.model.min_top1, frozen[role].record.scores["val/top1"]
                if gate is not None and top1 < gate:
                    raise Refusal(
                        f"{role} {spec.model.model} reaches {top1:.2f}% on validation, below its gate of {gate:g}% "
                        f"(pairs.{job.pair}.{role}.min_top1)"
                    )
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

    def build(self, job: Job, role: str) -> nn.Module:
        """A learner with the initial weights of (seed, role): the same for every method."""
        with seeded(job.seed, "init", role):
            return network(job.roles[role], self.data, job.folder).to(self.device)

    def _train(self, job: Job, frozen: dict[str, Frozen]) -> Trained:
        learners = {role: self.build(job, role) for role in job.plan.learners}
        task = Training(
            method=job.method,
            plan=job.plan,
            models={role: model.model for role, model in frozen.items()} | learners,
            data=self.data,
            recipe=job.recipe,
            seed=job.seed,
        )
        path = checkpoint.path_of(self.runs, job.key)
        trained = Engine(
            task,
            state=checkpoint.begin(path, task.models.values(), self.device, self.warn),
            save=lambda state: checkpoint.save(path, state),
            watch=lambda progress: self.watch(f"{job.name} seed {job.seed}", progress),
        ).train()
        for role, model in frozen.items():
            if teachers.fingerprint(model.model) != model.record.sha256:
                raise RuntimeError(f"the frozen {role} changed while it taught; its sha256 no longer fits")
        return trained

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
        parameters, macs = size.count(trained.answer, self.data.shape)
        chosen = {name: split for name, split in self._splits.items() if name in splits}
        taught = {"val": teacher.val_NC, "test": teacher.test_NC}
        said = {
            name: [evaluate.split_logits(part, split, self.data, precision) for part in trained.parts]
            for name, split in chosen.items()
        }
        answers = {name: combined(logits, job.plan.combine) for name, logits in said.items()}
        scores: dict[str, float] = {}
        for name, logits_NC in answers.items():
            found = classification.scores(logits_NC, chosen[name].labels, taught[name])
            scores |= {f"{name}/{metric}": value for metric, value in found.items()}
        wrong = evaluate.not_finite(trained.answer, answers)
        if wrong or not all(map(math.isfinite, scores.values())):
            raise Diverged(f"after its last epoch {wrong or 'a score is not finite'}")
        cost = Cost(
            train_seconds=trained.seconds,
            cpu_seconds=trained.cpu_seconds,
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
        )
        if final:
            state = {k: v.detach().cpu().contiguous().clone() for k, v in trained.answer.state_dict().items()}
            write_atomically(self.runs / "students" / f"{job.key}.safetensors", safetensors(state))
        made = base.provenance
        if (backend := scan.backend_in_use(trained.answer)) is not None:
            made = {**made, "scan": backend}
        steps, exits = self._anytime(job, trained, said, taught)
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

    def _anytime(
        self, job: Job, trained: Trained, said: prefixes.Logits, taught: Mapping[str, Tensor]
    ) -> tuple[list[Prefix], list[Exit]]:
        """Prefixes and exits of an answer of several roles; none of a single one, nor where a split is left out."""
        if len(trained.parts) == 1 or len(said) < len(self._splits):
            return [], []
        labels = {name: split.labels for name, split in self._splits.items()}
        sizes = [size.count(part, self.data.shape) for part in trained.parts]
        steps = prefixes.prefixes(job.plan.answer, sizes, said, labels, taught, job.plan.combine)
        return steps, prefixes.exits([macs for _, macs in sizes], said, labels, job.plan.combine)

    @property
    def _splits(self) -> dict[str, Split]:
        """What answers are evaluated on."""
        return {"val": self.data.val, "test": self.data.test}

    def _latency(self, model: nn.Module, batch: int) -> float:
        """0 where it is not measured, or the batch does not fit into memory: that is no fault of the training."""
        if not self.timed:
            return 0.0
        try:
            x = torch.zeros(batch, *self.data.shape, device=self.device).contiguous(memory_format=torch.channels_last)
            return evaluate.latency_ms(model, x)
        except (MemoryError, RuntimeError) as error:
            if not memory.out_of_memory(error):
                raise
            return 0.0


def on_device(loaded: DataSet, device: torch.device) -> DataSet:
    """The same set with its uint8 images and labels on the device."""

    def move(split: Split) -> Split:
        return Split(split.images.to(device), split.labels.to(device))

    return dataclasses.replace(loaded, train=move(loaded.train), val=move(loaded.val), test=move(loaded.test))
