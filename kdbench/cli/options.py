"""What the commands share: options that mean the same everywhere, and how they speak. Imports nothing heavy."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kdbench.errors import HIDDEN, UserError, printable, shown

if TYPE_CHECKING:
    from rich.console import Console

    from kdbench.run.machine import Staff

MOST_SEEDS = 10_000
LEADERBOARD, RUNS = Path("leaderboard"), Path("runs")  # defaults of --results and --runs


class Track(StrEnum):
    default = "default"
    tuned = "tuned"


def _folder(option: typer.CallbackParam, path: Path | None) -> Path | None:
    """A path that is or can become a folder.

    Raises:
        UserError: it, or something it is in, is a file; or its name is too long.
    """
    try:
        file = next((part for part in (path, *path.parents) if part.is_file()), None) if path else None
    except OSError as error:
        raise UserError(f"{option.opts[0]} {shown(str(path), 200)}: {error.strerror}") from None
    if file is not None:
        raise UserError(f"{option.opts[0]} {path}: {file} is a file; expects a folder")
    return path


SuitePath = Annotated[Path, typer.Argument(metavar="SUITE", help="The suite file, for example suites/digits.yaml.")]
DataRoot = Annotated[
    Path | None,
    typer.Option(
        "--data-root", callback=_folder, help="Where data sets are; else $KDBENCH_DATA, else ~/.cache/kdbench."
    ),
]
Results = Annotated[
    Path,
    typer.Option(
        "--results", callback=_folder, help="Folder of the boards; records go to its results/<suite>/.", metavar="DIR"
    ),
]
Runs = Annotated[
    Path, typer.Option("--runs", callback=_folder, help="Folder of checkpoints, teachers and logs.", metavar="DIR")
]
Only = Annotated[
    list[str] | None, typer.Option("--only", metavar="PAIR/METHOD", help="Only these cells; globs; repeatable.")
]
Seeds = Annotated[str | None, typer.Option("--seeds", help="Instead of the suite's: 0,1,2 or 0-4.", metavar="LIST")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, mps.")]
Epochs = Annotated[
    int | None, typer.Option("--epochs", min=1, help="Shorten every training; such results are not comparable.")
]


def _workers(text: str) -> int:
    """A number, or AUTO.

    Raises:
        UserError: neither.
    """
    if text == "auto":
        return AUTO
    if not re.fullmatch(r"[0-9]{1,4}", text):
        raise UserError(f"--workers {shown(text, 200)}: expects auto, or a number from 0 to {MOST_WORKERS}")
    return int(text)


AUTO, MOST_WORKERS = -1, 9999
Workers = Annotated[
    int,
    typer.Option(
        "--workers",
        metavar="auto|N",
        parser=_workers,
        envvar="KDBENCH_WORKERS",
        help="Jobs at a time, each in a process of its own; 0: in this process; auto: by cores, memory and devices.",
    ),
]
Devices = Annotated[str | None, typer.Option("--devices", metavar="LIST", help="Where workers train: cuda:0,cuda:1.")]
Timeout = Annotated[str | None, typer.Option("--timeout", metavar="TIME", help="Stop a job after 90s, 45m, 2h.")]
CacheGb = Annotated[
    float,
    typer.Option(
        "--cache-gb",
        metavar="GB",
        min=0,
        max=1e6,
        help="Disk that teachers' stored answers may take below --runs; 0: teachers run on every batch.",
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show what would be done, and stop.")]
TrackOf = Annotated[
    Track, typer.Option("--track", help="default: published knobs; tuned: those that `kdbench tune` chose.")
]


TeachersOnly = Annotated[
    bool,
    typer.Option("--teachers-only", help="Make the teachers of these jobs, and nothing else; see `merge --teachers`."),
]
ShardOf = Annotated[
    str | None,
    typer.Option("--shard", metavar="I/N", help="Only share I of N of the jobs, counted from 0: 0/4 to 3/4."),
]


def _no_plugins(context: typer.Context, value: bool) -> bool:
    from kdbench.userfiles import refusing_files

    if value:
        context.with_resource(refusing_files())
    return value


NoPlugins = Annotated[
    bool,
    typer.Option(
        "--no-plugins",
        envvar="KDBENCH_NO_PLUGINS",
        callback=_no_plugins,
        help="Refuse a suite that names Python files: they are code, and using the suite runs it.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Machine-readable output on stdout.")]


def console(*, stderr: bool = False) -> Console:
    """rich's, imported when it is needed."""
    from rich.console import Console

    return Console(stderr=stderr)


