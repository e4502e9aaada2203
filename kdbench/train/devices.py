"""Devices by the names that users give them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdbench.errors import UserError

if TYPE_CHECKING:
    import torch


def pick_device(name: str) -> torch.device:
    """The device of that name; `auto` is CUDA where there is one, else the CPU.

    Raises:
        UserError: there is no such device here.
    """
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(f"--device {name}: there is no such device here; see `kdbench doctor`") from error
    return device


def pick_devices(text: str) -> tuple[str, ...]:
    """`cuda:0,cuda:1` as names, without opening them: each worker opens its own.

    Raises:
        UserError: there is no such device here.
    """
    import torch

    names = [name.strip() for name in text.split(",") if name.strip()]
    if names == ["auto"]:
        names = [f"cuda:{number}" for number in range(torch.cuda.device_count())] or ["cpu"]
    for name in names or [text]:
        try:
            device = torch.device(name)
        except RuntimeError as error:
            raise UserError(f"--devices {name}: not a device; expects a list such as cuda:0,cuda:1") from error
        if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
            raise UserError(f"--devices {name}: there is no such device here; see `kdbench doctor`")
    return tuple(dict.fromkeys(names))
