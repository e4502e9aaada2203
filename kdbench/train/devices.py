"""Devices by the names that users give them."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

from kdbench.errors import UserError, shown

if TYPE_CHECKING:
    import torch


_DEVICES = re.compile(r"(cpu|cuda|mps|xpu)(?::([0-9]{1,9}))?")  # those that training works on


def pick_device(name: str) -> torch.device:
    """The device of that name; `auto` is CUDA where there is one, else the CPU.

    Raises:
        UserError: there is no such device here.
    """
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    _known_device("--device", name)
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(f"--device {name}: there is no such device here; see `kdbench doctor`") from error
    return device


def pick_devices(text: str, option: str = "--devices") -> tuple[str, ...]:
    """`cuda:0,cuda:1` as names, without opening them: each worker opens its own.

    Raises:
        UserError: there is no such device here.
    """
    import torch

    names = [name.strip() for name in text.split(",") if name.strip()]
    if names == ["auto"]:
        names = [f"cuda:{number}" for number in range(torch.cuda.device_count())] or ["cpu"]
    for name in names or [text]:
        _known_device(option, name)
    return tuple(dict.fromkeys(names))


def one_thread() -> None:
    """Let this process train with one thread on a CPU, unless OMP_NUM_THREADS says how many.

    Sums then have one order, and results the same bits, however many jobs share the machine.
    """
    import torch

    if not os.environ.get("OMP_NUM_THREADS"):
        torch.set_num_threads(1)


def _known_device(option: str, name: str) -> None:
    """Raises UserError where it is no device that training works on, or the machine has none of that number."""
    import torch

    found = _DEVICES.fullmatch(name)
    if not found:
        raise UserError(f"{option} {shown(name, 200)}: expects auto, cpu, cuda, mps or xpu, with a number: cuda:1")
    here = {
        "cpu": 1,
        "cuda": torch.cuda.device_count(),
        "mps": int(torch.backends.mps.is_available()),
        "xpu": torch.xpu.device_count(),
    }
    if int(found[2] or 0) >= here[found[1]]:
        raise UserError(f"{option} {name}: there is no such device here; see `kdbench doctor`")
