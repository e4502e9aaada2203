"""`tune` on an executor: its machines are in this process, some of them are lost."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping, Sequence
from pathlib import Path

import pytest
from commands import kdbench
from training import LITTLE

from kdbench.errors import UserError
from kdbench.run.opened import Setting
from kdbench.run.remote import Lost
from kdbench.suite import winners
from kdbench.suite.load import load
from kdbench.tune import elsewhere, session
from kdbench.tune.elsewhere import meeting_place
from kdbench.tune.order import Order


class Near:
    """Does calls here, but loses the first `losses` of them."""

    device, crowded = "cpu", False

    def __init__(self, losses: int) -> None:
        self.losses, self.calls = losses, []

    def __enter__(self) -> Near:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def launch(self, calls: Sequence) -> Sequence[Hashable]:
        self.calls += calls
        return list(range(len(self.calls) - len(calls), len(self.calls)))

    def ended(self, handles: Collection[Hashable]) -> Mapping[Hashable, object]:
        first = min(handles)
        return {first: Lost("preempted") if first < self.losses else self.calls[first]()}

    def cancel(self, handles: Collection[Hashable]) -> None:
        pass


class Text:
    """A console that keeps what it prints."""

    is_terminal = False

    def __init__(self) -> None:
        self.text = ""

    def print(self, *things: object, **options: object) -> None:
        self.text += " ".join(map(str, things)) + "\n"


def order(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Order:
    (folder / "s.yaml").write_text(LITTLE + "tune: {trials: 2, epochs: 1}\n")
    monkeypatch.chdir(folder)
    setting = Setting(Path("s.yaml"), folder, Path("board"), Path("runs"), ("p/kd",))
    return Order(setting, meeting_place("journal:studies.log", "ray"))


def test_trials_are_done_elsewhere_and_a_lost_worker_is_replaced(tmp_path: Path, monkeypatch) -> None:
    made, near, screen = order(tmp_path, monkeypatch), Near(1), Text()
    assert session.run(made, "auto", 2, (), screen, Text(), near) == 0
    assert len(near.calls) == 3
    assert "a worker was lost (preempted); another takes its place" in screen.text
    assert "[2/2] p/kd trial 2/2" in screen.text
    found, _ = winners.current(load(tmp_path / "s.yaml"), tmp_path / "board", print)
    assert [winner.trials for winner in found.values()] == [2]


def test_workers_that_are_lost_over_and_over_end_it(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(elsewhere, "DEATHS", 2)
    with pytest.raises(UserError, match=r"4 workers were lost one after the other \(the last: preempted\)"):
        session.run(order(tmp_path, monkeypatch), "auto", 2, (), Text(), Text(), Near(99))


def test_where_machines_can_meet(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert meeting_place("journal:a.log", "ray") == f"journal:{tmp_path / 'a.log'}"
    assert meeting_place("postgresql://host/db", "ray") == "postgresql://host/db"
    with pytest.raises(UserError, match="SQLite cannot be shared by machines"):
        meeting_place("sqlite:///a.db", "slurm")
    (tmp_path / "s.yaml").write_text(LITTLE + "tune: {trials: 2, epochs: 1}\n")
    for more, sentence in (((), "--workers N"), (("--workers", "2"), "SQLite cannot be shared")):
        done = kdbench(tmp_path, "tune", "s.yaml", "--executor", "ray", *more)
        assert (done.returncode, sentence in done.stderr) == (2, True), done.stderr
