"""A run that is stopped at a known step, and the steps that were trained: what tests of resuming share."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

# Every step is noted; with $HALT set, the first step after a checkpoint waits for the signal that ends the process.
METHOD = """
import os
import time
from dataclasses import dataclass
from pathlib import Path

from kdbench import Method, knob, losses


@dataclass(frozen=True)
class Halting(Method):
    weight: float = knob(1.0, low=0.5, high=2.0)

    def loss(self, learner, teachers, batch, heads):
        with Path("steps").open("a") as steps:
            steps.write(".")
        if "HALT" in os.environ and list(Path("runs/checkpoints").glob("*.pt")):
            Path("halted").touch()
            while not Path("signalled").exists():  # an interrupt is heard after the step
                time.sleep(0.02)
        return {"ce": self.weight * losses.supervised(learner, batch)}
"""


def steps(folder: Path) -> int:
    """Steps trained in a folder since they were last asked for."""
    noted = folder / "steps"
    count = len(noted.read_text())
    noted.unlink()
    return count


def stop(folder: Path, number: signal.Signals, *arguments: str) -> tuple[int, str]:
    """Run `kdbench ...` there and stop it in the step after its first checkpoint; exit code and standard error."""
    process = subprocess.Popen(
        [sys.executable, "-m", "kdbench", *arguments],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1", "HALT": "1"},
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 120
    while not (folder / "halted").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(number)
    (folder / "signalled").touch()
    _, errors = process.communicate(timeout=60)
    assert (folder / "halted").exists(), errors
    return process.returncode, errors
