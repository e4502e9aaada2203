"""The only training loop. It names no method.

A plan's stages are trained in turn. In a stage every learner is one model with its heads and its optimiser; a role
that teaches without learning is in eval mode under no_grad. Metrics accumulate on the device and are read once a
report (an epoch, or so many steps), so that a step never waits for the host.
"""

from __future__ import annotations

import contextlib
import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from kdbench.batch import Probe, Profile
from kdbench.data.batches import Source
from kdbench.method import Prepared, Rates, Refusal, Stage
from kdbench.models.box import Box
from kdbench.models.taps import Tapped, profile
from kdbench.streams import draw, order, seeded
from kdbench.suite.fields import Augment
from kdbench.train import evaluate, recall
from kdbench.train.choices import Choices
from kdbench.train.clock import timed
from kdbench.train.frozen import Live, Stored, Voice, check_box, exact
from kdbench.train.interrupt import Interrupt
from kdbench.train.recipe import make_optimizer, precision_on
from kdbench.train.stage import Learner, Length, StageRun, length
from kdbench.train.state import Progress, State, Sum, Trained, Training
from kdbench.train.steps import Stepper
from kdbench.train.surveys import Surveyed, survey


class Engine:
    """Trains one task. `watch` hears of every report's progress; `save` is given the state, to keep it.

    It is kept after a report, but at most every `spacing` seconds; at the end of a stage, every
    `recipe.checkpoint_every` steps, and before whatever interrupts the training, in any case.
    """

    def __init__(
        self,
        training: Training,
        *,
        state: State | None = None,
        save: Callable[[State], None] = lambda state: None,
        watch: Callable[[Progress], None] = lambda progress: None,
        spacing: float = 0.0,
    ) -> None:
        self.training, self.save, self.watch, self.spacing = training, save, watch, spacing
        self.saved = -math.inf  # when it was last, on the monotonic clock
        self.saved_at = (-1, -1)  # stage and steps of it
        self.wall = 0.0  # seconds of training in this process
        self.interrupt = Interrupt()
        self.needs = training.method.needs()
        self.models = dict(training.models)
        self.heads: dict[str, nn.Module] = {}
        self.trainable: dict[str, list[nn.Parameter]] = {}  # of each learner's model and heads
        self.rates: dict[nn.Parameter, Rates] = {}  # where the method sets them
        self.surveys: dict[str, Surveyed] = {}
        self.known: dict[str, Tensor] = {}  # answers on the training split of roles that do not learn now
        self.validated: dict[str, Tensor] = {}  # answers on the validation split, of roles that do not learn now
        self.state = state or State()
        self.device = training.data.train.device
        self.precision = precision_on(training.recipe.precision, self.device)
        self.stepper = Stepper(training, self.precision, self.surveys, self.interrupt)
        self.choices = Choices(training.method, training.data.train, training.seed, self._chosen_rows)
        self.sources: list[Source] = []  # of the stages so far

    def train(self) -> Trained:
        """Train all stages, from `state` on.

        Raises:
            Diverged: a loss became non-finite.
            Refusal: the method cannot work on this problem, or a learner is frozen as a whole.
        """
        plan, resumed = self.training.plan, self.state.tensors
        for number, stage in enumerate(plan.stages):
            self.sources.append(self._source(number))
            learners = self._learners(number, stage, resumed)
            if number >= self.state.stage:
                *before, length = (self._length(earlier) for earlier in range(number + 1))
                epochs, reports = sum(one.epochs for one in before), sum(one.reports for one in before)
                with self.interrupt:
                    self._stage(StageRun(number, stage, length, epochs, reports, learners, self.sources[number]))
            for learner in learners.values():
                learner.forward.close()
                learner.model.requires_grad_(False).eval()
                learner.heads.requires_grad_(False).eval()
        parts = self._deployed(plan.answer)
        return Trained(
            answer=parts[0] if len(parts) == 1 else Sum(parts, plan.combine),
            parts=tuple(parts),
            curves=self.state.curves,
            seconds=self.state.seconds,
            cpu_seconds=self.state.cpu_seconds,
            looked_up=self.state.looked_up,
            images=self.state.images,
            epochs=sum(self._length(number).epochs for number in range(len(plan.stages))),
            learner_parameters=sum(_size(self.models[role]) for role in plan.learners),
            head_parameters=sum(self._trained_in(heads) for heads in self.heads.values()),
            notes=tuple(self.state.notes),
            queries=self.choices.queries,
        )

    # stages ----------------------------------------------------------------------------------------------------------
    def _trained_in(self, heads: nn.Module) -> int:
        trained = {id(p) for parameters in self.trainable.values() for p in parameters}
        return sum(p.numel() for p in heads.parameters() if id(p) in trained)

    def _source(self, number: int) -> Source:
        """What a stage is trained on; choosing counts as training, once."""
        state = self.state
        begins = number > state.stage or (number, state.epoch, state.step) == (state.stage, 0, 0)
        with self._timed() if begins else contextlib.nullcontext():
            return self.choices.source(number)

    def _chosen_rows(self, role: str, source: Source) -> Tensor:
        if role not in self.heads:
            raise Refusal(f"the {role} has not learned anything yet, and so cannot choose examples")
        return self.training.data.task.rows(evaluate.split_answers(self.models[role], source, self.precision))

    def _length(self, number: int) -> Length:
        stage = self.training.plan.stages[number]
        return length(self.training.recipe, stage.share, len(self.sources[number]))

    def _learners(self, number: int, stage: Stage, resumed: Mapping[str, Any]) -> dict[str, Learner]:
        """Prepared models with heads and optimisers; on a resume with the states of the checkpoint."""
        training = self.training
        for role, teachers in stage.learners.items():
            self.known.pop(role, None)  # it learns again
            if role in self.heads:  # it learned in an earlier stage and goes on with the same heads
                for parameter in self.trainable[role]:
                    parameter.requires_grad_(True)
                continue
            with seeded(training.seed, "prepare", role):
                made = training.method.prepare(self.models[role], role, {t: self.models[t] for t in teachers})
            self.models[role] = model = self._rated(made)
            if not any(parameter.requires_grad for parameter in model.parameters()):
                raise Refusal(
                    f"the {role} has nothing to learn: all parameters of its {type(model).__name__} are frozen "
                    f"(requires_grad is False); leave some free"
                )
        learners = {}
        for role, teachers in stage.learners.items():
            if role not in self.heads:
                with seeded(training.seed, "heads", role):
                    made = training.method.heads(
                        self._profile(role, self.needs.learner),
                        {t: self._profile(t, self.needs.teacher, t not in stage.learners) for t in teachers},
                    )
                self.heads[role] = heads = self._rated(made)
                self.trainable[role] = [
                    p for module in (self.models[role], heads) for p in module.parameters() if p.requires_grad
                ]
            model, heads = self.models[role], self.heads[role]
            model.to(memory_format=torch.channels_last)  # in place: a third faster convolutions, on CPU too
            optimizer = make_optimizer((model, heads), training.recipe.optimizer, self.rates)
            learners[role] = Learner(model, heads, optimizer, self._tapped(role, stage))
        for role, learner in learners.items():
            if role in resumed.get("models", {}):
                learner.model.load_state_dict(resumed["models"][role])
                learner.heads.load_state_dict(resumed["heads"][role])
                if number == self.state.stage and role in resumed["optimizers"]:
                    learner.optimizer.load_state_dict(resumed["optimizers"][role])
        return learners

    def _rated(self, made: nn.Module | Prepared) -> nn.Module:
        """The module on the device; the rates of its parameters are noted."""
        prepared = Prepared.of(made)
        prepared.model.to(self.device)
        self.rates |= prepared.rates()
        return prepared.model

    def _profile(self, role: str, names: tuple[str, ...], frozen: bool = False) -> Profile:
        data, examples = self.training.data, len(self.sources[-1])
        if isinstance(box := self.models[role], Box):
            check_box(role, self.training.method, self.training.recipe)
            rows_NC = box.rows_NC if self.needs.probe else None
            return Profile(role, box, data.classes, {}, examples, data.shape, rows_NC, len(self.training.plan.answer))
        found = profile(
            self.models[role],
            role,
            names,
            classes=data.classes,
            examples=examples,
            input_shape=data.signature,
            task=data.task,
        )
        rows_NC = data.task.rows(self._over_training(role)) if frozen and self.needs.probe else None
        return replace(found, rows_NC=rows_NC, answers=len(self.training.plan.answer))

    def _over_training(self, role: str) -> Tensor:
        """What a role that does not learn now answers on the training split (N, ...), unaugmented; made once."""
        if role not in self.known:
            self.known[role] = evaluate.split_answers(self.models[role], self.training.data.train, self.precision)
        return self.known[role]

    def _frozen(self, run: StageRun) -> dict[str, Voice]:
        """The roles that teach in a stage without learning in it."""
        stage = run.stage
        roles = dict.fromkeys(t for ts in stage.learners.values() for t in ts if t not in stage.learners)
        for role in roles:
            self.models[role].requires_grad_(False).eval()
        if run.source is not self.training.data.train:  # each is asked once about what was chosen
            asked = {role: evaluate.split_answers(self.models[role], run.source, self.precision) for role in roles}
            return {role: Stored(role, answers) for role, answers in asked.items()}
        return {role: self._teacher(role, stage) for role in roles}

    def _teacher(self, role: str, stage: Stage) -> Voice:
        training, model, method, recipe = self.training, self.models[role], self.training.method, self.training.recipe
        if isinstance(model, Box):
            check_box(role, method, recipe)
            self._note_box(role)
            return Stored(role, model.rows_NC)
        if exact(method, recipe):
            return Stored(role, self._over_training(role))
        live = Live(self._tapped(role, stage), self.needs.draws, training.seed)
        if role in training.shelves and recall.views(method, recipe) is not None:
            shelf = training.shelves[role]
            return recall.Recalled(live, training.data, recipe, self.precision, self.needs.views, shelf)
        return live

    def _note_box(self, role: str) -> None:
        """With augmentation the answers are of the examples, not of what the learner sees: said in the record."""
        note = f"the {role} answers from a file: about each training example, whatever its augmentation"
        if self.training.recipe.augment != Augment() and note not in self.state.notes:
            self.state.notes.append(note)

    def _survey(self) -> None:
        """What the method asks of frozen roles about every example: made once, and counted whenever it was made."""
        training, state = self.training, self.state
        for asked in self.needs.survey if not self.surveys else ():
            if asked.role not in training.plan.frozen:
                raise Refusal(f"survey '{asked.name}' is of the {asked.role}, which is no frozen teacher of this plan")
            model, folder = self.models[asked.role].eval(), training.folders.get(asked.role)
            found = survey(asked, model, training.data, training.recipe.augment, folder)
            self.surveys[asked.name] = found
            if found.kept and (state.stage, state.epoch, state.step) == (0, 0, 0):
                state.seconds += found.seconds[0]
                state.cpu_seconds += found.seconds[1]

    def _tapped(self, role: str, stage: Stage) -> Tapped:
        teaches = any(role in teachers for teachers in stage.learners.values())
        names = (*(self.needs.learner if role in stage.learners else ()), *(self.needs.teacher if teaches else ()))
        return Tapped(self.models[role], role, tuple(dict.fromkeys(names)), compile=self.training.recipe.compile)

    def _stage(self, run: StageRun) -> None:
        state = self.state
        with self._timed(run):
            run.frozen = self._frozen(run)
            self._survey()
        if run.number == state.stage:
            run.resume(state)
        seconds, images = self.wall, state.images
        while not run.finished:
            with self._timed(run):
                if run.indices is None:
                    run.indices = self._indices(run)
                state.images += self.stepper.advance(run, run.steps_ahead(self.training.recipe.checkpoint_every))
                metrics = self.stepper.means(run) if run.reports_now and run.batches else None
            if metrics is None:  # a checkpoint is due, the epoch is over, or somebody has asked to stop
                self._keep(run, due=self.interrupt.asked or self._is_checkpoint(run))
            else:
                speed = (state.images - images) / max(self.wall - seconds, 1e-9)
                self._report(run, metrics, speed)
                seconds, images = self.wall, state.images
            self.interrupt.raise_if_asked()
        for teacher in run.frozen.values():
            teacher.close()

    def _is_checkpoint(self, run: StageRun) -> bool:
        every = self.training.recipe.checkpoint_every
        return every is not None and run.done % every == 0

    def _report(self, run: StageRun, metrics: dict[str, float], speed: float) -> None:
        """Validate, add to the curves, keep the state, tell `watch`."""
        recipe, plan = self.training.recipe, self.training.plan
        if recipe.steps is not None or run.report % recipe.validate_every == 0 or run.finished:
            metrics |= self._validate(run.stage, run.number == len(plan.stages) - 1)
        if (queries := self.choices.queries) is not None:
            metrics["queries"] = float(queries)
        if run.finished and self.needs.probe:
            metrics |= self._review(run)
        for name, value in metrics.items():
            curve = self.state.curves.setdefault(name, [])
            curve += [None] * (run.first_report + run.report - 1 - len(curve))
            curve.append(value)
        self._keep(run, due=run.finished or self.interrupt.asked or self._is_checkpoint(run))
        at, of = (run.report, run.length.reports) if recipe.steps is None else (run.done, run.length.steps)
        task = self.training.data.task
        progress = Progress(
            run.number, len(plan.stages), at - 1, of, speed, metrics, self.state.seconds,
            clock=recipe.unit, unit=task.unit, headline=task.headline,
        )  # fmt: skip
        try:
            self.watch(progress)
        except BaseException:
            self._keep(run, due=True)
            raise

    def _keep(self, run: StageRun, due: bool) -> None:
        """Note where the training stands; save it if that is `due`, or was last done long enough ago."""
        state = self.state
        state.stage, state.epoch, state.step = run.number, run.epoch, run.step
        state.tensors = {
            "models": {role: self.models[role].state_dict() for role in self.heads},
            "heads": {role: heads.state_dict() for role, heads in self.heads.items()},
            "optimizers": {role: learner.optimizer.state_dict() for role, learner in run.learners.items()},
            "inside": run.inside(),
        }
        at = (run.number, run.done)
        if at != self.saved_at and (due or time.monotonic() - self.saved >= self.spacing):
            self.save(state)
            self.saved, self.saved_at = time.monotonic(), at

    @contextlib.contextmanager
    def _timed(self, run: StageRun | None = None) -> Iterator[None]:
        """What is done within counts as training time.

        As if every frozen role ran on every batch: whoever finds answers that others have stored is no cheaper.
        """
        with timed() as counted:
            yield
        self.wall += counted.wall
        for voice in run.frozen.values() if run else ():
            owed, spent = voice.settle()
            counted.add(owed)
            counted.add(spent, -1)
            self.state.looked_up += owed.wall
        self.state.seconds += counted.wall
        self.state.cpu_seconds += counted.cpu

    # epochs ----------------------------------------------------------------------------------------------------------
    def _indices(self, run: StageRun) -> Tensor:
        """The examples of an epoch in order: a permutation, or a weighted draw where the method samples."""
        seed = self.training.seed
        if self.needs.probe:
            role, learner = next(iter(run.learners.items()))
            weights_N = self.training.method.sample(self._probe(role, learner, run.epoch, run.length.epochs))
            if weights_N is not None:
                return draw(seed, run.epoch, weights_N, stage=run.number)
        return order(seed, run.epoch, len(run.source), stage=run.number, device=self.device)

    def _probe(self, role: str, learner: Learner, epoch: int, epochs: int) -> Probe:
        data = self.training.data
        rows_NC = data.task.rows(evaluate.split_answers(learner.model, data.train, self.precision))
        return Probe(rows_NC, data.train.labels, epoch, epochs, role, learner.heads)

    def _review(self, run: StageRun) -> dict[str, float]:
        """What the method says about learners whose stage is over: values for the curves; sentences are kept."""
        values: dict[str, float] = {}
        epochs = run.length.epochs
        for role, learner in run.learners.items():
            found = self.training.method.review(self._probe(role, learner, epochs - 1, epochs))
            values |= {f"train/{role}/{name}": value for name, value in found.values.items()}
            self.state.notes += found.notes
        return values

    # answer ----------------------------------------------------------------------------------------------------------
    def _deployed(self, roles: tuple[str, ...]) -> list[nn.Module]:
        """Copies of the roles' models as they would be deployed, in eval mode."""
        return [
            self.training.method.deploy(copy.deepcopy(self.models[role]), copy.deepcopy(self.heads[role])).eval()
            for role in roles
        ]

    def _validate(self, stage: Stage, last: bool) -> dict[str, float]:
        """What the task follows, of the answer; before the last stage of each learner, or of the answer up to it."""
        data, plan = self.training.data, self.training.plan
        so_far = {role: plan.answer[: number + 1] for number, role in enumerate(plan.answer)}
        groups = {"val/": plan.answer} if last else {f"val/{r}/": so_far.get(r, (r,)) for r in stage.learners}
        metrics: dict[str, float] = {}
        for prefix, roles in groups.items():
            parts = [self._validated(role, stage) for role in roles]
            found = evaluate.scores(parts, data.val, data.task, self.precision, combine=plan.combine)
            metrics |= {prefix + name: found[name] for name in data.task.followed if name in found}
        return metrics

    def _validated(self, role: str, stage: Stage) -> evaluate.Part:
        """A learner as it would be deployed now; of a role that does not learn, its answers, made once."""
        if role in stage.learners:
            self.validated.pop(role, None)
            return self._deployed((role,))[0]
        if role not in self.validated:
            (model,) = self._deployed((role,))
            self.validated[role] = evaluate.split_answers(model, self.training.data.val, self.precision)
        return self.validated[role]


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
