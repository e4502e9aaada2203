"""Where a result was made: versions, git state, device. No user names, host names or paths."""

from __future__ import annotations

import functools
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from kdbench import __version__

PACKAGES = ("torch", "torchvision", "timm", "numpy")


@functools.cache
def versions() -> dict[str, str]:
    found = {"kdbench": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "absent"
    return found


@functools.cache
def git_state() -> str:
    """Commit of kdbench's own checkout, `+` appended when the package has uncommitted changes; "" outside git."""
    package = Path(__file__).parents[1]

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", package, *arguments], capture_output=True, text=True, timeout=10)
        return done.stdout.strip() if done.returncode == 0 else ""

    try:
        if not git("ls-files", "--error-unmatch", "__init__.py"):
            return ""  # installed somewhere inside another repository
        commit = git("rev-parse", "--short=12", "HEAD")
        return commit + ("+" if git("status", "--porcelain", "--", ".") else "") if commit else ""
    except (OSError, subprocess.TimeoutExpired):
        return ""


@functools.cache
def device_name(device: torch.device) -> str:
    """The accelerator's or processor's model, with the number of threads torch uses."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    model = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    except OSError:
        pass
    return f"{model}, {torch.get_num_threads()} threads"


def provenance(device: torch.device, precision: str) -> dict[str, Any]:
    return {
        "versions": versions(),
        "git": git_state(),
        "device": device.type,
        "device_name": device_name(device),
        "precision": precision,
    }
