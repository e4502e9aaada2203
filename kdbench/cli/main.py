"""The command line. Imports nothing heavy: every command imports what it needs when it runs.

Exit codes: 0 all done; 1 some jobs failed, diverged or were skipped (listed); 2 the user's input; 130 interrupted.
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kdbench import __version__
from kdbench.cli.answers import answers
from kdbench.cli.export import export
from kdbench.cli.ladder import ladder
from kdbench.cli.options import (
    LEADERBOARD,
    RUNS,
    CacheGb,
    DataRoot,
    Device,
    Devices,
    DryRun,
    Epochs,
    Json,
    NoPlugins,
    Only,
    Results,
    Runs,
    Seeds,
    ShardOf,
    SuitePath,
    TeachersOnly,
    Timeout,
    Track,
    TrackOf,
    Workers,
    console,
    emit,
    parse_seeds,
    refuse_hidden,
    teller,
    warn,
)
from kdbench.cli.recipe import recipe
from kdbench.cli.show import doctor, show
from kdbench.cli.team import Elsewhere, ExecutorOf, GpusPerJob, RayAddress, SlurmOptions, Wanted, Where
from kdbench.cli.tune import tune
from kdbench.errors import UserError, shown
from kdbench.run.opened import CACHE_GB, Setting
from kdbench.run.shard import Shard

if TYPE_CHECKING:
    from kdbench.cli.session import Session

app = typer.Typer(
    name="kdbench",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Compare knowledge distillation methods fairly: declare a suite, run it, publish the leaderboard.",
    epilog="Exit codes: 0 all done, 1 some jobs failed (listed), 2 the input is wrong, 130 interrupted.",
)


def main() -> None:
    """Entry point: user errors are sentences on stderr and exit code 2, never a traceback."""
    try:
        refuse_hidden(sys.argv[1:])
        app(standalone_mode=True)
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except OSError as error:
        if error.filename is None:  # not about a path of the user's
            raise
        print(f"{shown(str(error.filename), 200)}: {error.strerror}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"kdbench {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show version.")] = False,
) -> None: ...


@app.command()
def run(
    suite: SuitePath,
    only: Only = None,
    seeds: Seeds = None,
    device: Device = "auto",
    epochs: Epochs = None,
    data_root: DataRoot = None,
    results: Results = LEADERBOARD,
    runs: Runs = RUNS,
    workers: Workers = "auto",  # type: ignore[assignment]
    devices: Devices = None,
    timeout: Timeout = None,
    cache_gb: CacheGb = CACHE_GB,
    dry_run: DryRun = False,
    track: TrackOf = Track.default,
    shard: ShardOf = None,
    teachers_only: TeachersOnly = False,
    executor: ExecutorOf = Where.local,
    ray_address: RayAddress = None,
    gpus_per_job: GpusPerJob = None,
    slurm: SlurmOptions = None,
    no_plugins: NoPlugins = False,
    as_json: Json = False,
) -> None:
    """Train every job of a suite that has no result yet, then write the board."""
    chosen, listed = tuple(only or ()), parse_seeds(seeds)
    setting = Setting(suite, data_root, results, runs, chosen, listed, epochs, track=track.value, cache_gb=cache_gb)
    wanted = Wanted(device, workers, devices, timeout, Elsewhere(executor, ray_address, gpus_per_job, slurm))
    if teachers_only:
        _teach(setting, Shard.parse(shard), wanted, dry_run, as_json)
    else:
        _run(replace(setting, shard=Shard.parse(shard)), wanted, dry_run, as_json)


@app.command()
def retry(
    suite: SuitePath,
    only: Only = None,
    seeds: Seeds = None,
    device: Device = "auto",
    data_root: DataRoot = None,
    results: Results = LEADERBOARD,
    runs: Runs = RUNS,
    workers: Workers = "auto",  # type: ignore[assignment]
    devices: Devices = None,
    timeout: Timeout = None,
    cache_gb: CacheGb = CACHE_GB,
    dry_run: DryRun = False,
    no_plugins: NoPlugins = False,
    as_json: Json = False,
) -> None:
    """Do the jobs again that failed, diverged or were skipped, and no others."""
    chosen, listed = tuple(only or ()), parse_seeds(seeds)
    setting = Setting(suite, data_root, results, runs, chosen, listed, again=True, cache_gb=cache_gb)
    _run(setting, Wanted(device, workers, devices, timeout), dry_run, as_json)


@app.command()
def status(
    suite: SuitePath,
    results: Results = LEADERBOARD,
    runs: Runs = RUNS,
    no_plugins: NoPlugins = False,
    as_json: Json = False,
) -> None:
    """What is running, what waits, what failed and why."""
    from kdbench.run import upkeep
    from kdbench.run.store import Store
    from kdbench.suite.load import load

    loaded = load(suite)
    rows, total = upkeep.status(loaded, Store(results, loaded.file.name, warn), runs)
    if rows or as_json:
        emit(rows, as_json)
    if not as_json:
        typer.echo(total)


@app.command()
def merge(
    folders: Annotated[
        list[Path] | None, typer.Argument(metavar="DIR...", help="Other runs' --results folders.")
    ] = None,
    results: Results = LEADERBOARD,
    teachers: Annotated[
        list[Path] | None,
        typer.Option("--teachers", metavar="DIR", help="Another run's --runs folder: take its teachers; repeatable."),
    ] = None,
    runs: Runs = RUNS,
) -> None:
    """Join results and teachers from several machines; render boards anew with `kdbench board`."""
    if not folders and not teachers:
        raise UserError("kdbench merge: expects other runs' --results folders, or --teachers with a --runs folder")
    troubles: list[str] = []
    if teachers:
        from kdbench.run import travel

        carried = travel.carry(teachers, runs)
        troubles += [*carried.damaged, *carried.kept]
        typer.echo(f"teachers: {carried.new} new, {carried.same} known, {len(troubles)} left out")
    if folders:
        from kdbench.run import upkeep

        merged = upkeep.merge(folders, results)
        troubles += [*merged.damaged, *merged.conflicts, *merged.taught_otherwise]
        typer.echo(
            f"{merged.new} new, {merged.replaced} finished that had failed here, {merged.same} known, "
            f"{len(merged.conflicts)} in conflict, {len(merged.damaged)} damaged; suites: "
            + ", ".join(sorted(merged.suites))
        )
    for sentence in troubles:
        warn(sentence)
    sys.exit(1 if troubles else 0)


@app.command()
def clean(
    suites: Annotated[list[Path], typer.Argument(metavar="SUITE...", help="Every suite that uses the runs folder.")],
    data_root: DataRoot = None,
    results: Results = LEADERBOARD,
    runs: Runs = RUNS,
    no_plugins: NoPlugins = False,
    dry_run: DryRun = False,
) -> None:
    """Free checkpoints and stored answers that no pending job of these suites needs, drafts and dead leases."""
    from kdbench.run import upkeep

    opened = [Setting(suite, data_root, results, runs).open("cpu", warn) for suite in suites]
    jobs = [job for one in opened for job in one.jobs]
    useless = upkeep.clean(jobs, [one.store for one in opened], runs)
    for path, _ in useless:
        typer.echo(f"{'would remove' if dry_run else 'removed'} {path}")
        if not dry_run:
            path.unlink(missing_ok=True)
    typer.echo(f"{len(useless)} files, {sum(size for _, size in useless) / 1e6:.1f} MB")


@app.command()
def check(suite: SuitePath, no_plugins: NoPlugins = False) -> None:
    """Validate a suite file; imports no torch and needs no data."""
    from kdbench.suite.load import load

    loaded = load(suite)
    for note in loaded.notes:
        warn(note)
    cells, seeds = len(loaded.cells), len(loaded.file.seeds)
    typer.echo(f"{suite}: valid; {cells} cells x {seeds} seeds = {cells * seeds} jobs")


@app.command()
def plan(
    suite: SuitePath,
    only: Only = None,
    seeds: Seeds = None,
    device: Device = "auto",
    epochs: Epochs = None,
    data_root: DataRoot = None,
    results: Results = LEADERBOARD,
    runs: Runs = RUNS,
    cache_gb: CacheGb = CACHE_GB,
    track: TrackOf = Track.default,
    no_plugins: NoPlugins = False,
    as_json: Json = False,
) -> None:
    """Show the expanded jobs: key, roles, parameters, MACs, done or pending, and an estimate of time."""
    from kdbench.cli.session import Session

    chosen, listed = tuple(only or ()), parse_seeds(seeds)
    setting = Setting(suite, data_root, results, runs, chosen, listed, epochs, track=track.value, cache_gb=cache_gb)
    screen = console(stderr=True)
    _print_plan(Session.open(setting.glance(teller(screen)), device, screen), as_json, cost=True)


@app.command()
def board(suite: SuitePath, results: Results = LEADERBOARD, no_plugins: NoPlugins = False) -> None:
    """Render the board again from the stored results; needs no data."""
    from kdbench.board.publish import board_of, publish
    from kdbench.run.store import Store
    from kdbench.suite.load import load

    loaded = load(suite)
    for path in publish(board_of(loaded, Store(results, loaded.file.name, warn)), results):
        typer.echo(str(path))


@app.command()
def schema() -> None:
    """Print the JSON Schema of suite files."""
    from kdbench.suite.schema import schema_text

    typer.echo(schema_text(), nl=False)


app.add_typer(show, name="show")
app.command()(doctor)
app.command()(export)
app.command()(answers)
app.command()(ladder)
app.command()(recipe)
app.command()(tune)


def _run(setting: Setting, wanted: Wanted, dry_run: bool, as_json: bool) -> None:
    """`run` and `retry`: at once where nothing is pending, else in this process or by others."""
    screen = console(stderr=True)
    seen = setting.glance(teller(screen))
    nothing = seen.certain and not seen.pending and not dry_run
    if nothing and not setting.again:
        from kdbench.cli.report import Report
        from kdbench.run.summary import summary

        done = summary(seen.jobs, seen.store)
        sys.exit(Report(seen.suite, seen.jobs, seen.store, setting, done).say(console(), as_json))
    if not nothing:
        pending = len(seen.pending)
        name, jobs = seen.suite.file.name, f"{pending} of {len(seen.jobs)} jobs to do"
        screen.print(f"{name}: {jobs}; loading PyTorch and the data", markup=False, highlight=False, soft_wrap=True)
        from kdbench.cli.session import Session

        team = wanted.team(setting, pending)
        session = Session.open(seen, "cpu" if team.apart else wanted.device, screen)
        if dry_run:
            _print_plan(session, as_json, cost=False)
            return
        if session.jobs:
            if team.why:
                screen.print(team.why, markup=False, highlight=False, soft_wrap=True)
            sys.exit(session.run(console(), as_json, team))
    typer.echo("nothing to retry: no job failed, diverged or was skipped")


def _teach(setting: Setting, shard: Shard | None, wanted: Wanted, dry_run: bool, as_json: bool) -> None:
    """`run --teachers-only`: the frozen roles of all jobs, done or not; or this share of them."""
    from kdbench.cli.session import Session
    from kdbench.run import runner, teaching

    screen = console(stderr=True)
    seen = setting.glance(teller(screen))
    team = wanted.team(setting, len(runner.first_roles(seen.jobs)))
    session = Session.open(seen, "cpu" if team.apart else wanted.device, screen)
    roles = runner.first_roles(session.jobs)
    roles = shard.roles(roles) if shard else roles
    if dry_run:
        here = teaching.kept(roles, setting.runs)
        emit([{"key": r.key, "model": r.model.model, "here": "yes" if r.key in here else "no"} for r in roles], as_json)
        return
    sys.exit(session.teach(roles, as_json, team))


def _print_plan(session: Session, as_json: bool, *, cost: bool) -> None:
    rows, total = session.plan(cost)
    sizes = session.sizes()
    if as_json:
        emit([row | {"sizes": [size for size in sizes if size["pair"] == row["pair"]]} for row in rows], True)
        return
    emit(rows, False)
    typer.echo()
    emit(sizes, False)
    for saving in session.stored():
        typer.echo(str(saving))
    typer.echo(total)
