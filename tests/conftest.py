"""One torch thread for each worker: tests run side by side and must not depend on the number of cores."""

from __future__ import annotations

import os
import tempfile

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("COLUMNS", "160")
os.environ["KDBENCH_WORKERS"] = "0"  # in the test's own process, unless the test says otherwise

os.environ["KDBENCH_CACHE"] = tempfile.mkdtemp(prefix="kdbench-cache-")  # nothing into the cache of who tests

import torch

torch.set_num_threads(1)
