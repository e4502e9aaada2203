"""The command line. Imports nothing heavy: every command imports what it needs when it runs.

Exit codes: 0 all done; 1 some jobs failed, diverged or were skipped (listed); 2 the user's input; 130 interrupted.
"""

from __future__ import annotations

import json
import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kdbench import __version__
from kdbench.cli_export import export
from kdbench.cli_ladder import ladder
from kdbench.cli_tune import tune
from kdbench.errors import UserError
from kdbench.setting import Setting, parse_duration, pick_devices

if TYPE_CHECKING:
    from rich.console import Console

app = typer.Typer(
    name="kdbench",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Compare knowledge distillation methods fairly: declare a suite, run it, publish the leaderboard.",
    epilog="Exit codes: 0 all done, 1 some jobs failed (listed), 2 the input is wrong, 130 interrupted.",
)

SuitePath = Annotated[Path, typer.Argument(metavar="SUITE", help="The suite file, for example suites/digits.yaml.")]
DataRoot = Annotated[
    Path | None, typer.Option("--data-root", help="Where data sets are; else $KDBENCH_DATA, else ~/.cache/kdbench.")
]
Results = Annotated[
    Path, typer.Option("--results", help="Folder of the boards; records go to its results/<suite>/.", metavar="DIR")
]
Runs = Annotated[Path, typer.Option("--runs", help="Folder of checkpoints, teachers and logs.", metavar="DIR")]
Only = Annotated[
    list[str] | None, typer.Option("--only", metavar="PAIR/METHOD", help="Only these cells; globs; repeatable.")
]
Seeds = Annotated[str | None, typer.Option("--seeds", help="Instead of the suite's: 0,1,2 or 0-4.", metavar="LIST")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, mps.")]
Epochs = Annotated[
    int | None, typer.Option("--epochs", min=1, help="Shorten every training; such results are not comparable.")
]
Workers = Annotated[
    int, typer.Option("--workers", min=0, help="Jobs at a time, each in a process of its own; 0: in this process.")
]
Devices = Annotated[str | None, typer.Option("--devices", metavar="LIST", help="Where workers train: cuda:0,cuda:1.")]
Timeout = Annotated[str | None, typer.Option("--timeout", metavar="TIME", help="Give a job up after 90s, 45m, 2h.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show what would be done, and stop.")]


class Track(StrEnum):
    default = "default"
    tuned = "tuned"


TrackOf = Annotated[
    Track, typer.Option("--track", help="default: published knobs; tuned: those that `kdbench tune` chose.")
]
Json = Annotated[bool, typer.Option("--json", help="Machine-readable output on stdout.")]


def main() -> None:
    """Entry point: user errors are sentences on stderr and exit code 2, never a traceback."""
    try:
        app(standalone_mode=True)
    except UserError as error:
        for line in str(error).splitlines():
            print(line, file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)


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
    results: Results = Path("leaderboard"),
    runs: Runs = Path("runs"),
    workers: Workers = 0,
    devices: Devices = None,
    timeout: Timeout = None,
    dry_run: DryRun = False,
    track: TrackOf = Track.default,
    as_json: Json = False,
) -> None:
    """Train every job of a suite that has no result yet, then write the board."""
    setting = Setting(suite, data_root, results, runs, tuple(only or ()), seeds, epochs, track=track.value)
    _run(setting, device, workers, devices, timeout, dry_run, as_json)


