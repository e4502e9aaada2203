"""What `kdbench show` and `kdbench doctor` say, as rows of plain values."""

from __future__ import annotations

import contextlib
import importlib.util
import platform
import shutil
from collections.abc import Iterator
from dataclasses import fields
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from kdbench import plugins
from kdbench.result import Result
from kdbench.suite.load import Suite
from kdbench.tasks import Task

Rows = list[dict[str, Any]]


def models(pattern: str | None = None) -> Rows:
    """kdbench's models, installed ones and timm's that match the glob: parameters and MACs at 32x32, 10 classes."""
    import torch

    from kdbench.models import build, own_names, size
    from kdbench.models.taps import available
    from kdbench.plugins import timm_names

    names = [*own_names()]
    if pattern is not None:
        names = [name for name in (*names, *timm_names()) if fnmatchcase(name, pattern)]
    rows: Rows = []
    for name in names:
        try:
            with torch.device("meta"):
                model = build(name, {}, classes=10, channels=3, size=32)
            parameters, macs = size.count(model, (3, 32, 32))
            taps = ", ".join(available(model))
            rows.append({"model": name, "parameters": parameters, "MACs": macs, "taps": taps})
        except Exception as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            rows.append({"model": name, "parameters": 0, "MACs": 0, "taps": f"needs options at 32x32: {reason[:90]}"})
    return rows


def data(root: Path) -> Rows:
    from kdbench.data import found

    return [{"data": name, "state": state} for name, state in found(root).items()]


def tasks() -> Rows:
    """Name, kind of rows, unit, headline, metrics with their directions, and the methods that can do it."""
    rows: Rows = []
    for name in plugins.names("tasks"):
        try:
            task = plugins.plugin_class("tasks", name, Path(), Task)  # type: ignore[type-abstract]
        except LookupError as error:  # of an installed package
            rows.append({"task": name, "kind": "", "unit": "", "headline": "", "metrics": str(error), "methods": ""})
            continue
        unit = next((field.default for field in fields(task) if field.name == "unit"), "")
        metrics = [f"{metric.name} {'↑' if metric.better == 'up' else '↓'}" for metric in task.metrics]
        rows.append(
            {
                "task": name,
                "kind": task.kind,
                "unit": str(unit),
                "headline": task.headline.name,
                "metrics": ", ".join(metrics),
                "methods": ", ".join(_fitting(task)),
            }
        )
    return rows


def _fitting(task: type[Task]) -> Iterator[str]:
    """Methods with their defaults that can do a task; those of installed packages that cannot be made are passed."""
    for name in plugins.method_names():
        with contextlib.suppress(Exception):
            if not task.misfit(plugins.method_class(name, Path())().needs()):
                yield name


def results(suite: Suite, store: Any) -> Rows:
    """Every stored result; `shown` says whether the suite as it is now still asks for it."""
    from kdbench.board.publish import current, current_tuned

    shown = {result.key: "yes, tuned track" for result in current_tuned(suite, store)}
    shown |= {result.key: "yes" for result in current(suite, store)}
    return [
        {
            "pair": result.pair,
            "method": result.method,
            "seed": str(result.seed),
            "status": result.status,
            f"test {suite.task.headline.name}": _reached(result) or result.reason,
            "key": result.key,
            "shown": shown.get(result.key, _why_not(suite, result.seed)),
        }
        for result in sorted(store.results.values(), key=lambda r: (r.pair, r.method, r.seed, r.key))
    ]


def _why_not(suite: Suite, seed: int) -> str:
    """Why a stored result is on no board."""
    outside = seed not in suite.file.seeds
    return f"no: seed {seed} is outside the suite's" if outside else "no: stale"


def _reached(result: Result) -> str:
    value = result.scores.get(f"test/{result.main['name']}")
    return "" if value is None else f"{value:.{result.main['digits']}f}"


def doctor(root: Path) -> Rows:
    """One row for each thing that can be there or not."""
    return [{"part": part, "state": state} for part, state in _parts(root)]


def _parts(root: Path) -> Iterator[tuple[str, str]]:
    import torch

    from kdbench.models.mamba import scan
    from kdbench.train.provenance import device_name, git_state, versions

    yield from versions().items()
    yield "kdbench commit", git_state() or "not a git checkout"
    yield "system", f"{platform.system()} {platform.machine()}"
    yield "cpu", device_name(torch.device("cpu"))
    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            memory = torch.cuda.get_device_properties(number).total_memory / 2**30
            yield f"cuda:{number}", f"{torch.cuda.get_device_name(number)}, {memory:.0f} GiB, bf16 autocast"
    else:
        yield "cuda", "none: runs on the CPU in fp32"
    yield "data root", str(root) + ("" if root.is_dir() else " (does not exist; set KDBENCH_DATA or --data-root)")
    for row in data(root):
        yield f"data {row['data']}", row["state"]
    for kind in ("methods", "models", "data", "tasks"):
        counted = f"{len(plugins.builtin(kind))} of kdbench, {len(plugins.installed_names(kind))} installed"
        yield kind, "; ".join([counted, *(conflict.why for conflict in plugins.conflicts(kind))])
    yield from scan.states()
    compiler = shutil.which("g++") or shutil.which("c++")
    yield "recipe.compile on CPU", "compiler found" if compiler else "no C++ compiler: leave `compile: false`"
    yield "shell completion", "kdbench --install-completion" if importlib.util.find_spec("typer") else "absent"
