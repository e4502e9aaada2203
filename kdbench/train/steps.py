"""The optimiser steps of a stage: a batch, what everybody says of it, the losses, the gradients, the update."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from kdbench.batch import Batch
from kdbench.data.batches import mixed, stream
from kdbench.data.mixtures import targets as targets_of
from kdbench.method import Refusal
from kdbench.streams import derive, seeded
from kdbench.train.frozen import say
from kdbench.train.interrupt import Interrupt
from kdbench.train.recipe import autocast, rate_factor, set_rate
from kdbench.train.stage import StageRun, restore, states_of
from kdbench.train.state import Diverged, Training
from kdbench.train.surveys import Surveyed


class Stepper:
    """Takes steps; where a stage stands is noted in its `StageRun`."""

    def __init__(
        self, training: Training, precision: str, surveys: Mapping[str, Surveyed], interrupt: Interrupt
    ) -> None:
        self.training, self.precision, self.surveys, self.interrupt = training, precision, surveys, interrupt
        self.needs = training.method.needs()
        self.device = training.data.train.device

    def advance(self, run: StageRun, count: int) -> int:
        """The next `count` optimiser steps, all of one epoch, or fewer where somebody asks to stop; the images seen."""
        training, recipe, length, epoch = self.training, self.training.recipe, run.length, run.epoch
        assert run.indices is not None
        for learner in run.learners.values():
            learner.model.train()
            learner.heads.train()
        number = 0
        step = slice(run.step * length.accumulate, (run.step + count) * length.accumulate)
        batches = run.indices[: len(run.indices) // length.batch * length.batch].split(length.batch)[step]
        key = (training.seed, run.first_epoch + epoch)
        for voice in run.frozen.values():
            if not voice.ready(batches, step.start, key, lambda: self.interrupt.asked):
                return 0
        pixels: Any = stream(run.source, batches, recipe, key, self.needs.views)
        rng = torch.Generator(self.device).manual_seed(derive(training.seed, "method", run.number, epoch))
        # One generator for dropout and the like, reseeded each epoch: a resumed epoch repeats itself exactly.
        with seeded(training.seed, "dropout", run.number, epoch), contextlib.closing(pixels):
            if run.generators:
                restore(rng, run.generators)
            for number, (index_B, seen) in enumerate(zip(batches, pixels, strict=True), 1):
                batch = self._batch(run, index_B, seen, key, rng, step.start + number - 1)
                run.add(self._step(batch, run))
                if number % length.accumulate:
                    continue
                self._update(run)
                run.advance()
                if self.interrupt.asked:
                    break
            run.generators = states_of(rng)
        if run.epoch != epoch:
            run.indices, run.generators = None, []
        return number * length.batch

    def _batch(
        self,
        run: StageRun,
        index_B: Tensor,
        seen: list[Tensor],
        key: tuple[int, int],
        rng: torch.Generator,
        number: int,
    ) -> Batch:
        """What the learners see, after the recipe's mixing and the method's."""
        data, method, recipe = self.training.data, self.training.method, self.training.recipe
        targets = targets_of(run.source, data.task, index_B)
        (x, *views), targets = mixed(seen, targets, index_B, recipe, key)
        batch = Batch(
            x,
            targets,
            index_B,
            data.task,
            epoch=run.epoch,
            epochs=run.length.epochs,
            rng=rng,
            stage=run.number,
            views=tuple(views),
            number=number,
            surveys={name: found.of(index_B, recipe.augment, key) for name, found in self.surveys.items()},
        )
        batch = method.batch(batch)
        if self.needs.hard_labels and not batch.targets.hard:
            name = type(method).__name__
            raise Refusal(f"{name} needs hard labels, but the targets of its batches are mixed or smoothed")
        return batch

    def _update(self, run: StageRun) -> None:
        recipe = self.training.recipe
        factor = rate_factor(recipe.schedule, run.done, run.length.steps, recipe.length)
        for learner in run.learners.values():
            if recipe.clip_norm:
                nn.utils.clip_grad_norm_(learner.parameters(), recipe.clip_norm)
            set_rate(learner.optimizer, factor)
            learner.optimizer.step()
            learner.optimizer.zero_grad(set_to_none=True)

    def means(self, run: StageRun) -> dict[str, float]:
        """The metrics since the last report. Raises Diverged."""
        means = run.means()
        wrong = [name for name, value in means.items() if not abs(value) < float("inf")]
        if wrong:
            where = f"epoch {run.report} of {run.length.reports}"
            if self.training.recipe.steps is not None:
                where = f"the steps up to {run.done} of {run.length.steps}"
            raise Diverged(f"{wrong[0]} is not finite in {where}, stage {run.number + 1}")
        return means

    def _step(self, batch: Batch, run: StageRun) -> dict[str, Tensor]:
        """Forward and backward of every role; the terms by curve name, on the device."""
        stage, learners = run.stage, run.learners
        with autocast(self.precision, self.device):
            said = {role: teacher(batch) for role, teacher in run.frozen.items()}
            outs = {role: say(learner.forward, batch) for role, learner in learners.items()}
            said |= {role: out.detach() for role, out in outs.items()}
            terms = {
                role: self.training.method.loss(outs[role], {t: said[t] for t in teachers}, batch, learners[role].heads)
                for role, teachers in stage.learners.items()
            }
        totals = {role: torch.stack([value.float() for value in named.values()]).sum() for role, named in terms.items()}
        total = torch.stack(list(totals.values())).sum()
        (total / run.length.accumulate if run.length.accumulate > 1 else total).backward()
        metrics: dict[str, Tensor] = {}
        for role, named in terms.items():
            alone = list(stage.learners) == [role] == list(self.training.plan.answer)
            prefix = "train/" if alone else f"train/{role}/"
            metrics[prefix + "loss"] = totals[role].detach()
            metrics |= {prefix + name: value.detach().float() for name, value in named.items()}
            running = batch.task.running(outs[role].rows.detach(), batch.targets)
            metrics |= {prefix + name: value for name, value in running.items()}
        return metrics
