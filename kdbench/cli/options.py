"""What the commands share: options that mean the same everywhere, and how they speak. Imports nothing heavy."""

from __future__ import annotations

import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kdbench.errors import UserError, printable

if TYPE_CHECKING:
    from rich.console import Console

LEADERBOARD, RUNS = Path("leaderboard"), Path("runs")  # defaults of --results and --runs


class Track(StrEnum):
    default = "default"
    tuned = "tuned"


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
TrackOf = Annotated[
    Track, typer.Option("--track", help="default: published knobs; tuned: those that `kdbench tune` chose.")
]
Json = Annotated[bool, typer.Option("--json", help="Machine-readable output on stdout.")]


def console(*, stderr: bool = False) -> Console:
    """rich's, imported when it is needed."""
    from rich.console import Console

    return Console(stderr=stderr)


def warn(sentence: str) -> None:
    """A line on stderr."""
    print(f"warning: {printable(sentence)}", file=sys.stderr)


def root_of(data_root: Path | None) -> Path:
    """Where data sets are."""
    from kdbench.data import default_root

    return data_root or default_root()


def emit(rows: list[dict[str, object]], as_json: bool) -> None:
    """Rows as a table or as JSON, on stdout."""
    if as_json:
        typer.echo(json.dumps(rows, indent=1))
        return
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in rows[0] if rows else ():
        table.add_column(column, overflow="fold", justify="right" if isinstance(rows[0][column], int) else "left")
    for row in rows:
        table.add_row(*(Text(f"{value:,}" if isinstance(value, int) else printable(value)) for value in row.values()))
    console().print(table if rows else "nothing there")


def parse_seeds(text: str) -> tuple[int, ...]:
    """`0,1,2` or `0-4` or a mixture, without repeats.

    Raises:
        UserError: not such a list.
    """
    seeds: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()) or (dash and int(last) < int(first)):
            raise UserError(f"--seeds {text}: expects numbers such as 0,1,2 or a range such as 0-4")
        seeds += range(int(first), int(last if dash else first) + 1)
    return tuple(dict.fromkeys(seeds))


def parse_duration(text: str) -> float:
    """`90`, `90s`, `45m`, `2h` in seconds.

    Raises:
        UserError: not such a time.
    """
    units = {"s": 1.0, "m": 60.0, "h": 3600.0}
    number, unit = (text[:-1], text[-1]) if text[-1:] in units else (text, "s")
    try:
        seconds = float(number) * units[unit]
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise UserError(f"--timeout {text}: expects a time such as 90s, 45m or 2h")
    return seconds


def pick_device(name: str) -> torch.device:
    """The device of that name; `auto` is CUDA where there is one, else the CPU.

    Raises:
        UserError: there is no such device here.
    """
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(f"--device {name}: there is no such device here; see `kdbench doctor`") from error
    return device


def pick_devices(text: str) -> tuple[str, ...]:
    """`cuda:0,cuda:1` as names, without opening them: each worker opens its own.

    Raises:
        UserError: there is no such device here.
    """
    import torch

    names = [name.strip() for name in text.split(",") if name.strip()]
    if names == ["auto"]:
        names = [f"cuda:{number}" for number in range(torch.cuda.device_count())] or ["cpu"]
    for name in names or [text]:
        try:
            device = torch.device(name)
        except RuntimeError as error:
            raise UserError(f"--devices {name}: not a device; expects a list such as cuda:0,cuda:1") from error
        if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
            raise UserError(f"--devices {name}: there is no such device here; see `kdbench doctor`")
    return tuple(dict.fromkeys(names))
