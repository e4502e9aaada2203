"""Features by tap name, read with forward hooks from unmodified models.

A model maps tap names to submodules in its attribute `kd_taps` (see kdbench/models/equip.py): `block1`, ..., `blockN`
in the order of the forward pass, and `pooled`, the input of the classifier.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from math import prod
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from kdbench.batch import Out, Profile, call
from kdbench.data.signature import Signature, signature_of
from kdbench.errors import did_you_mean
from kdbench.method import Refusal
from kdbench.tasks import Task


class Tap(NamedTuple):
    """Where a feature is: what the submodule at `path` answers, or what it is given.

    `channels_last` marks maps that the model keeps as (B, H, W, D); they are handed out as (B, D, H, W).
    """

    path: str
    side: Literal["output", "input"] = "output"
    channels_last: bool = False


def available(model: nn.Module) -> dict[str, Tap]:
    """The model's taps in order; `pooled` is added where only the classifier is known."""
    taps = dict(getattr(model, "kd_taps", {}))
    classifier = getattr(model, "kd_classifier", None)
    if classifier and "pooled" not in taps:
        taps["pooled"] = Tap(classifier, "input")
    return taps


def resolve(model: nn.Module, role: str, names: Sequence[str]) -> dict[str, Tap]:
    """The taps that `names` ask for, once each, under their real names and in the order of the model.

    A name is a tap, `block-1` (the last block; `block-2` the one before), or a glob such as `block*`.

    Raises:
        Refusal: the model has no such tap.
    """
    taps = available(model)
    blocks = [name for name in taps if name.startswith("block")]
    wanted: set[str] = set()
    for name in names:
        number = name.removeprefix("block-")
        if number != name and number.isdecimal():
            found = blocks[-int(number) :][:1] if 0 < int(number) <= len(blocks) else []
        else:
            found = [tap for tap in taps if fnmatchcase(tap, name)]
        if not found:
            has = f"it has {', '.join(taps)}" if taps else "it has none"
            raise Refusal(f"the {role} has no tap '{name}'{did_you_mean(name, taps)}; {has}")
        wanted.update(found)
    return {name: tap for name, tap in taps.items() if name in wanted}


