"""Any timm model by name, for small images.

`num_classes`, `in_chans` and, where the model takes it, `img_size` follow from the data set; other keyword arguments
come from the suite's options. Transformers are made for the image size, but keep their patch size: at 32x32,
`vit_tiny_patch16_224` has only 2x2 patches, so give `{patch_size: 4}`. Convolutional networks are as timm makes them,
stem included: at 32x32 a ResNet's last stage is a 1x1 map.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
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
    for option in options:
        if option in NOT_OPTIONS:
            raise UserError(f"timm model '{name}': option '{option}' {NOT_OPTIONS[option]}; remove it from the options")
    arguments = {"num_classes": classes, "in_chans": channels, **options}
    try:
        model = _created(name, {"img_size": size, **arguments}, pretrained)
    except _Unexpected as error:
        if error.option != "img_size" or "img_size" in options:
            raise error.sentence(options) from error
        try:  # a model of any image size
            model = _created(name, arguments, pretrained)
        except _Unexpected as second:
            raise second.sentence(options) from second
    return equip(model, name, classes=classes)


class _Unexpected(Exception):
    """A keyword argument that the model does not take."""

    def __init__(self, name: str, option: str) -> None:
        super().__init__(name, option)
        self.name, self.option = name, option

    def sentence(self, options: Mapping[str, Any]) -> UserError:
        return UserError(f"timm model '{self.name}' takes no option '{self.option}'; remove it, or correct its spelling")


def _created(name: str, arguments: dict[str, Any], pretrained: bool) -> nn.Module:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of timm's own imports
            return timm.create_model(name, pretrained=pretrained, **arguments)
    except TypeError as error:
        if found := re.search(r"(?:unexpected keyword|multiple values for keyword) argument '(\w+)'", str(error)):
            raise _Unexpected(name, found.group(1)) from error
        raise _cannot(name, arguments, error) from error
    except Exception as error:
        if "Invalid pretrained tag" in str(error):
            tags = timm.list_pretrained(name.partition(".")[0] + ".*")
            hint = did_you_mean(name, tags) or (f"; there are {', '.join(tags)}" if tags else "; leave the tag out")
            raise UserError(f"timm has no pretrained weights '{name}'{hint}") from error
        if pretrained and not isinstance(error, ValueError | AssertionError | KeyError | AttributeError):
            raise UserError(
                f"timm model '{name}': its pretrained weights cannot be had ({reason(error)}); run once with access to "
                f"the network so that they are kept, give `weights: FILE`, or leave out `pretrained`"
            ) from error
        raise _cannot(name, arguments, error) from error


def _cannot(name: str, arguments: Mapping[str, Any], error: Exception) -> UserError:
    shown = ", ".join(f"{option}={value!r}" for option, value in arguments.items())
    return UserError(f"timm model '{name}' cannot be built with {shown}: {reason(error)}")
