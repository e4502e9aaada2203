"""Models: kdbench's own, any timm model by name, those of installed packages, or a function in the user's Python file.

Each file here that declares `NAMES` builds some models: `build(name, *, classes, channels, size, **options)`. A suite
may also name a function of its own, `./net.py:build`, or an installed package's by the entry point `kdbench.models`;
both are called as `build(classes=, channels=, size=, **options)`.

Whatever the origin, the model leaves here with two plain attributes: `kd_taps`, tap name -> `kdbench.models.taps.Tap`,
in the order of the forward pass (`block1`, ..., `blockN`, `pooled`), and `kd_classifier`, the path of the final
classifier.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdbench import plugins
from kdbench.errors import UserError, did_you_mean
from kdbench.plugins import own_names, timm_names

if TYPE_CHECKING:
    from torch import nn

__all__ = ["build", "own_names"]

MOST_TENSORS = 20_000  # of parameters; networks of today have hundreds
GIVEN = ("classes", "channels", "size")  # follow from the data set; options may not set them


@contextlib.contextmanager
def _bounded() -> Iterator[None]:
    """Stops the building of a network that cannot fit this machine, before its memory is written to."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    tensors = size = 0

    def count(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal tensors, size
        if parameter is None or parameter.is_meta or isinstance(parameter, UninitializedParameter):
            return
        tensors, size = tensors + 1, size + parameter.nbytes
        if tensors > MOST_TENSORS or size > memory:
            raise ValueError(f"it is too large: over {size / 2**20:,.0f} MiB in {tensors:,} tensors of parameters")

    from torch.nn.modules.module import register_module_parameter_registration_hook
    from torch.nn.parameter import UninitializedParameter

    hook = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()


@_bounded()
def build(
    name: str,
    options: Mapping[str, Any],
    *,
    classes: int,
    channels: int,
    size: int,
    input_size: int | None = None,
    pretrained: bool = False,
    folder: Path = Path(),
) -> nn.Module:
    """A model for images (B, channels, size, size) that answers logits (B, classes), in training mode.

    Initial weights come from torch's global generator; under `torch.device("meta")` no weights are made.

    Args:
        name: kdbench's own, an installed package's, timm's (also with a tag of pretrained weights, `resnet18.a1_in1k`),
            or `./net.py:function`.
        options: keyword arguments of the model.
        input_size: the model is made for images of this side, and resizes those that it is given.
        pretrained: take timm's pretrained weights.
        folder: where a relative `./net.py` starts.

    Raises:
        UserError: unknown name or option, a value that the model does not take, weights that cannot be had.
    """
    if input_size is not None and input_size != size:
        from kdbench.models.equip import resizing

        shape = {"classes": classes, "channels": channels, "size": input_size}
        return resizing(build(name, options, **shape, pretrained=pretrained, folder=folder), input_size)
    declared, others = plugins.declared("models"), plugins.installed_names("models")
    given = {"classes": classes, "channels": channels, "size": size}
    if not plugins.is_file(name) and name not in declared and name not in others:
        if name.partition(".")[0] not in timm_names():
            hint = did_you_mean(name, (*own_names(), *timm_names()))
            raise UserError(
                f"there is no model '{name}'{hint}; `kdbench show models` lists kdbench's own, `kdbench show models "
                f"'resnet*'` timm's too, and a Python file's function is written ./net.py:build"
            )
        from kdbench.models.timm_models import build as build_timm

        return build_timm(name, options, pretrained=pretrained, **given)
    if pretrained:
        raise UserError(f"model '{name}': pretrained weights exist for timm's models only; give `weights: FILE`")
    if plugins.is_file(name):
        made = _called(plugins.from_file(name, folder), (), given, options, name)
    elif name in others:
        made = _called(plugins.installed_function("models", name), (), given, options, name)
    else:
        module: Any = importlib.import_module(f"kdbench.models.{declared[name]}")
        made = _called(module.build, (name,), given, options, name)
    from kdbench.models.equip import equip, whole

    return equip(whole(made, name, (channels, size, size)), name, classes=classes)


def _called(
    function: Callable[..., Any],
    positional: tuple[Any, ...],
    given: Mapping[str, int],
    options: Mapping[str, Any],
    name: str,
) -> Any:
    """`function(*positional, **given, **options)`, where a mismatch or a refused value becomes a sentence."""
    if taken := sorted(set(options) & set(GIVEN)):
        raise UserError(f"model '{name}': option '{taken[0]}' follows from the data set; remove it")
    signature = inspect.signature(function)
    open_ended = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
    allowed = [p for p in list(signature.parameters)[len(positional) :] if p not in GIVEN]
    for option in () if open_ended else options:
        if option not in allowed:
            known = f"its options are {', '.join(allowed)}" if allowed else "it has no options"
            raise UserError(f"model '{name}' has no option '{option}'{did_you_mean(option, allowed)}; {known}")
    try:
        signature.bind(*positional, **given, **options)
    except TypeError as error:
        raise UserError(
            f"model '{name}': {error}; it is called as function(classes=, channels=, size=, **options)"
        ) from error
    try:
        return function(*positional, **given, **options)
    except Exception as error:
        raise UserError(f"model '{name}' cannot be built: {reason(error)}") from error


def reason(error: BaseException) -> str:
    """The first line of what a library or a user's file said, with the kind of error unless it says enough."""
    said = (str(error).strip() or "no message").splitlines()[0]
    return said if isinstance(error, ValueError | UserError) else f"{type(error).__name__}: {said}"
