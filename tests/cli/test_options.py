"""How rows are printed."""

from __future__ import annotations

import pytest

from kdbench.cli.options import emit


def test_off_a_terminal_each_row_is_one_line_with_aligned_columns(capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever its width, and nothing in it is taken for markup."""
    emit([{"job": "a", "MACs": 1_234, "note": "n" * 300}, {"job": "a longer one", "MACs": 5, "note": "[red]b"}], False)
    assert capsys.readouterr().out.splitlines() == [
        "job            MACs  note",
        "a             1,234  " + "n" * 300,
        "a longer one      5  [red]b",
    ]
    emit([], False)
    assert capsys.readouterr().out == "nothing there\n"
