"""Commands as a user gives them, in this process."""

from __future__ import annotations

import contextlib
import io
import sys
from dataclasses import dataclass
from pathlib import Path

from kdbench.cli import main


@dataclass
class Done:
    returncode: int | str | None
    stdout: str
    stderr: str


def kdbench(folder: Path, *arguments: str) -> Done:
    """What `kdbench ...` does in that folder; in this process, because importing torch takes seconds."""
    out, err, argv = io.StringIO(), io.StringIO(), sys.argv
    code: int | str | None = 0
    try:
        sys.argv = ["kdbench", *arguments]
        with contextlib.chdir(folder), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main.main()
    except SystemExit as stop:
        code = stop.code or 0
    finally:
        sys.argv = argv
    return Done(code, out.getvalue(), err.getvalue())