def warn(sentence: str) -> None:
    """A line on stderr."""
    print(f"warning: {printable(sentence)}", file=sys.stderr)


def teller(screen: Console) -> Callable[[str], None]:
    """`warn` on a console that may show bars."""

    def warn(sentence: str) -> None:
        screen.print(printable(f"warning: {sentence}"), markup=False, soft_wrap=True)

    return warn


def hired(workers: int, device: str, devices: str | None, pending: int, *, apart: bool = False) -> Staff:
    """Who trains so many pending jobs. `apart`: something is asked for that only workers can do.

    Raises:
        UserError: there is no such device here.
    """
    from kdbench.run.machine import Staff, staff
    from kdbench.train.devices import pick_devices

    apart = apart or devices is not None
    if not workers and not apart:
        return Staff(0, (device,), "")
    names = pick_devices(devices or device, "--devices" if devices else "--device")
    team = staff(names, pending) if workers == AUTO else Staff(workers, names, "")
    return replace(team, workers=len(names), why="") if apart and not team.workers else team


def refuse_hidden(words: Sequence[str]) -> None:
    """Raises UserError where a word of the command line has a control character, or bytes that are no text."""
    for word in words:
        if HIDDEN.search(word):
            raise UserError(f"'{shown(word, 200)}': a control character cannot stand on the command line")


def root_of(data_root: Path | None) -> Path:
    """Where data sets are."""
    from kdbench.data import default_root

    return data_root or default_root()


def emit(rows: list[dict[str, object]], as_json: bool) -> None:
    """Rows as a table or as JSON, on stdout."""
    if as_json:
        typer.echo(json.dumps(rows, indent=1))
        return
    if not rows:
        typer.echo("nothing there")
        return
    right = [isinstance(value, int) for value in rows[0].values()]
    cells = [[f"{value:,}" if isinstance(value, int) else printable(value) for value in row.values()] for row in rows]
    if not sys.stdout.isatty():  # a line each, for other programs, and in a hundredth of the time
        typer.echo("\n".join(_aligned([list(rows[0]), *cells], right)))
        return
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column, number in zip(rows[0], right, strict=True):
        table.add_column(column, overflow="fold", justify="right" if number else "left")
    for row in cells:
        table.add_row(*map(Text, row))
    console().print(table)


def _aligned(lines: list[list[str]], right: list[bool]) -> Iterator[str]:
    """Lines with each column as wide as its widest cell."""
    form = "  ".join(
        f"{{:{'>' if number else '<'}{max(map(len, column))}}}"
        for column, number in zip(zip(*lines, strict=True), right, strict=True)
    )
    return (form.format(*line).rstrip() for line in lines)


def parse_seeds(text: str | None) -> tuple[int, ...] | None:
    """`0,1,2` or `0-4` or a mixture, without repeats; None where nothing was asked for.

    Raises:
        UserError: not such a list, or too long a one.
    """
    if text is None:
        return None
    seeds: list[int] = []
    for part in text.split(","):
        found = re.fullmatch(r"0*([0-9]{1,18})(?:-0*([0-9]{1,18}))?", part.strip())
        if not found or int(found[2] or found[1]) < int(found[1]):
            raise UserError(f"--seeds {shown(text, 200)}: expects numbers such as 0,1,2 or a range such as 0-4")
        first, last = int(found[1]), int(found[2] or found[1])
        if len(seeds) + last - first >= MOST_SEEDS:
            raise UserError(f"--seeds {shown(text, 200)}: is more than {MOST_SEEDS:,} seeds: give fewer")
        seeds += range(first, last + 1)
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
