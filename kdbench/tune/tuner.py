"""`tune` at work: claim a slot, make its job, train it on the validation split, tell the study; over and over.

Every process that is given the same suite and storage does the same; none of them leads. A worker takes the lowest
open slot of all studies, so that all methods have had about as many trials at any moment, whenever it ends.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import fmean
from typing import TYPE_CHECKING

import optuna
import sqlalchemy

from kdbench.board.rows import COSTLIER
from kdbench.errors import UserError
from kdbench.export.deployed import untrained
from kdbench.method import Refusal, changes
from kdbench.models import size
from kdbench.models.make import Sizes
from kdbench.result import Result
from kdbench.run import runner
from kdbench.run.opened import Opened, try_models
from kdbench.run.store import Store
from kdbench.suite.cell import Cell, cell_of, objectives_of, tune_of
from kdbench.suite.job import Job, variant
from kdbench.suite.search_rules import followed
from kdbench.train import checkpoint
from kdbench.train.state import Progress
from kdbench.tune.setup import agreed, away, study_of
from kdbench.tune.slots import Outcome, seconds_of
from kdbench.tune.storage import shown
from kdbench.tune.study import Claim

if TYPE_CHECKING:
    from optuna.storages import BaseStorage

LATENCY = "latency_"  # costs of which 0 means: not measured
POLL = 2.0  # seconds between looks at trials that others hold


@dataclass
class Listener:
    """What tuning tells its watcher."""

    started: Callable[[Cell, int, int], None] = lambda cell, slot, of: None
    epoch: Callable[[str, Progress], None] = lambda what, progress: None
    finished: Callable[[Cell, int, int, Outcome], None] = lambda cell, slot, of, outcome: None
    warn: Callable[[str], None] = lambda sentence: None


@dataclass
class Tuner:
    """All studies of a suite (or of the cells that `--only` chose), in one storage."""

    opened: Opened
    storage: BaseStorage
    url: str
    extra: int = 0
    listener: Listener = field(default_factory=Listener)

    def __post_init__(self) -> None:
        self.suite, self.bench = self.opened.suite, self.opened.bench
        self.tune = tune_of(self.suite)
        self.cells = cells_of(self.opened)
        self.records = Store(self.bench.runs / "trials", self.suite.file.name, self.listener.warn)
        self.studies = {
            cell: study_of(cell, self.tune, self.storage, self.bench.data.fingerprint) for cell in self.cells
        }
        self.bench.timed = any(name.startswith(LATENCY) for cell in self.cells for name in cell.objectives)
        self.sizes = Sizes(self.bench.data, self.suite.folder)
        self.target = self.tune.trials
        self.bounds: dict[Cell, dict[str, float]] = {}

    def prepare(self) -> None:
        """Try every model, make the studies, agree on the budget.

        Raises:
            UserError: a model cannot be made, a study was made on other data, or the storage is away.
        """
        try_models(self.opened.jobs, self.sizes)
        try:
            self.target = agreed(list(self.studies.values()), self.tune.trials + self.extra)
        except (optuna.exceptions.OptunaError, sqlalchemy.exc.SQLAlchemyError, OSError) as error:
            raise away(self.url, error) from error
        for cell, study in self.studies.items():
            print_ = self.storage.get_study_user_attrs(study.id).get("fingerprint")
            if print_ not in (None, self.bench.data.fingerprint):
                raise UserError(
                    f"--storage {shown(self.url)}: the study {cell.study} was made on other data (fingerprint "
                    f"{print_}, here {self.bench.data.fingerprint}); give another --storage"
                )
            study.refresh()

    def work(self) -> None:
        """Do trials until every slot of every study is done, whoever does them.

        Raises:
            KeyboardInterrupt: the user stopped; the trial goes on where its checkpoint is.
            UserError: the storage is away, or files cannot be written.
        """
        try:
            while (claim := self._claim()) is not None:
                self._do(*claim)
        except (optuna.exceptions.StorageInternalError, sqlalchemy.exc.SQLAlchemyError) as error:
            raise away(self.url, error) from error

    def done(self, cell: Cell) -> bool:
        return self.studies[cell].done(self.limit(cell))

    def limit(self, cell: Cell) -> int:
        """Slots that may be begun, as last read."""
        study = self.studies[cell]
        if self.tune.budget == "trials":
            return cell.trials(self.target)
        begun, allowed = len(study.table), float(self.tune.gpu_seconds or 0.0)
        spent = seconds_of(study.trials)
        running = sum(slot.state != "done" for slot in study.table.values())
        expected = spent / max(1, begun - running)
        more = begun == 0 or (running == 0 and spent < allowed) or (spent > 0 and spent + running * expected < allowed)
        return cell.trials(begun + more)

    # who does what ---------------------------------------------------------------------------------------------------
    def _claim(self) -> tuple[Cell, Claim] | None:
        """A slot for this process; waits while others hold the last ones. None: all is done."""
        while True:
            cell = self._lowest()
            if cell is None:
                if all(self.done(cell) for cell in self.cells):
                    return None
                time.sleep(POLL)
                continue
            if claim := self.studies[cell].claim(self.limit(cell)):
                return cell, claim

    def _lowest(self) -> Cell | None:
        """The cell with the lowest open slot, freshly read."""
        known = {cell: self.studies[cell].next_slot(self.limit(cell)) for cell in self.cells}
        while open_ := [cell for cell in self.cells if known[cell] is not None]:
            cell = min(open_, key=lambda cell: known[cell] or 0)
            before = known[cell]
            self.studies[cell].refresh()
            known[cell] = self.studies[cell].next_slot(self.limit(cell))
            if known[cell] == before:
                return cell
        fresh = [cell for cell in self.cells if not self.done(cell)]
        for cell in fresh:
            self.studies[cell].refresh()
        return next((cell for cell in fresh if self.studies[cell].next_slot(self.limit(cell)) is not None), None)

    def _do(self, cell: Cell, claim: Claim) -> None:
        of = self.limit(cell)
        self.listener.started(cell, claim.slot, of)
        with claim.alive():
            try:
                outcome = self.evaluate(cell, claim)
            except KeyboardInterrupt:
                claim.tell(Outcome("interrupted", reason="stopped by the user"))
                raise
        if claim.tell(outcome):
            self.listener.finished(cell, claim.slot, of, outcome)
        else:
            self.listener.warn(f"{cell.name} trial {claim.slot + 1}: another worker has taken it over")

    # one trial -------------------------------------------------------------------------------------------------------
    def evaluate(self, cell: Cell, claim: Claim) -> Outcome:
        """The trial's job for every tuning seed, on the validation split alone."""
        seconds: dict[str, float] = {}
        try:
            jobs = [self.job(cell, claim.overrides, seed) for seed in self.tune.seeds]
            if claim.slot > 0 and (broken := self._broken(cell, jobs[0])):
                return Outcome("infeasible", reason=broken)
        except (UserError, Refusal) as refused:
            return Outcome("failed", reason=str(refused))
        results = []
        for number, job in enumerate(jobs):
            try:
                result = self._train(job, claim if number == 0 else None, seconds)
            except UserError as error:
                if claim.slot == 0:
                    raise  # the suite's own configuration: a mistake of the user
                return Outcome("failed", reason=str(error), seconds=seconds)
            if result.status != "ok":
                verdict = result.status if result.status in ("pruned", "diverged") else "failed"
                return Outcome(verdict, reason=result.reason, seconds=seconds)
            results.append(result)
        values = tuple(fmean(_value(result, name) for result in results) for name in cell.objectives)
        if not all(map(math.isfinite, values)):
            named = ", ".join(name for name, v in zip(cell.objectives, values, strict=True) if not math.isfinite(v))
            return Outcome("failed", reason=f"{named} is not a finite number", seconds=seconds)
        return Outcome("ok", values, seconds=seconds)

    def job(self, cell: Cell, overrides: Mapping[str, object], seed: int) -> Job:
        return variant(
            self.suite,
            cell.pair,
            cell.label,
            overrides,
            self.bench.data.fingerprint,
            seed=seed,
            epochs=self.tune.epochs,
        )

    def _train(self, job: Job, claim: Claim | None, seconds: dict[str, float]) -> Result:
        """The job's record, made now unless there is one; a job that another process trains is awaited."""
        while True:
            self.bench.watch = self._watch(job, claim, seconds)
            try:
                result, _ = runner.do(job, self.bench, self.records, splits=("val",))
            except runner.Busy:
                time.sleep(POLL)
                continue
            except runner.OutOfMemory as error:
                result = runner.failed(job, str(error))
                self.records.write(result)
            except Pruned as pruned:
                result = self._pruned(job, str(pruned))
            if result.cost is not None:
                seconds[job.key] = round(result.cost.train_seconds, 3)
            return result

    def _watch(self, job: Job, claim: Claim | None, seconds: dict[str, float]) -> Callable[[str, Progress], None]:
        """Hears every epoch: reports it to the study, and ends a training that its pruner gives up."""
        title, metric = f"{job.name} seed {job.seed}", objectives_of(self.suite)[0]
        follow = claim is not None and self.tune.pruner != "none" and metric in followed(self.suite.task)

        def watch(what: str, progress: Progress) -> None:
            self.listener.epoch(what, progress)
            if what != title:
                return  # a teacher's
            seconds[job.key] = round(progress.seconds, 3)
            last = progress.stage == progress.stages - 1 and progress.epoch == progress.epochs - 1
            value = progress.metrics.get(metric)
            if not follow or last or value is None or not math.isfinite(value) or claim is None:
                return
            claim.trial.report(value, progress.epoch + 1)
            if claim.trial.should_prune():
                raise Pruned(f"{metric} {value:.4g} after {progress.unit} {progress.epoch + 1} is behind other trials")

        return watch

    def _pruned(self, job: Job, reason: str) -> Result:
        path = checkpoint.path_of(self.bench.runs, job.key)
        state = checkpoint.resume(path, self.bench.device, self.listener.warn)
        result = dataclasses.replace(runner.failed(job, reason), status="pruned", curves=state.curves if state else {})
        self.records.write(result)
        path.unlink(missing_ok=True)
        return result

    def _broken(self, cell: Cell, job: Job) -> str:
        """Which bound a trial breaks before it is trained; "" if none."""
        found = self._costs(job)
        for name, bound in self._bounds(cell).items():
            if found[name] > bound:
                return f"{name} {found[name]:,} exceed the bound of {bound:,.0f}"
        return ""

    def _bounds(self, cell: Cell) -> dict[str, float]:
        """The suite's constraints; else what the plain student costs, or the suite's own configuration if that is more.

        A method could else win by a larger student, or by training longer.
        """
        if cell not in self.bounds:
            own = self.job(cell, {}, self.tune.seeds[0])
            costs = self._costs(own)
            plain: int = self.sizes.of(self.suite.file.pairs[cell.pair].student)[1] or 0
            usual = {
                "macs": max(COSTLIER * plain, costs["macs"]),
                "epochs": max(float(own.recipe.length), costs["epochs"]),
            }
            self.bounds[cell] = {**usual, **self.tune.constraints}
        return self.bounds[cell]

    def _costs(self, job: Job) -> dict[str, int]:
        """Parameters and MACs of what would be deployed, and epochs summed over stages."""
        if changes(job.method, "deploy"):
            sizes = [size.count(untrained(job, self.bench), self.bench.data.shape)]
        else:
            sizes = [self.sizes.of(job.roles[role]) for role in job.plan.answer]
        parameters, macs = sum(one[0] or 0 for one in sizes), sum(one[1] or 0 for one in sizes)
        epochs = sum(max(1, round(stage.share * job.recipe.length)) for stage in job.plan.stages)
        return {"parameters": parameters, "macs": macs, "epochs": epochs}


class Pruned(runner.Stopped):
    """The pruner gave a training up."""


def _value(result: Result, name: str) -> float:
    """A score or a cost; not a number where nobody measured it."""
    if name in result.scores:
        return result.scores[name]
    value = float(getattr(result.cost, name, math.nan))
    return math.nan if name.startswith(LATENCY) and value == 0 else value


def cells_of(opened: Opened) -> list[Cell]:
    """A cell for each (pair, method) of the opened jobs, in the suite's order."""
    names = dict.fromkeys((job.pair, job.label) for job in opened.jobs)
    return [cell_of(opened.suite, pair, label) for pair, label in names]
