"""`kdbench show` and `kdbench doctor`: what there is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kdbench.cli.options import LEADERBOARD, DataRoot, Json, NoPlugins, Results, SuitePath, emit, root_of, warn

show = typer.Typer(no_args_is_help=True, help="List methods, models, data sets, tasks or results.")


@show.command("methods")
def show_methods(
    pattern: Annotated[str, typer.Argument(metavar="NAME", help="Only these, with their knobs; a glob.")] = "",
    markdown: Annotated[bool, typer.Option("--markdown", help="Print docs/methods.md.")] = False,
    reported: Annotated[
        list[Path] | None,
        typer.Option("--reported", metavar="SUITE", help="With --markdown: what papers report for its pairs."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Every method by family: its paper, what it needs, which tasks it fits. With a name, its knobs too."""
    from kdbench.cli import zoo

    if markdown:
        from kdbench.cli import zoo_page

        typer.echo(zoo_page.page(reported or ()), nl=False)
        return
    rows = zoo.rows(pattern or "*")
    if as_json or not rows:
        emit(rows, as_json)
    elif pattern:
        for row in rows:
            emit([{"": name, " ": value} for name, value in row.items() if value], as_json)
    else:
        for family in dict.fromkeys(row["family"] for row in rows):
            listed = [row for row in rows if row["family"] == family]
            typer.echo(f"\n{family}")
            emit([zoo.brief(row) for row in listed], as_json)


@show.command("models")
def show_models(
    pattern: Annotated[str | None, typer.Argument(help="Also timm's models that match this glob.")] = None,
    as_json: Json = False,
) -> None:
    """kdbench's own models with parameters and MACs (32x32, 10 classes); timm's by glob."""
    from kdbench.cli import listing

    emit(listing.models(pattern), as_json)


@show.command("data")
def show_data(data_root: DataRoot = None, as_json: Json = False) -> None:
    """Every data set and whether its files are there."""
    from kdbench.cli import listing

    emit(listing.data(root_of(data_root)), as_json)


@show.command("tasks")
def show_tasks(as_json: Json = False) -> None:
    """Every task: what rows are, what is measured, and which methods fit."""
    from kdbench.cli import listing

    emit(listing.tasks(), as_json)


@show.command("results")
def show_results(
    suite: SuitePath, results: Results = LEADERBOARD, no_plugins: NoPlugins = False, as_json: Json = False
) -> None:
    """Stored results of a suite; stale ones are marked."""
    from kdbench.cli import listing
    from kdbench.run.store import Store
    from kdbench.suite.load import load

    loaded = load(suite)
    emit(listing.results(loaded, Store(results, loaded.file.name, warn)), as_json)


def doctor(data_root: DataRoot = None, as_json: Json = False) -> None:
    """Versions, devices, data found, optional parts."""
    from kdbench.cli import listing

    emit(listing.doctor(root_of(data_root)), as_json)
