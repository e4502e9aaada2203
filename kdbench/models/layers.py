"""Some of the layers of a network: the same network with a shallower stack of blocks.

A model states its stack in `kd_layers`, the path of its blocks' container (`nn.Sequential` or `nn.ModuleList`), or
several paths where the blocks are spread over stages; they are counted on, from 0. Where it does not, the stack is the
container whose members are the taps `block1`, `block2`, ...
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from kdbench.errors import UserError
from kdbench.models.taps import available


def stack(model: nn.Module) -> tuple[str, ...]:
    """The paths of the containers of the model's blocks; () where there are none."""
    stated: Any = getattr(model, "kd_layers", None)
    if stated is not None:
        return (stated,) if isinstance(stated, str) else tuple(stated)
    paths = [tap.path for name, tap in available(model).items() if name.startswith("block")]
    parents = {path.rpartition(".")[0] for path in paths}
    if len(parents) != 1 or "" in parents:
        return ()
    (parent,) = parents
    container = model.get_submodule(parent)
    return (parent,) if isinstance(container, nn.Sequential | nn.ModuleList) else ()


def keep(model: nn.Module, layers: Sequence[int], shape: Sequence[int], what: str) -> nn.Module:
    """Remove all blocks but `layers` (increasing, from 0) from a model's stack, in place; taps are counted anew.

    Args:
        shape: of one input, without the batch dimension.
        what: the model, for errors.

    Raises:
        UserError: it has no stack, or no such layer, or what is left does not fit together.
    """
    containers = stack(model)
    paths = [f"{path}.{name}" for path in containers for name, _ in model.get_submodule(path).named_children()]
    if not paths:
        raise UserError(
            f"{what} does not say what its layers are: set `kd_layers` to the path of its blocks' container"
        )
    if missing := [number for number in layers if number >= len(paths)]:
        raise UserError(f"{what} has no layer {missing[0]}: its {len(paths)} are counted from 0")
    kept = {paths[number] for number in layers}
    renamed: dict[str, str] = {}
    for path in containers:
        container = model.get_submodule(path)
        members = [(f"{path}.{name}", child) for name, child in container.named_children() if f"{path}.{name}" in kept]
        renamed |= {old: f"{path}.{number}" for number, (old, _) in enumerate(members)}
        parent, _, name = path.rpartition(".")
        modules = [child for _, child in members]
        made = nn.ModuleList(modules) if isinstance(container, nn.ModuleList) else nn.Sequential(*modules)
        setattr(model.get_submodule(parent), name, made)
    _tap_again(model, paths, renamed)
    try:
        with torch.no_grad(), torch.random.fork_rng():
            training = model.training
            first = next(model.parameters())
            model.eval()(torch.zeros((2, *shape), device=first.device))
            model.train(training)
    except Exception as error:
        said = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"{what}: its layers {list(layers)} do not fit together ({said})") from error
    return model


def _tap_again(model: nn.Module, paths: Sequence[str], renamed: dict[str, str]) -> None:
    blocks, others = [], {}
    for name, tap in available(model).items():
        inside = next((path for path in paths if tap.path == path or tap.path.startswith(f"{path}.")), None)
        if inside is not None and inside not in renamed:
            continue
        moved = tap if inside is None else tap._replace(path=renamed[inside] + tap.path.removeprefix(inside))
        if name.startswith("block"):
            blocks.append(moved)
        else:
            others[name] = moved
    model.__dict__["kd_taps"] = {f"block{number}": tap for number, tap in enumerate(blocks, 1)} | others