class Tapped:
    """A model that answers `Out`: its logits, and the features of the named taps as they are in the graph.

    The model is not changed: hooks on submodules only listen, during calls of this object alone. Between calls no
    tensor is kept. Deep copies of the model carry the hooks along, where they do nothing. With `compile` the model runs
    under `torch.compile`, features included.

    Raises:
        Refusal: the model has no such tap, or (when called) does not answer tensors there.
    """

    def __init__(self, model: nn.Module, role: str, names: Sequence[str], compile: bool = False) -> None:
        if isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):  # what torch.compile returns
            model, compile = inner, True  # hooks belong on the model itself
        self.model, self.role, self.taps = model, role, resolve(model, role, names)
        self._heard: dict[str, Any] | None = None
        self._handles: list[RemovableHandle] = []
        for name, tap in self.taps.items():
            module = model.get_submodule(tap.path)
            if tap.side == "input":
                self._handles.append(module.register_forward_pre_hook(self._input_hook(name, module)))
            else:
                self._handles.append(module.register_forward_hook(self._output_hook(name, module)))
        self._run: Callable[[Any], Any] = torch.compile(self._listen) if compile else self._listen

    def __call__(self, x: Any) -> Out:
        """`x` as the model takes it, images (B, channels, H, W) -> `Out` with logits (B, classes) and `taps`.

        Blocks are maps (B, D, H, W), tokens (B, L, D) or vectors (B, D); `pooled` is (B, D).
        """
        try:
            answer, heard = self._run(x)
        finally:
            self._heard = None
        if not isinstance(answer, Tensor):
            raise Refusal(
                f"the {self.role} answers a {type(answer).__name__} instead of one tensor of logits; let its "
                f"forward return the logits alone, also in training mode"
            )
        return Out(self.role, answer, {name: self._feature(name, heard, len(answer)) for name in self.taps})

    def close(self) -> None:
        """Remove the hooks; a further call then fails where taps were asked for."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _listen(self, x: Any) -> tuple[Any, dict[str, Any]]:
        heard: dict[str, Any] = {}
        self._heard = heard
        answer = call(self.model, x)
        self._heard = None
        return answer, heard

    # Plain functions, not bound methods: a deep copy of the model (the deployed student) must not copy this object.
    def _input_hook(self, name: str, listened: nn.Module) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            if self._heard is not None and module is listened:
                self._heard[name] = inputs[0] if inputs else None

        return hook

    def _output_hook(self, name: str, listened: nn.Module) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            if self._heard is not None and module is listened:
                self._heard[name] = output

        return hook

    def _feature(self, name: str, heard: dict[str, Any], batch: int) -> Tensor:
        tap = self.taps[name]
        if name not in heard:
            raise Refusal(f"the {self.role}'s tap '{name}' ({tap.path}) is not reached by the forward pass")
        # Blocks may answer several tensors (attention maps, a state): the feature is the first with one row an image.
        answers = heard[name] if isinstance(heard[name], tuple | list) else (heard[name],)
        value = next((v for v in answers if isinstance(v, Tensor) and v.dim() > 1 and len(v) == batch), None)
        if value is None:
            raise Refusal(f"the {self.role}'s tap '{name}' ({tap.path}) answers no tensor with one row for each image")
        if name == "pooled":
            return self._pooled(value, tap)
        return value.permute(0, 3, 1, 2) if tap.channels_last and value.dim() == 4 else value

    def _pooled(self, value: Tensor, tap: Tap) -> Tensor:
        if value.dim() > 2 and prod(value.shape[1:]) not in value.shape[1:]:  # (B, D, 1, 1) and (B, 1, D) flatten
            raise Refusal(
                f"the {self.role}'s classifier ({tap.path}) is given {tuple(value.shape)}: there is no pooled feature"
            )
        return value.flatten(1)


def profile(
    model: nn.Module,
    role: str,
    names: Sequence[str],
    *,
    classes: int,
    examples: int,
    input_shape: Signature | tuple[int, ...],
    task: Task | None = None,
) -> Profile:
    """The shapes of a model's taps, without the batch dimension, from one forward of two empty examples.

    Runs without gradient in eval mode and leaves no trace: random generators, BatchNorm statistics and each module's
    mode are as before. `input_shape` may be the shape of a single input, (channels, H, W) or (F,).

    Raises:
        Refusal: the model has no such tap, or does not answer one row of `classes` logits for each image.
    """
    signature = signature_of(input_shape)
    modes = {module: module.training for module in model.modules()}
    first = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(()))
    devices = [first.device] if first.device.type == "cuda" else []
    tapped = Tapped(model, role, names)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=devices):
            model.eval()
            out = tapped(signature.zeros(2, dtype=first.dtype, device=first.device))
    finally:
        tapped.close()
        for module, mode in modes.items():
            module.training = mode
    rows = out.rows if task is None or len(out.rows) != 2 else task.rows(out.rows)
    if len(out.rows) != 2 or rows.ndim != 2 or rows.shape[1] != classes:
        unit = "image" if task is None else task.unit
        raise Refusal(
            f"the {role} ({type(model).__name__}) answers {tuple(out.rows.shape)} for two {unit}s, instead of "
            f"(2, {classes}): one row of {classes} logits for each"
            if task is None or task.kind == "categorical"
            else f"the {role} ({type(model).__name__}) answers {tuple(out.rows.shape)} for two {unit}s: its rows need "
            f"{classes} numbers each"
        )
    shapes = {name: tuple(value.shape[1:]) for name, value in out.taps.items()}
    return Profile(role, model, classes, shapes, examples, signature.shape)
