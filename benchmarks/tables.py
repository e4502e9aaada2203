"""Sections of benchmarks/README.md: each benchmark writes the table of what it measured."""

from __future__ import annotations

import platform
import re
from pathlib import Path

import torch
from tabulate import tabulate

README = Path(__file__).with_name("README.md")
TITLE = (
    "# Measured\n\nWritten by the benchmarks beside this page, each with `--write`. Ratios are of runs side by side.\n"
)


def machine(device: torch.device) -> str:
    """What a ratio was measured on, as far as it may be told."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    return f"{platform.machine()} CPU, {torch.get_num_threads()} thread(s), torch {torch.__version__}"


def section(title: str, about: str, rows: list[dict[str, object]]) -> str:
    return f"## {title}\n\n{about}\n\n{tabulate(rows, headers='keys', tablefmt='github', floatfmt='.2f')}\n"


def write(title: str, text: str, path: Path = README) -> None:
    """Put a section in the place of the one with its title, or at the end."""
    old = path.read_text() if path.exists() else TITLE
    found = re.search(rf"^## {re.escape(title)}\n.*?(?=^## |\Z)", old, re.MULTILINE | re.DOTALL)
    new = f"{old[: found.start()]}{text}\n{old[found.end() :]}" if found else f"{old.rstrip()}\n\n{text}"
    path.write_text(new.rstrip() + "\n")
