"""Is the floor's learning rate converged? The student without a teacher at multiples of the recipe's rate.

Trained like trials of `tune`: on seeds that the suite does not use, looked at on the validation split alone; records
lie in `runs/recipe/` and are not trained twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean

from kdbench.run import runner
from kdbench.run.opened import Opened
from kdbench.run.store import Store
from kdbench.suite.job import Job, variant
from kdbench.suite.rates import Floor, hash_of
from kdbench.tasks import Metric

FACTORS = (0.5, 1.0, 2.0, 4.0)
RATE = "recipe.optimizer.lr"


def seeds_of(opened: Opened) -> tuple[int, ...]:
    """Those of the suite's `tune`, or two that the suite does not use."""
    file = opened.suite.file
    return file.tune.seeds if file.tune else (max(file.seeds) + 1000, max(file.seeds) + 1001)


def sweep(
    opened: Opened,
    label: str,
    metric: Metric,
    factors: Sequence[float] = FACTORS,
    told: Callable[[Job, str], None] = lambda job, verdict: None,
) -> list[Floor]:
    """The floor `label` of every pair at each factor of its recipe's rate; `metric` is read on validation."""
    name = f"val/{metric.name}"
    suite, bench = opened.suite, opened.bench
    store = Store(bench.runs / "recipe", suite.file.name, bench.warn)
    floors = []
    for pair in dict.fromkeys(pair for pair, cell in suite.cells if cell == label):
        rate, scores = variant(suite, pair, label, {}).recipe.optimizer.lr, {}
        for factor in dict.fromkeys((1.0, *factors)):
            values = []
            for seed in seeds_of(opened):
                job = variant(suite, pair, label, {RATE: rate * factor}, bench.data.fingerprint, seed=seed)
                result, _ = runner.do(job, bench, store, ("val",))
                if result.status == "ok":
                    values.append(result.scores[name])
                told(
                    job,
                    f"rate {rate * factor:g}: {metric.number(values[-1])}" if result.status == "ok" else result.status,
                )
            if values:
                scores[f"{factor:g}"] = fmean(values)
        floors.append(Floor(pair, hash_of(suite, pair, label), name, rate, seeds_of(opened), scores, metric.better))
    return floors