@app.command()
def retry(
    suite: SuitePath,
    only: Only = None,
    seeds: Seeds = None,
    device: Device = "auto",
    data_root: DataRoot = None,
    results: Results = Path("leaderboard"),
    runs: Runs = Path("runs"),
    workers: Workers = 0,
    devices: Devices = None,
    timeout: Timeout = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Do the jobs again that failed, diverged or were skipped, and no others."""
    setting = Setting(suite, data_root, results, runs, tuple(only or ()), seeds, again=True)
    _run(setting, device, workers, devices, timeout, dry_run, as_json)


@app.command()
def status(
    suite: SuitePath, results: Results = Path("leaderboard"), runs: Runs = Path("runs"), as_json: Json = False
) -> None:
    """What is running, what waits, what failed and why."""
    from kdbench import upkeep
    from kdbench.store import Store
    from kdbench.suite import load

    loaded = load(suite)
    rows, total = upkeep.status(loaded, Store(results, loaded.file.name, _warn), runs)
    if rows or as_json:
        _emit(rows, as_json)
    if not as_json:
        typer.echo(total)


@app.command()
def merge(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR...", help="Other runs' --results folders.")],
    results: Results = Path("leaderboard"),
) -> None:
    """Join results from several machines; render boards anew with `kdbench board`."""
    from kdbench import upkeep

    merged = upkeep.merge(folders, results)
    for sentence in (*merged.damaged, *merged.conflicts):
        _warn(sentence)
    typer.echo(
        f"{merged.new} new, {merged.replaced} finished that had failed here, {merged.same} known, "
        f"{len(merged.conflicts)} in conflict, {len(merged.damaged)} damaged; suites: "
        + ", ".join(sorted(merged.suites))
    )
    sys.exit(1 if merged.conflicts or merged.damaged else 0)


@app.command()
def clean(
    suites: Annotated[list[Path], typer.Argument(metavar="SUITE...", help="Every suite that uses the runs folder.")],
    data_root: DataRoot = None,
    results: Results = Path("leaderboard"),
    runs: Runs = Path("runs"),
    dry_run: DryRun = False,
) -> None:
    """Free checkpoints that no pending job of these suites needs, drafts and dead leases."""
    from kdbench import upkeep

    opened = [Setting(suite, data_root, results, runs).open("cpu", _warn) for suite in suites]
    jobs = [job for one in opened for job in one.jobs]
    useless = upkeep.clean(jobs, [one.store for one in opened], runs)
    for path, _ in useless:
        typer.echo(f"{'would remove' if dry_run else 'removed'} {path}")
        if not dry_run:
            path.unlink(missing_ok=True)
    typer.echo(f"{len(useless)} files, {sum(size for _, size in useless) / 1e6:.1f} MB")


@app.command()
def check(suite: SuitePath) -> None:
    """Validate a suite file; imports no torch and needs no data."""
    from kdbench.suite import load

    loaded = load(suite)
    for note in loaded.notes:
        _warn(note)
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
    results: Results = Path("leaderboard"),
    runs: Runs = Path("runs"),
    track: TrackOf = Track.default,
    as_json: Json = False,
) -> None:
    """Show the expanded jobs: key, roles, parameters, MACs, done or pending, and an estimate of time."""
    from kdbench.session import Session

    setting = Setting(suite, data_root, results, runs, tuple(only or ()), seeds, epochs, track=track.value)
    _print_plan(Session.open(setting, device, _console(stderr=True)), as_json, cost=True)


@app.command()
def board(suite: SuitePath, results: Results = Path("leaderboard")) -> None:
    """Render the board again from the stored results; needs no data."""
    from kdbench.publish import board_of, publish
    from kdbench.store import Store
    from kdbench.suite import load

    loaded = load(suite)
    for path in publish(board_of(loaded, Store(results, loaded.file.name, _warn)), results):
        typer.echo(str(path))


@app.command()
def schema() -> None:
    """Print the JSON Schema of suite files."""
    from kdbench.schema import schema_text

    typer.echo(schema_text(), nl=False)


show = typer.Typer(no_args_is_help=True, help="List methods, models, data sets or results.")
app.add_typer(show, name="show")
app.command()(export)
app.command()(ladder)
app.command()(tune)


@show.command("methods")
def show_methods(as_json: Json = False) -> None:
    """Every method with its knobs, defaults and ranges."""
    from kdbench import listing

    _emit(listing.methods(), as_json)


@show.command("models")
def show_models(
    pattern: Annotated[str | None, typer.Argument(help="Also timm's models that match this glob.")] = None,
    as_json: Json = False,
) -> None:
    """kdbench's own models with parameters and MACs (32x32, 10 classes); timm's by glob."""
    from kdbench import listing

    _emit(listing.models(pattern), as_json)


@show.command("data")
def show_data(data_root: DataRoot = None, as_json: Json = False) -> None:
    """Every data set and whether its files are there."""
    from kdbench import listing

    _emit(listing.data(_root_of(data_root)), as_json)


@show.command("results")
def show_results(suite: SuitePath, results: Results = Path("leaderboard"), as_json: Json = False) -> None:
    """Stored results of a suite; stale ones are marked."""
    from kdbench import listing
    from kdbench.store import Store
    from kdbench.suite import load

    loaded = load(suite)
    _emit(listing.results(loaded, Store(results, loaded.file.name, _warn)), as_json)


@app.command()
def doctor(data_root: DataRoot = None, as_json: Json = False) -> None:
    """Versions, devices, data found, optional parts."""
    from kdbench import listing

    _emit(listing.doctor(_root_of(data_root)), as_json)


def _run(
    setting: Setting,
    device: str,
    workers: int,
    devices: str | None,
    timeout: str | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """`run` and `retry`: in this process, or with workers where an option asks for what only they can do."""
    from kdbench.session import Session

    crew = None
    if workers or devices or timeout:
        names = pick_devices(devices or device)
        seconds = parse_duration(timeout) if timeout else None
        crew = {"workers": workers or len(names), "devices": names, "timeout": seconds}
    session = Session.open(setting, device if crew is None else "cpu", _console(stderr=True))
    if dry_run:
        _print_plan(session, as_json, cost=False)
        return
    if not session.jobs:
        typer.echo("nothing to retry: no job failed, diverged or was skipped")
        return
    sys.exit(session.run(_console(), as_json, crew))


def _console(*, stderr: bool = False) -> Console:
    from rich.console import Console

    return Console(stderr=stderr)


def _warn(sentence: str) -> None:
    print(f"warning: {sentence}", file=sys.stderr)


def _root_of(data_root: Path | None) -> Path:
    from kdbench.data import default_root

    return data_root or default_root()


def _emit(rows: list[dict[str, object]], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(rows, indent=1))
        return
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in rows[0] if rows else ():
        table.add_column(column, overflow="fold", justify="right" if isinstance(rows[0][column], int) else "left")
    for row in rows:
        table.add_row(*(f"{value:,}" if isinstance(value, int) else str(value) for value in row.values()))
    _console().print(table if rows else "nothing there")


def _print_plan(session: Session, as_json: bool, *, cost: bool) -> None:
    rows, total = session.plan(cost)
    sizes = session.sizes()
    if as_json:
        _emit([row | {"sizes": [size for size in sizes if size["pair"] == row["pair"]]} for row in rows], True)
        return
    _emit(rows, False)
    typer.echo()
    _emit(sizes, False)
    typer.echo(total)


if TYPE_CHECKING:
    from kdbench.session import Session
