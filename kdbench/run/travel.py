"""Teachers that were made elsewhere, taken along: `merge --teachers`. Machines that share nothing then share them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kdbench.errors import UserError, printable
from kdbench.files import set_aside, write_atomically
from kdbench.train import teachers
from kdbench.train.lease import Lease

KEY = re.compile("[0-9a-f]{12}")
WEIGHTS, RECORD = "weights.safetensors", "record.json"


@dataclass
class Carried:
    """What came of it. `kept`: teachers of which another is here already; `damaged`: those that were left out."""

    new: int = 0
    same: int = 0
    kept: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)


def carry(sources: Sequence[Path], runs: Path) -> Carried:
    """Copy the teachers of other runs folders (or of their `teachers`) into this one.

    Only what fits its digest is taken. One that is here stays, whatever comes: students may have been taught by it.
    Surveys are made anew from the weights.

    Raises:
        UserError: a source holds no teachers, or the folder cannot be written.
    """
    carried = Carried()
    for source in sources:
        base = source / "teachers" if (source / "teachers").is_dir() else source
        found = sorted(path.parent for path in base.glob("*/record.json"))
        folders = [folder for folder in found if KEY.fullmatch(folder.name)]
        if not folders:
            raise UserError(f"{source}: holds no teachers; give a folder that was some run's --runs")
        for folder in folders:
            try:
                _take(folder, runs / "teachers" / folder.name, runs, carried)
            except OSError as error:
                raise UserError(f"{runs}: cannot write teachers ({error.strerror})") from error
    return carried


def _take(folder: Path, target: Path, runs: Path, carried: Carried) -> None:
    key = folder.name
    try:
        weights, record = (folder / WEIGHTS).read_bytes(), (folder / RECORD).read_bytes()
        theirs = teachers.checked(record, weights, key)
    except (ValueError, OSError) as error:
        carried.damaged.append(f"{folder}: damaged teacher ({printable(error)}); left out")
        return
    lease = Lease.acquire(runs / "leases" / key, f"teacher {key}")
    if lease is None:
        carried.kept.append(f"teacher {key} is being trained here just now: that one will stay")
        return
    with lease:
        if (target / RECORD).exists():
            try:
                ours, _ = teachers.read(target, key)
            except (ValueError, OSError):
                set_aside(target)
            else:
                if ours.sha256 == theirs.sha256:
                    carried.same += 1
                    return
                carried.kept.append(
                    f"teacher {key}: {folder} holds another one (sha256 {theirs.sha256[:12]}) than the one here "
                    f"({ours.sha256[:12]}), which stays: students of the two are not comparable"
                )
                return
        write_atomically(target / WEIGHTS, weights)
        write_atomically(target / RECORD, record)  # last: a folder without one counts as unfinished
    carried.new += 1
