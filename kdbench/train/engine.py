"""The only training loop. It names no method.

A plan's stages are trained in turn. In a stage every learner is one model with its heads and its optimiser; a role
that teaches without learning is in eval mode under no_grad. Metrics accumulate on the device and are read once an
epoch, so that a step never waits for the host.
"""

from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from kdbench.batch import Batch, Probe, Profile
from kdbench.data.batches import mixed, stream
from kdbench.method import Refusal, Stage
from kdbench.models.taps import Tapped, profile
from kdbench.streams import derive, draw, order, seeded
from kdbench.train import evaluate
from kdbench.train.frozen import Live, Stored, exact, say
from kdbench.train.recipe import autocast, make_optimizer, precision_on, rate_factor, set_rate
from kdbench.train.state import Diverged, Progress, State, Sum, Trained, Training


@dataclass
class Learner:
    """One role while it learns."""

    model: nn.Module
    heads: nn.Module
    optimizer: torch.optim.Optimizer
    forward: Tapped

    def parameters(self) -> list[nn.Parameter]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]


class Engine:
    """Trains one task. `save` is called with the state after every epoch, `watch` with the progress."""

    def __init__(
        self,
        training: Training,
        *,
        state: State | None = None,
        save: Callable[[State], None] = lambda state: None,
        watch: Callable[[Progress], None] = lambda progress: None,
    ) -> None:
        self.training, self.save, self.watch = training, save, watch
        self.needs = training.method.needs()
        self.models = dict(training.models)
        self.heads: dict[str, nn.Module] = {}
        self.trainable: dict[str, list[nn.Parameter]] = {}  # of each learner's model and heads
        self.known: dict[str, Tensor] = {}  # answers on the training split of roles that do not learn now
        self.validated: dict[str, Tensor] = {}  # answers on the validation split, of roles that do not learn now
        self.state = state or State()
        self.device = training.data.train.device
        self.precision = precision_on(training.recipe.precision, self.device)
        self.examples = len(training.data.train.labels)

    def train(self) -> Trained:
        """Train all stages, from `state` on.

        Raises:
            Diverged: a loss became non-finite.
            Refusal: the method cannot work on this problem.
        """
        plan, resumed = self.training.plan, self.state.tensors
        for number, stage in enumerate(plan.stages):
            learners = self._learners(number, stage, resumed)
            if number >= self.state.stage:
                self._stage(number, stage, learners)
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
            images=self.state.images,
            epochs=sum(self._epochs(stage) for stage in plan.stages),
            learner_parameters=sum(_size(self.models[role]) for role in plan.learners),
            head_parameters=sum(self._trained_in(heads) for heads in self.heads.values()),
            notes=tuple(self.state.notes),
        )

    # stages ----------------------------------------------------------------------------------------------------------
    def _trained_in(self, heads: nn.Module) -> int:
        trained = {id(p) for parameters in self.trainable.values() for p in parameters}
        return sum(p.numel() for p in heads.parameters() if id(p) in trained)

    def _epochs(self, stage: Stage) -> int:
        return max(1, round(stage.share * self.training.recipe.epochs))

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
                model = training.method.prepare(self.models[role], role, {t: self.models[t] for t in teachers})
                self.models[role] = model.to(self.device)
        learners = {}
        for role, teachers in stage.learners.items():
            if role not in self.heads:
                with seeded(training.seed, "heads", role):
                    heads = training.method.heads(
                        self._profile(role, self.needs.learner),
                        {t: self._profile(t, self.needs.teacher, t not in stage.learners) for t in teachers},
                    ).to(self.device)
                self.heads[role] = heads
                self.trainable[role] = [
                    p for module in (self.models[role], heads) for p in module.parameters() if p.requires_grad
                ]
            model, heads = self.models[role], self.heads[role]
            model.to(memory_format=torch.channels_last)  # in place: a third faster convolutions, on CPU too
            learners[role] = Learner(
                model, heads, make_optimizer((model, heads), training.recipe.optimizer), self._tapped(role, stage)
            )
        for role, learner in learners.items():
            if role in resumed.get("models", {}):
                learner.model.load_state_dict(resumed["models"][role])
                learner.heads.load_state_dict(resumed["heads"][role])
                if number == self.state.stage and role in resumed["optimizers"]:
                    learner.optimizer.load_state_dict(resumed["optimizers"][role])
        return learners

    def _profile(self, role: str, names: tuple[str, ...], frozen: bool = False) -> Profile:
        data = self.training.data
        found = profile(
            self.models[role],
            role,
            names,
            classes=data.classes,
            examples=self.examples,
            input_shape=data.signature,
        )
        rows_NC = data.task.rows(self._over_training(role)) if frozen and self.needs.probe else None
        return replace(found, rows_NC=rows_NC, answers=len(self.training.plan.answer))

    def _over_training(self, role: str) -> Tensor:
        """What a role that does not learn now answers on the training split (N, ...), unaugmented; made once."""
        if role not in self.known:
            self.known[role] = evaluate.split_answers(self.models[role], self.training.data.train, self.precision)
        return self.known[role]

    def _frozen(self, stage: Stage) -> dict[str, Live | Stored]:
        """The roles that teach in a stage without learning in it."""
        roles = dict.fromkeys(t for ts in stage.learners.values() for t in ts if t not in stage.learners)
        for role in roles:
            self.models[role].requires_grad_(False).eval()
        if exact(self.training.method, self.training.recipe):
            return {role: Stored(role, self._over_training(role)) for role in roles}
        return {role: Live(self._tapped(role, stage)) for role in roles}

    def _tapped(self, role: str, stage: Stage) -> Tapped:
        teaches = any(role in teachers for teachers in stage.learners.values())
        names = (*(self.needs.learner if role in stage.learners else ()), *(self.needs.teacher if teaches else ()))
        return Tapped(self.models[role], role, tuple(dict.fromkeys(names)), compile=self.training.recipe.compile)

    def _stage(self, number: int, stage: Stage, learners: dict[str, Learner]) -> None:
        with self._timed():
            frozen = self._frozen(stage)
        epochs, last = self._epochs(stage), number == len(self.training.plan.stages) - 1
        for epoch in range(self.state.epoch if number == self.state.stage else 0, epochs):
            before, images = self.state.seconds, self.state.images
            with self._timed():
                metrics = self._epoch(number, epoch, epochs, stage, learners, frozen)
            if (epoch + 1) % self.training.recipe.validate_every == 0 or epoch + 1 == epochs:
                metrics |= self._validate(stage, last)
            if epoch + 1 == epochs and self.needs.probe:
                metrics |= self._review(epoch, epochs, learners)
            for name, value in metrics.items():
                curve = self.state.curves.setdefault(name, [])
                curve += [None] * (sum(map(self._epochs, self.training.plan.stages[:number])) + epoch - len(curve))
                curve.append(value)
            self.state.stage, self.state.epoch = number, epoch + 1
            self.state.tensors = {
                "models": {role: self.models[role].state_dict() for role in self.heads},
                "heads": {role: heads.state_dict() for role, heads in self.heads.items()},
                "optimizers": {role: learner.optimizer.state_dict() for role, learner in learners.items()},
            }
            self.save(self.state)
            speed = (self.state.images - images) / max(self.state.seconds - before, 1e-9)
            self.watch(
                Progress(
                    number,
                    len(self.training.plan.stages),
                    epoch,
                    epochs,
                    speed,
                    metrics,
                    self.state.seconds,
                    self.training.data.task.unit,
                    self.training.data.task.headline,
                )
            )
        for teacher in frozen.values():
            teacher.close()

    @contextlib.contextmanager
    def _timed(self) -> Iterator[None]:
        """What is done within counts as training time."""
        start, cpu = time.perf_counter(), time.process_time()
        yield
        self.state.seconds += time.perf_counter() - start
        self.state.cpu_seconds += time.process_time() - cpu

    # one epoch -------------------------------------------------------------------------------------------------------
    def _indices(self, number: int, epoch: int, epochs: int, learners: dict[str, Learner]) -> Tensor:
        """The examples of an epoch in order: a permutation, or a weighted draw where the method samples."""
        seed = self.training.seed
        if self.needs.probe:
            role, learner = next(iter(learners.items()))
            weights_N = self.training.method.sample(self._probe(role, learner, epoch, epochs))
            if weights_N is not None:
                return draw(seed, epoch, weights_N, stage=number)
        return order(seed, epoch, self.examples, stage=number, device=self.device)

    def _probe(self, role: str, learner: Learner, epoch: int, epochs: int) -> Probe:
        data = self.training.data
        rows_NC = data.task.rows(evaluate.split_answers(learner.model, data.train, self.precision))
        return Probe(rows_NC, data.train.labels, epoch, epochs, role, learner.heads)

    def _review(self, epoch: int, epochs: int, learners: dict[str, Learner]) -> dict[str, float]:
        """What the method says about learners whose stage is over: values for the curves; sentences are kept."""
        values: dict[str, float] = {}
        for role, learner in learners.items():
            found = self.training.method.review(self._probe(role, learner, epoch, epochs))
            values |= {f"train/{role}/{name}": value for name, value in found.values.items()}
            self.state.notes += found.notes
        return values

    def _epoch(
        self,
        number: int,
        epoch: int,
        epochs: int,
        stage: Stage,
        learners: dict[str, Learner],
        frozen: dict[str, Live | Stored],
    ) -> dict[str, float]:
        training, recipe, data = self.training, self.training.recipe, self.training.data
        size = min(recipe.batch_size, self.examples)
        steps = self.examples // size
        indices = self._indices(number, epoch, epochs, learners)
        for learner in learners.values():
            learner.model.train()
            learner.heads.train()
        rng = torch.Generator(self.device).manual_seed(derive(training.seed, "method", number, epoch))
        sums: dict[str, Tensor] = {}
        # Stages see different augmentations: their epochs are counted on.
        key = (training.seed, epoch + sum(map(self._epochs, training.plan.stages[:number])))
        batches = indices[: steps * size].split(size)
        inputs = stream(training.data.train, batches, recipe, key, self.needs.views)
        # One generator for dropout and the like, reseeded each epoch: a resumed epoch repeats itself exactly.
        with seeded(training.seed, "dropout", number, epoch):
            for step, (index_B, seen) in enumerate(zip(batches, inputs, strict=True)):
                targets = data.task.targets(data.train.labels[index_B])
                (x, *views), targets = mixed(seen, targets, index_B, recipe, key)
                batch = Batch(x, targets, index_B, data.task, epoch, epochs, rng, number, tuple(views))
                batch = training.method.batch(batch)
                if self.needs.hard_labels and not batch.targets.hard:
                    name = type(training.method).__name__
                    raise Refusal(f"{name} needs hard labels, but the targets of its batches are mixed or smoothed")
                for name, value in self._step(batch, stage, learners, frozen).items():
                    sums[name] = sums[name] + value if name in sums else value
                factor = rate_factor(recipe.schedule, epoch * steps + step, epochs * steps, recipe.epochs)
                for learner in learners.values():
                    if recipe.clip_norm:
                        nn.utils.clip_grad_norm_(learner.parameters(), recipe.clip_norm)
                    set_rate(learner.optimizer, factor)
                    learner.optimizer.step()
                    learner.optimizer.zero_grad(set_to_none=True)
        self.state.images += steps * size
        means = dict(zip(sums, (torch.stack(list(sums.values())) / steps).tolist(), strict=True))  # the only sync
        wrong = [name for name, value in means.items() if not abs(value) < float("inf")]
        if wrong:
            raise Diverged(f"{wrong[0]} is not finite in epoch {epoch + 1} of {epochs}" + f", stage {number + 1}")
        return means

    def _step(
        self, batch: Batch, stage: Stage, learners: dict[str, Learner], frozen: dict[str, Live | Stored]
    ) -> dict[str, Tensor]:
        """Forward and backward of every role; the terms by curve name, on the device."""
        with autocast(self.precision, self.device):
            said = {role: teacher(batch) for role, teacher in frozen.items()}
            outs = {role: say(learner.forward, batch) for role, learner in learners.items()}
            said |= {role: out.detach() for role, out in outs.items()}
            terms = {
                role: self.training.method.loss(outs[role], {t: said[t] for t in teachers}, batch, self.heads[role])
                for role, teachers in stage.learners.items()
            }
        totals = {role: torch.stack([value.float() for value in named.values()]).sum() for role, named in terms.items()}
        torch.stack(list(totals.values())).sum().backward()
        metrics: dict[str, Tensor] = {}
        for role, named in terms.items():
            alone = list(stage.learners) == [role] == list(self.training.plan.answer)
            prefix = "train/" if alone else f"train/{role}/"
            metrics[prefix + "loss"] = totals[role].detach()
            metrics |= {prefix + name: value.detach().float() for name, value in named.items()}
            running = batch.task.running(outs[role].rows.detach(), batch.targets)
            metrics |= {prefix + name: value for name, value in running.items()}
        return metrics

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
