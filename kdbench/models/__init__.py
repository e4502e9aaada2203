"""Models: kdbench's own, any timm model by name, those of installed packages, or a function in the user's Python file.

Each file here that declares `NAMES` builds some models: `build(name, *, classes, channels, size, **options)`. A suite
may also name a function of its own, `./net.py:build`, or an installed package's by the entry point `kdbench.models`;
both are called as `build(classes=, channels=, size=, **options)`.

That is the form for square images. A function that takes other inputs as well asks for any of `outputs` (columns of
the answer's rows: classes, or numbers), `features` (how many numbers an example has) and `shape` (of an example),
without defaults, and is called with those instead.

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

    from kdbench.data.signature import Signature

__all__ = ["build", "own_names"]

MOST_TENSORS = 20_000  # of parameters; networks of today have hundreds
GIVEN = ("classes", "channels", "size")  # follow from the data set; options may not set them
OTHERS = ("outputs", "features", "shape")  # too, where a function asks for them


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
    channels: int | None = None,
    size: int | None = None,
    signature: Signature | None = None,
    input_size: int | None = None,
    pretrained: bool = False,
    folder: Path = Path(),
) -> nn.Module:
    """A model that answers logits (B, classes), or as many numbers, in training mode.

    Its inputs are images (B, channels, size, size), or what `signature` says.

    Initial weights come from torch's global generator; under `torch.device("meta")` no weights are made.

    Args:
        name: kdbench's own, an installed package's, timm's (also with a tag of pretrained weights, `resnet18.a1_in1k`),
            or `./net.py:function`.
        options: keyword arguments of the model.
        input_size: the model is made for images of this side, and resizes those that it is given.
        pretrained: take timm's pretrained weights.
        folder: where a relative `./net.py` starts.

    Raises:
        UserError: unknown name or option, a value that the model does not take, weights that are unavailable; a model
            of images for other inputs.
    """
    from kdbench.data.signature import Signature

    signature = signature or Signature.of((channels or 1, size or 1, size or 1))
    square = len(signature.shape) == 3 and signature.shape[1] == signature.shape[2]
    if input_size is not None and (not square or input_size != signature.shape[1]):
        from kdbench.models.equip import resizing

        if not square:
            raise UserError(f"model '{name}': input_size resizes square images, and these examples are {signature}")
        smaller = Signature.of((signature.shape[0], input_size, input_size))
        made = build(name, options, classes=classes, signature=smaller, pretrained=pretrained, folder=folder)
        return resizing(made, input_size)
    declared, others = plugins.declared("models"), plugins.installed_names("models")
    given: dict[str, Any] = {"outputs": classes, "features": signature.features, "shape": signature.shape}
    if square:
        given |= {"classes": classes, "channels": signature.shape[0], "size": signature.shape[1]}
    if not plugins.is_file(name) and name not in declared and name not in others:
        if name.partition(".")[0] not in timm_names():
            hint = did_you_mean(name, (*own_names(), *timm_names()))
            raise UserError(
                f"there is no model '{name}'{hint}; `kdbench show models` lists kdbench's own, `kdbench show models "
                f"'resnet*'` timm's too, and a Python file's function is written ./net.py:build"
            )
        from kdbench.models.timm_models import build as build_timm

        if not square:
            raise _of_images(name, given)
        return build_timm(name, options, pretrained=pretrained, **{word: given[word] for word in GIVEN})
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

    return equip(whole(made, name, signature), name, classes=classes)


def _called(
    function: Callable[..., Any],
    positional: tuple[Any, ...],
    words: Mapping[str, Any],
    options: Mapping[str, Any],
    name: str,
) -> Any:
    """`function(*positional, **given, **options)`, where a mismatch or a refused value becomes a sentence.

    `given` are the `words` that the function asks for, or else those of square images.
    """
    signature = inspect.signature(function)
    asked = [word for word in OTHERS if word in signature.parameters and signature.parameters[word].default is _NONE]
    following = {*asked, *(word for word in GIVEN if not asked or word in signature.parameters)}
    if taken := sorted(set(options) & following):
        raise UserError(f"model '{name}': option '{taken[0]}' follows from the data set; remove it")
    if following - set(words):
        raise _of_images(name, words)
    given = {word: words[word] for word in words if word in following}
    open_ended = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
    allowed = [p for p in list(signature.parameters)[len(positional) :] if p not in following]
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


_NONE = inspect.Parameter.empty


def _of_images(name: str, words: Mapping[str, Any]) -> UserError:
    examples = "x".join(map(str, words["shape"])) or "several inputs"
    return UserError(
        f"model '{name}' takes square images, and the examples of this data set are {examples}: use mlp, or fcn for "
        "maps, or a model of your own (./net.py:build) that asks for `shape` or `features`"
    )


def reason(error: BaseException) -> str:
    """The first line of what a library or a user's file said, with the kind of error unless it says enough."""
    said = (str(error).strip() or "no message").splitlines()[0]
    return said if isinstance(error, ValueError | UserError) else f"{type(error).__name__}: {said}"
