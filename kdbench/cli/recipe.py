"""`kdbench recipe`: see kdbench/tune/floor.py."""

from __future__ import annotations

from statistics import fmean
from typing import Annotated

import typer

from kdbench.cli.options import LEADERBOARD, RUNS, DataRoot, Device, NoPlugins, Results, Runs, SuitePath, console, emit
from kdbench.errors import UserError

DEFAULT = "0.5,1,2,4"


def recipe(
    suite: SuitePath,
    factors: Annotated[str, typer.Option("--factors", help="Multiples of the recipe's learning rate.")] = DEFAULT,
    seeds: Annotated[int, typer.Option("--seeds", min=1, max=100, help="Trainings at each rate.")] = 3,
    device: Device = "auto",
    data_root: DataRoot = None,
    results: Results = LEADERBOARD,
    runs: Runs = RUNS,
    no_plugins: NoPlugins = False,
) -> None:
    """Train the floor (the student without a teacher) at several learning rates: has the recipe's converged?

    A floor whose rate is too low makes every method look good that takes larger steps. Looks at the validation split
    only, on seeds that the suite does not use; what is found goes to recipes/<suite>.json, and the board says it.
    """
    from kdbench.run.opened import Setting
    from kdbench.suite import rates
    from kdbench.tune.floor import sweep

    try:
        chosen = tuple(float(part) for part in factors.split(","))
    except ValueError:
        chosen = ()
    if not chosen or not all(0 < factor < 1e6 for factor in chosen):
        raise UserError(f"--factors {factors}: expects numbers above 0, such as {DEFAULT}")
    screen = console(stderr=True)
    opened = Setting(suite, data_root, results, runs).open(device, lambda text: screen.print(f"warning: {text}"))
    label = opened.suite.file.floor
    if not any(cell == label for _, cell in opened.suite.cells):
        raise UserError(f"{suite}: has no method '{label}' that could be the floor: add it, or set `floor`")
    metric = opened.suite.task.headline
    floors = sweep(
        opened,
        label,
        metric,
        chosen,
        lambda job, verdict: screen.print(f"{job.name} seed {job.seed}: {verdict}", markup=False, highlight=False),
        seeds,
    )
    rows: list[dict[str, object]] = []
    for floor in floors:
        scores = {f"x{factor}": metric.number(fmean(score)) for factor, score in floor.scores.items()}
        higher = [factor for factor in floor.scores if float(factor) > 1]
        best, verdict = max(higher, key=floor.gain, default=None), "converged"
        if best is not None and floor.gain(best) > metric.gap:
            factor = f"{floor.higher[0]:g}" if floor.higher else best
            gained, error = metric.number(floor.gain(factor)), metric.number(floor.error(factor))
            how = "not" if floor.higher else "perhaps not"
            verdict = f"{how} converged: x{factor} gains {gained} (standard error {error})"
        rows.append({"pair": floor.pair, "rate": f"{floor.rate:g}", **scores, "verdict": verdict})
    emit(rows, False)
    typer.echo(str(rates.write(results, opened.suite.file.name, floors)))
