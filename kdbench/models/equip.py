"""Tap rules: which submodules of a model are `block1`..`blockN`, and which is the classifier.

A model that sets `kd_taps` and `kd_classifier` is taken at its word. Otherwise:

- classifier: the last linear layer (or else convolution) with as many outputs as there are classes, inside what timm's
  `get_classifier()` names or else in the whole model;
- blocks: timm's `feature_info`, less the stem; else the composite children of the model (not single layers) that come
  before the one with the classifier. A lone `nn.Sequential` or `nn.ModuleList` among them stands for its children.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.batch import call
from kdbench.data.signature import Signature
from kdbench.errors import UserError
from kdbench.models.taps import Tap

# How the names of what comes before the first stage begin, in timm's families.
_STEMS = (
    *("stem", "conv_stem", "cell_stem", "conv0", "conv_0", "conv1", "bn1", "act1", "layer0", "first_conv"),
    *("patch_embed", "pos_embed", "features.norm0", "features.conv1_1"),
)


def whole(model: Any, name: str, signature: Signature) -> nn.Module:
    """The model with all its parameters in being: lazy ones are made by a first pass over two empty examples.

    Args:
        signature: of its inputs.

    Raises:
        UserError: it is no `nn.Module`, its lazy parameters cannot be made, or it keeps a state that is no tensor.
    """
    if not isinstance(model, nn.Module):
        raise UserError(f"model '{name}' must return a torch.nn.Module, not {type(model).__name__}")
    if _lazy(model):
        modes = {module: module.training for module in model.modules()}
        try:
            with torch.no_grad():
                call(model.eval(), signature.zeros(2))
        except Exception as error:
            said = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UserError(
                f"model '{name}' has lazy layers, and its first pass over {signature} inputs failed: {said}"
            ) from error
        for module, mode in modes.items():
            module.training = mode
        if unmade := _lazy(model):
            raise UserError(f"model '{name}': its forward pass never reaches the lazy parameter {unmade[0]}; remove it")
    for key, value in model.state_dict().items():
        if not isinstance(value, Tensor):
            raise UserError(
                f"model '{name}' keeps a state that is no tensor ('{key}', a {type(value).__name__}, of "
                f"get_extra_state), which files of weights cannot hold: keep it in a buffer, or leave it out of the "
                f"state dict"
            )
    return model


def _lazy(model: nn.Module) -> list[str]:
    named = (*model.named_parameters(), *model.named_buffers())
    return [name for name, value in named if torch.nn.parameter.is_lazy(value)]


def equip(model: nn.Module, name: str, *, classes: int) -> nn.Module:
    """Set `kd_taps` and `kd_classifier` on a model where it does not do so itself; check those that it sets.

    Raises:
        UserError: it names submodules that it lacks, or has no layer with `classes` outputs.
    """
    classifier = getattr(model, "kd_classifier", None) or classifier_path(model, classes)
    if classifier is None:
        raise UserError(
            f"model '{name}' has no linear layer with {classes} outputs: build it for {classes} classes, or set "
            f"`kd_classifier` to the path of its classifier"
        )
    declared = getattr(model, "kd_taps", None)
    taps = dict(_blocks(model, classifier)) if declared is None else _declared(declared, name)
    pooled = taps.pop("pooled", Tap(classifier, "input"))
    taps["pooled"] = pooled  # last, as it comes last in the forward pass
    modules = dict(model.named_modules())
    for what, path in {**{f"tap '{tap}'": value.path for tap, value in taps.items()}, "classifier": classifier}.items():
        if path not in modules:
            raise UserError(f"model '{name}': its {what} is '{path}', which is not one of its submodules")
    model.__dict__.update(kd_taps=taps, kd_classifier=classifier)  # plain attributes, not modules
    return model


def resizing(model: nn.Module, size: int) -> nn.Module:
    """The same module, which first resizes images (B, channels, H, W) to `size` x `size`: bilinear, antialiased.

    A forward hook: parameters, their names and taps stay; copies of the model resize too.
    """
    model.register_forward_pre_hook(Resize(size))
    return model


@dataclass(frozen=True)
class Resize:
    """The hook of `resizing`."""

    size: int

    def __call__(self, model: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        x, *rest = inputs
        if x.shape[-2:] == (self.size, self.size):
            return inputs
        small = F.interpolate(x, (self.size, self.size), mode="bilinear", antialias=True)
        if x.is_contiguous(memory_format=torch.channels_last):
            small = small.contiguous(memory_format=torch.channels_last)
        return (small, *rest)


def classifier_path(model: nn.Module, classes: int) -> str | None:
    """The path of the final classifier, or None."""
    paths = {module: path for path, module in model.named_modules()}
    getter: Any = getattr(model, "get_classifier", None)
    stated = getter() if callable(getter) else None
    stated = stated[0] if isinstance(stated, tuple) else stated  # distilled DeiT: class head, then distillation head
    for root in (stated, model):
        modules = [m for m in root.modules() if m in paths] if isinstance(root, nn.Module) else []
        linear = [m for m in modules if isinstance(m, nn.Linear) and m.out_features == classes]
        convs = [m for m in modules if isinstance(m, nn.Conv2d) and m.out_channels == classes]
        if found := linear or convs:
            return paths[found[-1]]
    return None


def _declared(taps: Any, name: str) -> dict[str, Tap]:
    if not isinstance(taps, Mapping):
        raise UserError(f"model '{name}': kd_taps must map tap names to paths of submodules, not {type(taps).__name__}")
    found = {}
    for tap, value in taps.items():
        if isinstance(value, str):
            value = Tap(value)
        if not isinstance(value, Tap):
            raise UserError(
                f"model '{name}': kd_taps['{tap}'] must be the path of a submodule, or a kdbench.models.taps.Tap"
            )
        found[str(tap)] = value
    return found


def _blocks(model: nn.Module, classifier: str) -> Iterator[tuple[str, Tap]]:
    # timm's hierarchical transformers say so where their maps are (B, H, W, D); two families do not.
    stated = str(getattr(model, "output_fmt", "")).upper().endswith("NHWC")
    channels_last = stated or type(model).__name__ in ("VOLO", "VisionTransformerSAM")
    paths = _stated_stages(model) or _composite_children(model, classifier)
    for number, path in enumerate(paths, 1):
        yield f"block{number}", Tap(path, channels_last=channels_last)


def _stated_stages(model: nn.Module) -> list[str]:
    info = getattr(model, "feature_info", None)
    info = getattr(info, "info", info)  # a list, or timm's FeatureInfo around it
    if not isinstance(info, list | tuple) or not all(isinstance(i, dict) and "module" in i for i in info):
        return []
    modules = dict(model.named_modules())
    paths = list(dict.fromkeys(str(entry["module"]) for entry in info))
    paths = [path for path in paths if path in modules and not path.startswith(_STEMS)]
    if "" in paths or len(paths) < 2:
        return []
    # Some families (VGG) name the layers before which the resolution changes, not stages.
    return [path for path in paths if any(True for _ in modules[path].children())] or paths


def _composite_children(model: nn.Module, classifier: str, prefix: str = "") -> list[str]:
    stages: list[tuple[str, nn.Module]] = []
    for child, module in model.named_children():
        path = prefix + child
        if classifier == path or classifier.startswith(path + "."):
            if not stages and not isinstance(module, nn.Linear):
                return _composite_children(module, classifier, path + ".")  # the whole network is in this child
            break
        if child.startswith(_STEMS):
            continue
        if any(True for _ in module.parameters()) and any(True for _ in module.children()):
            stages.append((path, module))
    while len(stages) == 1 and isinstance(stages[0][1], nn.Sequential | nn.ModuleList):
        path, module = stages[0]
        inner = [(f"{path}.{name}", m) for name, m in module.named_children() if any(True for _ in m.children())]
        if not inner:
            break
        stages = inner
    return [path for path, _ in _called_ones(stages)]


def _called_ones(stages: list[tuple[str, nn.Module]]) -> Iterator[tuple[str, nn.Module]]:
    """An `nn.ModuleList` is never called itself: its members are."""
    for path, module in stages:
        if isinstance(module, nn.ModuleList):
            yield from _called_ones([(f"{path}.{name}", child) for name, child in module.named_children()])
        else:
            yield path, module
