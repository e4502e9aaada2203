"""`kdbench answers`: see kdbench/train/answers.py."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kdbench.cli.options import RUNS, DataRoot, NoPlugins, Runs, SuitePath, warn


def answers(
    suite: SuitePath,
    pair: Annotated[str, typer.Argument(metavar="PAIR", help="Whose teacher is asked.")],
    to: Annotated[
        Path | None, typer.Option("--to", metavar="FILE", help="Ends in .npz or .safetensors. Default: PAIR.npz.")
    ] = None,
    top_k: Annotated[
        int | None, typer.Option("--top-k", min=1, help="Only the K largest probabilities of each example.")
    ] = None,
    device: Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")] = "auto",
    no_plugins: NoPlugins = False,
    data_root: DataRoot = None,
    runs: Runs = RUNS,
) -> None:
    """Write what a pair's teacher says of each training example, unaugmented: `teacher: {answers: FILE}` reads it.

    The teacher is trained first where it has not been. Without --top-k the file holds logits.
    """
    from kdbench import data
    from kdbench.data import default_root
    from kdbench.export.deployed import TEACHER, cell_of, job_of
    from kdbench.suite.load import load
    from kdbench.train import evaluate
    from kdbench.train.answers import write
    from kdbench.train.devices import pick_device
    from kdbench.train.workbench import Workbench

    declared = load(suite)
    name, _ = cell_of(declared, f"{pair}/{TEACHER}")
    root = data_root or default_root()
    loaded = data.load(declared.file.data, root, declared.folder)
    job = job_of(declared, name, TEACHER, fingerprint=loaded.fingerprint)
    bench = Workbench.load(job, root, pick_device(device), runs, warn=warn)
    asked = bench.teacher(job.frozen[TEACHER]).model
    path = to or Path(f"{name}.npz")
    write(path, bench.data.task.rows(evaluate.split_answers(asked, bench.data.train)), bench.data, top_k)
    typer.echo(f"{path}: answers to {len(loaded.train.labels)} training examples of {declared.file.name}")
