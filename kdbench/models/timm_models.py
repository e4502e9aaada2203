"""Any timm model by name, for small images.

`num_classes`, `in_chans` and, where the model takes it, `img_size` follow from the data set; other keyword arguments
come from the suite's options. Transformers are made for the image size, but keep their patch size: at 32x32,
`vit_tiny_patch16_224` has only 2x2 patches, so give `{patch_size: 4}`. Convolutional networks are as timm makes them,
stem included: at 32x32 a ResNet's last stage is a 1x1 map.
"""

from __future__ import annotations

import inspect
import re
import warnings
from collections.abc import Mapping
from textwrap import shorten
from typing import Any

import timm
from torch import nn

from kdbench.errors import UserError, did_you_mean
from kdbench.models import reason
from kdbench.models.equip import equip

NOT_OPTIONS = {
    "num_classes": "follows from the data set",
    "in_chans": "follows from the data set",
    "pretrained": "is written beside the model's options: `pretrained: true`",
    "checkpoint_path": "is written beside the model's options: `weights: FILE`",
    "features_only": "would leave the model without a classifier",
    "scriptable": "is not supported",
    "exportable": "is not supported",
}


def build(
    name: str, options: Mapping[str, Any], *, classes: int, channels: int, size: int, pretrained: bool = False
) -> nn.Module:
    """See `kdbench.models.build`.

    Raises:
        UserError: an unknown option or tag, a refused value, or pretrained weights that cannot be had.
    """
    model, _ = create(name, options, classes=classes, channels=channels, size=size, pretrained=pretrained)
    return equip(model, name, classes=classes)


def create(
    name: str, options: Mapping[str, Any], *, classes: int, channels: int, size: int, pretrained: bool = False
) -> tuple[nn.Module, dict[str, Any]]:
    """timm's model, and the keyword arguments with which `timm.create_model` made it. Raises as `build`."""
    for option in options:
        if option in NOT_OPTIONS:
            raise UserError(f"timm model '{name}': option '{option}' {NOT_OPTIONS[option]}; remove it from the options")
    arguments = {"num_classes": classes, "in_chans": channels, **options}
    sized = {"img_size": size, **arguments}
    try:
        try:
            return _created(name, sized, pretrained), sized
        except _Unexpected as error:
            if error.option != "img_size" or "img_size" in options:
                raise
            return _created(name, arguments, pretrained), arguments  # a model for any image size
    except _Unexpected as error:
        if error.option not in options or "multiple values" in str(error):  # the latter: the name itself sets it
            raise _cannot(name, arguments, error) from error
        raise UserError(
            f"timm model '{name}' takes no option '{error.option}'{did_you_mean(error.option, _parameters(name))}; "
            f"remove it, or correct its spelling"
        ) from error


class _Unexpected(TypeError):
    """A keyword argument that the model does not take."""

    def __init__(self, option: str, said: str) -> None:
        super().__init__(said)
        self.option = option


def _parameters(name: str) -> set[str]:
    """Keyword arguments of the classes in the model's file: candidates for what the user meant."""
    module = inspect.getmodule(timm.model_entrypoint(name.partition(".")[0]))
    classes = [c for c in vars(module).values() if inspect.isclass(c) and issubclass(c, nn.Module)]
    return {parameter for c in classes for parameter in inspect.signature(c).parameters}


def _created(name: str, arguments: dict[str, Any], pretrained: bool) -> nn.Module:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of timm's own imports
            return timm.create_model(name, pretrained=pretrained, **arguments)
    except TypeError as error:
        if found := re.search(r"(?:unexpected|multiple values for) keyword argument\S* \[?'(\w+)'", str(error)):
            raise _Unexpected(found.group(1), str(error)) from error
        raise _cannot(name, arguments, error) from error
    except Exception as error:
        if "Invalid pretrained tag" in str(error):
            tags = timm.list_pretrained(name.partition(".")[0] + ".*")
            hint = did_you_mean(name, tags) or (f"; there are {', '.join(tags)}" if tags else "; leave the tag out")
            raise UserError(f"timm has no pretrained weights '{name}'{hint}") from error
        if pretrained and not isinstance(error, ValueError | AssertionError | KeyError | AttributeError):
            raise UserError(
                f"timm model '{name}': its pretrained weights cannot be had ({shorten(reason(error), 100)}); run once "
                f"with access to the network so that they are kept, give `weights: FILE`, or leave out `pretrained`"
            ) from error
        raise _cannot(name, arguments, error) from error


def _cannot(name: str, arguments: Mapping[str, Any], error: Exception) -> UserError:
    shown = ", ".join(f"{option}={value!r}" for option, value in arguments.items())
    return UserError(f"timm model '{name}' cannot be built with {shown}: {reason(error)}")
