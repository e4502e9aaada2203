"""Rows that vouch for themselves: whatever was torn, damaged or written elsewhere is not there."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from kdbench.train import table
from kdbench.train.table import NoTable, Shelf, Table, tables


def shelf(folder: Path, room: int = 10**9, **identity: object) -> Shelf:
    own = folder / "teachers" / "a"
    own.mkdir(parents=True, exist_ok=True)
    return Shelf(own, {"sha": 1, **identity}, room)


def filled(folder: Path, cells: int = 12, width: int = 3) -> tuple[Table, torch.Tensor]:
    made = shelf(folder).table(cells // 4, 4, width, batch=2)
    rows = torch.randn(cells, width)
    made.write(torch.arange(cells), rows)
    return made, rows


@pytest.mark.parametrize("small", [2**24, 0], ids=["as a whole", "row by row"])
def test_what_was_written_is_read_and_nothing_else(tmp_path: Path, monkeypatch, small: int) -> None:
    monkeypatch.setattr(table, "SMALL", small)
    monkeypatch.setattr(table, "ROWS", 5)
    made = shelf(tmp_path).table(5, 4, 3)
    assert not made.read(torch.arange(20))[1].any()
    rows = torch.randn(20, 3)
    rows[7] = 0  # zeros are numbers too
    some = torch.tensor([19, 7, 0, 8])
    made.write(some, rows[some])
    cells = torch.randperm(20).repeat(2)
    found, known = made.read(cells)
    assert known.tolist() == [cell in some.tolist() for cell in cells.tolist()]
    assert torch.equal(found[known], rows[cells[known]])


@pytest.mark.parametrize("at", range(4 * 3 + 8))
def test_a_changed_byte_is_seen(tmp_path: Path, at: int) -> None:
    made, rows = filled(tmp_path)
    with made.path.open("r+b") as file:
        file.seek(5 * made.row + at)
        byte = file.read(1)
        file.seek(5 * made.row + at)
        file.write(bytes([byte[0] ^ 16]))
    found, known = made.read(torch.arange(12))
    assert [cell for cell in range(12) if not known[cell]] == [5]
    made.write(torch.tensor([5]), rows[5:6])
    found, known = made.read(torch.arange(12))
    assert known.all()
    assert torch.equal(found, rows)


def test_a_row_in_another_place_or_of_another_table_is_not_there(tmp_path: Path) -> None:
    made, _ = filled(tmp_path)
    raw = made.path.read_bytes()
    made.path.write_bytes(raw[made.row :] + raw[: made.row])
    assert not made.read(torch.arange(12))[1].any()
    other = shelf(tmp_path).table(3, 4, 3, batch=3)
    assert other.path != made.path
    other.path.write_bytes(raw)
    assert not other.read(torch.arange(12))[1].any()


@pytest.mark.parametrize("length", [0, 7, 5 * 20, 10_000])
def test_a_file_of_another_length_keeps_what_is_whole(tmp_path: Path, length: int) -> None:
    made, _ = filled(tmp_path)
    os.truncate(made.path, length)
    known = made.read(torch.arange(12))[1]
    assert known.tolist() == [(cell + 1) * made.row <= length for cell in range(12)]
    assert made.path.stat().st_size == made.size


def test_whatever_the_answers_depend_on_has_its_own_table(tmp_path: Path) -> None:
    paths = {
        one.path
        for one in (
            shelf(tmp_path).table(3, 4, 3, batch=2),
            shelf(tmp_path).table(3, 4, 3, batch=4),
            shelf(tmp_path).table(4, 3, 3, batch=2),
            shelf(tmp_path).table(3, 4, 2, batch=2),
            shelf(tmp_path, sha=2).table(3, 4, 3, batch=2),
        )
    }
    assert len(paths) == 5
    assert shelf(tmp_path).table(3, 4, 3, batch=2).path in paths


def test_tables_take_no_more_room_than_is_given(tmp_path: Path, monkeypatch) -> None:
    made, _ = filled(tmp_path)
    assert made.size == 240
    with pytest.raises(NoTable, match=r"--cache-gb leaves 6e-05 MB; give more, or free some with `kdbench clean`"):
        shelf(tmp_path, room=300).table(3, 4, 3, batch=3)
    shelf(tmp_path, room=480).table(3, 4, 3, batch=3)
    assert shelf(tmp_path, room=100).table(3, 4, 3, batch=2) == made  # it is there already
    monkeypatch.setattr(table.shutil, "disk_usage", lambda path: _Usage(479))
    with pytest.raises(NoTable, match="the disk is nearly full"):
        shelf(tmp_path).table(3, 4, 3, batch=5)


class _Usage:
    def __init__(self, free: int) -> None:
        self.free = free


WRITER = """
import sys, torch
from pathlib import Path
from kdbench.train.table import Table
table = Table(Path(sys.argv[1]), 2000, 50, 7)
rows = torch.arange(2000 * 50, dtype=torch.float32).view(2000, 50)
print("ready", flush=True)
while True:
    order = torch.randperm(2000)
    for some in order.split(100):
        table.write(some, rows[some])
"""


def test_several_writers_that_are_killed_leave_only_whole_rows(tmp_path: Path) -> None:
    path = tmp_path / "t.rows"
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
    made, rows = Table(path, 2000, 50, 7), torch.arange(2000 * 50, dtype=torch.float32).view(2000, 50)
    time.sleep(0.05)
    for writer in writers:
        found, known = made.read(torch.arange(2000))  # while they write
        assert torch.equal(found[known], rows[known])
        writer.send_signal(signal.SIGKILL)
        writer.communicate()
    found, known = made.read(torch.arange(2000))
    assert known.any()
    assert torch.equal(found[known], rows[known])


def test_tables_of_all_teachers_are_listed(tmp_path: Path) -> None:
    made, _ = filled(tmp_path)
    made.path.rename(made.path.with_name(made.path.name + ".damaged"))
    other, _ = filled(tmp_path)
    assert tables(tmp_path / "teachers") == sorted([other.path, made.path.with_name(made.path.name + ".damaged")])
