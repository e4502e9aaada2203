"""Workers of a tuning, and what they tell the process that hired them."""

from __future__ import annotations

import multiprocessing

import pytest

from kdbench.errors import UserError
from kdbench.tune import crew
from kdbench.tune.crew import Hand, Workers


def test_what_a_worker_found_wrong_is_passed_on_line_by_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def work(*arguments: object) -> None:
        raise UserError("s.yaml:1:1: one", "s.yaml:2:1: another")

    monkeypatch.setattr(crew, "_work", work)
    monkeypatch.setattr(crew.processes, "follow", lambda parent, patience: None)
    monkeypatch.setattr(crew.signal, "signal", lambda number, handler: None)
    mine, theirs = multiprocessing.Pipe()
    crew.main(theirs, None, "cpu", 1, 0)  # type: ignore[arg-type]
    workers = Workers(None, 1, ("cpu",), None)  # type: ignore[arg-type]
    with pytest.raises(UserError) as raised:
        workers._listen(Hand(None, mine, "cpu", 0))  # type: ignore[arg-type]
    assert str(raised.value).splitlines() == ["s.yaml:1:1: one", "s.yaml:2:1: another"]
