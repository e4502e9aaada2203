"""`kdbench tune`: see kdbench/tune/session.py."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from kdbench.cli.options import (
    AUTO,
    LEADERBOARD,
    RUNS,
    CacheGb,
    DataRoot,
    NoPlugins,
    Only,
    Runs,
    SuitePath,
    Workers,
    console,
    hired,
)
from kdbench.cli.team import Elsewhere, ExecutorOf, GpusPerJob, RayAddress, SlurmOptions, Where
from kdbench.run.opened import CACHE_GB


def tune(
    suite: SuitePath,
    only: Only = None,
    trials: Annotated[
        str | None,
        typer.Option("--trials", metavar="+N", help="So many more than the suite's, for every method alike."),
    ] = None,
    storage: Annotated[
        str | None,
        typer.Option(
            "--storage",
            metavar="URL",
            envvar="KDBENCH_STORAGE",
            help="sqlite:///FILE, journal:FILE, postgresql://..., mysql://... or grpc://HOST:PORT; default: in --runs.",
        ),
    ] = None,
    workers: Workers = "auto",  # type: ignore[assignment]
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda, or a list for workers: cuda:0,cuda:1.")] = (
        "auto"
    ),
    data_root: DataRoot = None,
    results: Annotated[
        Path, typer.Option("--results", help="Folder of the boards; winners go to its tuned/<suite>/.", metavar="DIR")
    ] = LEADERBOARD,
    runs: Runs = RUNS,
    executor: ExecutorOf = Where.local,
    ray_address: RayAddress = None,
    gpus_per_job: GpusPerJob = None,
    slurm: SlurmOptions = None,
    cache_gb: CacheGb = CACHE_GB,
    no_plugins: NoPlugins = False,
    status: Annotated[bool, typer.Option("--status", help="Show the studies, and stop.")] = False,
    report: Annotated[bool, typer.Option("--report", help="Write pages and pictures of the studies, and stop.")] = (
        False
    ),
    as_json: Annotated[bool, typer.Option("--json", help="With --status: machine-readable output on stdout.")] = False,
) -> None:
    """Search every method's knobs with the same budget, on the validation split; continue where an earlier run stopped.

    The suite's own configuration is the first trial. The same command in several processes or on several machines,
    with the same --storage, shares the work. Then: `kdbench run SUITE --track tuned`.
    """
    from kdbench.errors import UserError
    from kdbench.run.opened import Setting
    from kdbench.suite.cell import parse_extra, tune_of
    from kdbench.suite.load import load

    extra = parse_extra(trials) if trials is not None else 0
    loaded = load(suite)
    from kdbench.tune import status as studies
    from kdbench.tune import storage as storages

    url = storage or storages.default_url(runs)
    if status:
        studies.status(suite, url, as_json, console())
        return
    if report:
        from kdbench.tune import report as tune_report

        for path in tune_report.write(suite, url, results):
            typer.echo(str(path))
        return
    if as_json:
        raise UserError("--json: goes with --status")
    from kdbench.tune import session
    from kdbench.tune.order import Order

    budget = tune_of(loaded).trials + extra
    setting = Setting(suite, data_root, results, runs, tuple(only or ()), cache_gb=cache_gb)
    screen = console(stderr=True)
    elsewhere = Elsewhere(executor, ray_address, gpus_per_job, slurm).executor(setting, device)
    if elsewhere is not None:
        from kdbench.tune.elsewhere import meeting_place

        if workers < 1:
            raise UserError(f"--executor {executor.value}: expects how many tune at a time: --workers N")
        order = Order(setting, meeting_place(url, executor.value), extra)
        sys.exit(session.run(order, device, workers, (), screen, console(), elsewhere))
    order = Order(setting, url, extra)
    team = hired(workers if workers == AUTO or workers > 1 else 0, device, None, len(loaded.cells) * budget)
    if team.why:
        screen.print(team.why, markup=False, highlight=False, soft_wrap=True)
    sys.exit(session.run(order, device, team.workers, team.devices, screen, console()))
