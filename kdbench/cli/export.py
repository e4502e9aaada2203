"""`kdbench export`: see kdbench/export/export.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from kdbench.cli.options import (
    LEADERBOARD,
    RUNS,
    DataRoot,
    Json,
    NoPlugins,
    Results,
    Runs,
    SuitePath,
    Track,
    TrackOf,
    warn,
)


def export(
    suite: SuitePath,
    cell: Annotated[str, typer.Argument(metavar="PAIR/METHOD", help="A student; PAIR/teacher is the pair's teacher.")],
    to: Annotated[Path, typer.Option("--to", metavar="FILE", help="Ends in .safetensors, .pt2 or .onnx.")],
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="Default: the suite's first.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there already.")] = False,
    device: Annotated[str, typer.Option("--device", help="Where the weights are checked.")] = "auto",
    track: TrackOf = Track.default,
    no_plugins: NoPlugins = False,
    epochs: Annotated[int | None, typer.Option("--epochs", min=1, help="As given to `run`.")] = None,
    data_root: DataRoot = None,
    results: Results = LEADERBOARD,
    runs: Runs = RUNS,
    as_json: Json = False,
) -> None:
    """Write a trained student (or teacher) to a file that works without kdbench, with a model card.

    .safetensors holds the weights (of a timm network: under timm's names). .pt2 (torch.export) and .onnx hold the whole
    graph, preprocessing included: uint8 pixels in, logits out. The file is read back and compared before it is kept.
    """
    from kdbench.export.export import Request, export
    from kdbench.train.devices import pick_device

    request = Request(suite, cell, to, seed, epochs, results, runs, data_root, force, track.value)
    done = export(request, pick_device(device), warn)
    if as_json:
        said = {"file": str(done.path), "card": str(done.card), "key": done.key}
        typer.echo(json.dumps({**said, "difference": done.difference, "images": done.images}, indent=1))
        return
    size = done.path.stat().st_size / 2**20
    typer.echo(
        f"{done.path}: {size:.2f} MiB; read back, its logits on {done.images} validation images differ by at most "
        f"{done.difference:.1e}"
    )
    typer.echo(str(done.card))
