"""Is the floor's learning rate converged? The student without a teacher at multiples of the recipe's rate.

Trained like trials of `tune`: on seeds that the suite does not use, looked at on the validation split alone; records
lie in `runs/recipe/` and are not trained twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from kdbench.run import runner
from kdbench.run.opened import Opened
from kdbench.run.store import Store
from kdbench.suite.job import Job, variant
from kdbench.suite.rates import Floor, hash_of
from kdbench.tasks import Metric

FACTORS = (0.5, 1.0, 2.0, 4.0)
RATE = "recipe.optimizer.lr"


SEEDS = 3


def seeds_of(opened: Opened, count: int = SEEDS) -> tuple[int, ...]:
    """The first that neither the suite nor its tuning uses."""
    file = opened.suite.file
    used = {*file.seeds, *(file.tune.seeds if file.tune else ())}
    return tuple(seed for seed in range(1000, 1000 + count + len(used)) if seed not in used)[:count]


def sweep(
    opened: Opened,
    label: str,
    metric: Metric,
    factors: Sequence[float] = FACTORS,
    told: Callable[[Job, str], None] = lambda job, verdict: None,
    seeds: int = SEEDS,
) -> list[Floor]:
    """The floor `label` of every pair at each factor of its recipe's rate; `metric` is read on validation."""
    name = f"val/{metric.name}"
    suite, bench = opened.suite, opened.bench
    store = Store(bench.runs / "recipe", suite.file.name, bench.warn)
    floors, chosen = [], seeds_of(opened, seeds)
    for pair in dict.fromkeys(pair for pair, cell in suite.cells if cell == label):
        rate, scores = variant(suite, pair, label, {}).recipe.optimizer.lr, {}
        for factor in dict.fromkeys((1.0, *factors)):
            values = []
            for seed in chosen:
                job = variant(suite, pair, label, {RATE: rate * factor}, bench.data.fingerprint, seed=seed)
                result, _ = runner.do(job, bench, store, ("val",))
                said: str = result.status
                if result.status == "ok":
                    values.append(result.scores[name])
                    said = metric.number(values[-1])
                told(job, f"rate {rate * factor:g}: {said}")
            if len(values) == len(chosen):
                scores[f"{factor:g}"] = tuple(values)
        if "1" in scores:
            floors.append(Floor(pair, hash_of(suite, pair, label), name, rate, chosen, scores, metric.better))
    return floors
