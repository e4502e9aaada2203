"""`kdbench tune`: see kdbench/tune/session.py."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from kdbench.cli.options import LEADERBOARD, RUNS, DataRoot, NoPlugins, Only, Runs, SuitePath, console


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
    workers: Annotated[int, typer.Option("--workers", min=1, help="Processes here; other machines may join.")] = 1,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda, or a list for workers: cuda:0,cuda:1.")] = (
        "auto"
    ),
    data_root: DataRoot = None,
    results: Annotated[
        Path, typer.Option("--results", help="Folder of the boards; winners go to its tuned/<suite>/.", metavar="DIR")
    ] = LEADERBOARD,
    runs: Runs = RUNS,
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
    from kdbench.suite.cell import parse_extra
    from kdbench.train.devices import pick_devices

    extra = parse_extra(trials) if trials is not None else 0
    if not suite.is_file():
        from kdbench.suite.load import load

        load(suite)
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

    order = Order(Setting(suite, data_root, results, runs, tuple(only or ())), url, extra)
    devices = pick_devices(device) if workers > 1 else (device,)
    sys.exit(session.run(order, device, workers, devices, console(stderr=True), console()))
