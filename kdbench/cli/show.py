"""`kdbench show` and `kdbench doctor`: what there is."""

from __future__ import annotations

from typing import Annotated

import typer

from kdbench.cli.options import LEADERBOARD, DataRoot, Json, NoPlugins, Results, SuitePath, emit, root_of, warn

show = typer.Typer(no_args_is_help=True, help="List methods, models, data sets, tasks or results.")


@show.command("methods")
def show_methods(as_json: Json = False) -> None:
    """Every method with its knobs, defaults and ranges."""
    from kdbench.cli import listing

    emit(listing.methods(), as_json)


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
