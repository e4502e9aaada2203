"""A role's network as the suite describes it, made for a data set; and its size."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from kdbench import models
from kdbench.data import DataSet
from kdbench.models import layers, size
from kdbench.models.box import Box
from kdbench.suite.fields import Model

if TYPE_CHECKING:
    from torch import nn


def network(spec: Model, data: DataSet, folder: Path, *, pretrained: bool = False) -> nn.Module:
    """The network with initial weights from torch's global generator, on the CPU, in training mode.

    Args:
        folder: the suite's, where a relative `./net.py` starts.
        pretrained: take timm's pretrained weights.

    Raises:
        UserError: see `kdbench.models.build`.
    """
    if spec.answers is not None:
        return Box(len(data.train.labels), data.classes)
    made = models.build(
        spec.model,
        spec.options,
        classes=data.classes,
        signature=data.signature,
        input_size=spec.input_size,
        pretrained=pretrained,
        folder=folder,
    )
    return made if spec.layers is None else layers.keep(made, spec.layers, data.shape, f"{spec.init} {spec.model}")


@dataclass
class Sizes:
    """Parameters and MACs of networks for one data set and one suite's folder, each counted once.

    Networks are built on the CPU, because initialisers on the meta device load torch's compiler.
    """

    data: DataSet
    folder: Path
    counted: dict[str, tuple[int, int]] = field(default_factory=dict)

    def of(self, spec: Model) -> tuple[int, int]:
        """(parameters, MACs of one example), 0 where they are unknown. Raises UserError where it cannot be built."""
        if spec.answers is not None:
            return 0, 0
        key = json.dumps([spec.model, spec.options, spec.input_size, spec.layers], sort_keys=True, default=str)
        if key not in self.counted:
            self.counted[key] = size.count(network(spec, self.data, self.folder), self.data.signature)
        return self.counted[key]
