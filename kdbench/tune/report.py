"""Studies -> pages: history, importance, slices and parallel coordinates of each, and expected best of n per pair.

`leaderboard/tuned/<suite>/README.md` lists them; the same trials give the same bytes.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import optuna

from kdbench import files
from kdbench.board.palette import palette
from kdbench.board.text import code, grid, prose
from kdbench.errors import UserError
from kdbench.suite import winners
from kdbench.suite.cell import Cell, rises, tune_of
from kdbench.suite.fields import Tune
from kdbench.suite.load import Suite
from kdbench.suite.winners import Winner
from kdbench.tune.best import chosen, complete, winner_of
from kdbench.tune.picture import Point, curves, study_picture
from kdbench.tune.status import look
from kdbench.tune.study import Study

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial


def write(path: Path, url: str, root: Path) -> list[Path]:
    """All pages and pictures of a suite's studies; the index first.

    Raises:
        UserError: there are no studies, or the folder cannot be written.
    """
    suite, studies = look(path, url)
    folder = winners.folder(root, suite.file.name)
    pages: dict[Path, str] = {}
    found: dict[Cell, Winner] = {}
    for cell, study in studies.items():
        winner = winner_of(suite, cell, study, tune_of(suite))
        if winner is None:
            continue
        found[cell] = winner
        base = folder / cell.pair / cell.label
        pages[base.with_name(f"{cell.label}.md")] = page(cell, study, winner)
        pages[base.with_name(f"{cell.label}.svg")] = study_picture(
            cell.name,
            cell.objectives[0],
            points(cell, study),
            importances(cell, study),
            scales(cell),
            rising=cell.rising[0],
        )
    if not found:
        raise UserError(f"{path}: no trial of its studies has finished yet")
    hues = palette(suite.methods, suite.file.floor, suite.file.reference)
    for pair in dict.fromkeys(cell.pair for cell in found):
        rows = {cell.label: winner for cell, winner in found.items() if cell.pair == pair}
        pages[folder / pair / "expected-best.svg"] = curves(
            pair, rows, hues, rising=rises(suite.task, next(iter(rows.values())).metric)
        )
    index_page = folder / "README.md"
    pages = {index_page: index(suite, found)} | pages
    try:
        files.publish(pages)
    except OSError as error:
        raise UserError(f"{folder}: cannot write the pages ({error.strerror}); give --results DIR") from error
    return list(pages)


def points(cell: Cell, study: Study) -> list[Point]:
    """Every trial with a value: its number, value, and the searched fields that counted."""
    found = []
    for trial in complete(study):
        full = {**cell.space.defaults, **chosen(trial)}
        active = {e.key: full.get(e.key) for e in cell.space.entries if cell.space.active(e, chosen(trial))}
        found.append(Point(int(trial.user_attrs["slot"]), trial.values[0], active))
    return found


def scales(cell: Cell) -> dict[str, str]:
    """Searched field -> "log", "linear" or "choices"."""
    return {e.key: "choices" if e.choices else "log" if e.log else "linear" for e in cell.space.entries}


def importances(cell: Cell, study: Study) -> dict[str, float]:
    """Share of the variance that each field explains (fANOVA, Hutter et al. 2014); {} where there are few trials."""
    searched = {entry.key for entry in cell.space.entries}
    trials: list[FrozenTrial] = [trial for trial in complete(study) if set(trial.params) == searched]
    if len(trials) < 4 or len(searched) < 2 or len({trial.values[0] for trial in trials}) < 2:
        return {}
    alone = optuna.create_study(direction=cell.directions[0])
    for trial in trials:
        alone.add_trial(
            optuna.create_trial(params=trial.params, distributions=trial.distributions, value=trial.values[0])
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        evaluator = optuna.importance.FanovaImportanceEvaluator(n_trees=32, seed=0)
        return dict(optuna.importance.get_param_importances(alone, evaluator=evaluator))


# pages ---------------------------------------------------------------------------------------------------------------
def page(cell: Cell, study: Study, winner: Winner) -> str:
    done = [slot for slot in study.table.values() if slot.state == "done"]
    gain = "" if winner.default_value is None else f"; the suite's own: {winner.default_value:.4g}"
    parts = [
        f"# {cell.suite}: {cell.name}",
        f"{winner.metric} {winner.value:.4g}{gain}. {winner.trials} trials ({winner.pruned} pruned, {winner.failed} "
        f"failed), {winner.gpu_seconds:.0f} s of training, sampler {winner.sampler}, {winner.epochs} epochs, tuning "
        f"seeds {', '.join(map(str, winner.seeds))}. The test split was not read.",
        f"![{cell.name}]({cell.label}.svg)",
        "## Chosen",
        _settings(winner.overrides) if winner.overrides else "The suite's own configuration.",
    ]
    if winner.pareto is not None:
        lines = [[*(f"{v:.6g}" for v in one["values"]), _settings(one["overrides"])] for one in winner.pareto]
        columns = [*winner.objectives, "settings"]
        parts += ["## Pareto set", grid(columns, lines, "r" * len(winner.objectives) + "l")]
    lines = []
    for slot in done:
        values = slot.trial.values if slot.verdict == "ok" and slot.trial.values else None
        said = ", ".join(f"{value:.4g}" for value in values) if values else f"{slot.verdict}: {prose(slot.reason)}"
        keys = ", ".join(slot.trial.user_attrs.get("outcome", {}).get("seconds", {}))
        lines.append([str(slot.number + 1), said, _settings(slot.trial.user_attrs.get("overrides", {})), keys])
    parts += ["## Trials", grid(["trial", ", ".join(cell.objectives), "settings", "job"], lines, "rrll")]
    return "\n\n".join(parts) + "\n"


def _settings(overrides: Mapping[str, object]) -> str:
    return ", ".join(code(f"{key}={value}") for key, value in overrides.items()) or "the suite's own"


def index(suite: Suite, found: Mapping[Cell, Winner]) -> str:
    tune: Tune = tune_of(suite)
    parts = [
        f"# Tuning of {suite.file.name}",
        f"Written by `kdbench tune --report`. Every method had the same budget ({_budget(tune)}) on the validation "
        "split; the suite's own configuration is the first trial of each. The curves show the best value to be "
        "expected of *n* of these trials, drawn without replacement: a steep one needs tuning, a flat one does not. "
        "Where the sampler learns from earlier trials, fewer of them would have found less.",
    ]
    for pair in dict.fromkeys(cell.pair for cell in found):
        rows = [(cell, winner) for cell, winner in found.items() if cell.pair == pair]
        metric = rows[0][1].metric
        lines = [_line(cell, winner) for cell, winner in rows]
        columns = ["method", "trials", f"own {metric}", "best", "expected of 4", "training s", "chosen"]
        parts += [f"## {pair}", f"![expected best of n trials]({pair}/expected-best.svg)"]
        parts.append(grid(columns, lines, "lrrrrrl"))
    return "\n\n".join(parts) + "\n"


def _line(cell: Cell, winner: Winner) -> Sequence[str]:
    own = "" if winner.default_value is None else f"{winner.default_value:.4g}"
    of_four = winner.expected_best[min(4, len(winner.expected_best)) - 1]
    return [
        f"[{cell.label}]({cell.pair}/{cell.label}.md)",
        str(winner.trials),
        own,
        f"{winner.value:.4g}",
        f"{of_four:.4g}",
        f"{winner.gpu_seconds:.0f}",
        _settings(winner.overrides) if cell.space.entries else "nothing to tune",
    ]


def _budget(tune: Tune) -> str:
    return f"{tune.trials} trials" if tune.budget == "trials" else f"{tune.gpu_seconds:g} s of training"
