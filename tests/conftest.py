"""One torch thread for each worker: tests run side by side and must not depend on the number of cores."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("COLUMNS", "160")

import torch

torch.set_num_threads(1)
