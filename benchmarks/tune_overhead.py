"""What `kdbench tune` costs beside training: 16 trials of KD on digits against the same jobs without a tuner.

    uv run python benchmarks/tune_overhead.py [--storage journal:FILE]

Overhead is the time between claiming a trial and telling its value that is not the trial's job (`Workbench.perform`:
training, validation, its teacher), over the whole; asking the sampler and all writes to the storage are in it.
Starting Python and importing torch and Optuna is printed apart. Aim: under 2%. Measured figures: docs/LOG.md.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

STARTED = time.perf_counter()

SUITE = """
extends: {suite}
name: overhead
triples: [{{pair: cnn-cnn, method: kd}}]
exclude: []
tune: {{trials: {trials}}}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=16)
    parser.add_argument("--storage", help="as for `kdbench tune`; default: SQLite in a temporary folder")
    options = parser.parse_args()

    from kdbench.run.opened import Setting
    from kdbench.tune.session import Order, conclude
    from kdbench.tune.tuner import Listener

    imported = time.perf_counter() - STARTED
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        suite = (Path(__file__).parent.parent / "suites" / "digits.yaml").resolve()

        (folder / "s.yaml").write_text(SUITE.format(suite=os.path.relpath(suite, folder), trials=options.trials))
        setting = Setting(folder / "s.yaml", None, folder / "board", folder / "runs")
        order = Order(setting, options.storage or f"sqlite:///{folder / 'tune.db'}")
        begun = time.perf_counter()
        tuner = order.open("cpu", Listener())
        opened = time.perf_counter() - begun
        tuner.bench.teacher(tuner.opened.jobs[0].frozen["teacher"])  # made before: it is no trial's
        perform, jobs = tuner.bench.perform, []

        def timed(job, splits):
            start = time.perf_counter()
            try:
                return perform(job, splits)
            finally:
                jobs.append(time.perf_counter() - start)

        tuner.bench.perform = timed
        begun = time.perf_counter()
        tuner.work()
        whole = time.perf_counter() - begun
        conclude(tuner, folder / "board")
    overhead = whole - sum(jobs)
    print(f"start: {imported:.1f} s of imports, {opened:.2f} s to open suite, data and storage")
    print(f"{len(jobs)} trials in {whole:.2f} s, of which jobs {sum(jobs):.2f} s")
    print(f"overhead {overhead:.3f} s, {1000 * overhead / len(jobs):.1f} ms a trial, {100 * overhead / whole:.2f}%")


if __name__ == "__main__":
    main()
