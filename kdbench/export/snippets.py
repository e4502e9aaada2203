"""How an exported file is loaded: the lines of Python in its card, and the very same done to check it."""

from __future__ import annotations

from pathlib import PurePath
from typing import Any

import timm
import torch
from torch import nn

from kdbench.export.card import Card
from kdbench.export.deployed import Deployed
from kdbench.models.equip import resizing
from kdbench.models.timm_models import create

PT2 = """
import torch
model = torch.export.load("{name}").module()
logits = model(pixels)  # uint8, any size of batch
"""
ONNX = """
import onnxruntime
session = onnxruntime.InferenceSession("{name}")
(logits,) = session.run(["logits"], {{"pixels": pixels}})  # a numpy array, uint8, any size of batch
"""
WEIGHTS = """
import {library}, safetensors.torch, torch
model = {made}.eval()
model.load_state_dict(safetensors.torch.load_file("{name}"))
mean, std = (torch.tensor(v).view(-1, 1, 1) for v in ({mean}, {std}))
x = (pixels / 255 - mean) / std
logits = model(x)
"""
RESIZE = """
x = torch.nn.functional.interpolate(x, ({side}, {side}), mode="bilinear", antialias=True)
logits = model(x)
"""
# Where the data set is of image files: from one of them to the name of a class, by what the file itself says.
ABOUT = {
    ".pt2": """
import json, numpy, torch
from PIL import Image
extra = {{"kdbench.preprocessing": ""}}
torch.export.load("{name}", extra_files=extra)
about = json.loads(extra["kdbench.preprocessing"])
""",
    ".onnx": """
import json, numpy, onnxruntime
from PIL import Image
about = json.loads(onnxruntime.InferenceSession("{name}").get_modelmeta().custom_metadata_map["kdbench.preprocessing"])
""",
    ".safetensors": """
import json, numpy, safetensors, torch
from PIL import Image
with safetensors.safe_open("{name}", "pt") as file:
    about = json.loads(file.metadata()["kdbench.preprocessing"])
""",
}
IMAGE = """
image, size = Image.open("photo.jpg").convert("RGB"), about["size"]
sides = [about["resize"] * side // min(image.size) for side in image.size]
image = image.resize(sides, Image.Resampling[about["interpolation"].upper()])
left, top = (round((side - size) / 2) for side in image.size)
image = image.crop((left, top, left + size, top + size))
pixels = numpy.asarray(image).transpose(2, 0, 1)[None]  # uint8, (1, 3, size, size)
"""
TENSOR = """
pixels = torch.tensor(pixels)
"""
NAMED = """
print(about["class_names"][int(logits.argmax())])
"""


def empty(found: Deployed, classes: int, channels: int, size: int) -> nn.Module:
    """A module that takes the weights: timm's own where the network is timm's, as its user would make it."""
    if not _is_timm(found):
        return found.fresh()
    model: nn.Module = timm.create_model(found.spec.model, **_arguments(found, classes, channels, size))
    return resizing(model, found.spec.input_size) if found.spec.input_size else model


def lines(name: str, found: Deployed, card: Card, suite: str, seed: int | None) -> list[str]:
    """Python that loads the file `name` and answers `logits` for `pixels`.

    Where the data set is of image files: from photo.jpg to the name of a class.

    Args:
        suite: name of the suite file.
        seed: of the job, where it is not the suite's first.
    """
    suffix = PurePath(name).suffix
    text = _answer(name, suffix, found, card, suite, seed)
    if card.preprocessing.resize is not None:
        tensor = "" if suffix == ".onnx" else TENSOR
        text = "".join([ABOUT[suffix].format(name=name), IMAGE, tensor, text, NAMED])
    return [line for line in text.split("\n") if line]


def _answer(name: str, suffix: str, found: Deployed, card: Card, suite: str, seed: int | None) -> str:
    """From `pixels` to `logits`."""
    if suffix == ".pt2":
        return PT2.format(name=name)
    if suffix == ".onnx":
        return ONNX.format(name=name)
    shape, spec = card.preprocessing, found.spec
    if _is_timm(found):
        arguments = _arguments(found, shape.classes, shape.channels, shape.size)
        library, made = "timm", f'timm.create_model("{spec.model}"{_listed(arguments)})'
    elif found.plain:
        given: dict[str, Any] = {"classes": shape.classes, "channels": shape.channels, "size": shape.size}
        given |= {"input_size": spec.input_size} if spec.input_size else {}
        network = card.networks[0]
        library, made = "kdbench", f'kdbench.build("{network.model}", {dict(network.options)!r}'
        made += f"{_listed(given)})"
    else:
        library, made = "kdbench", f'kdbench.architecture("{suite}", "{card.pair}/{card.label}"'
        options: dict[str, Any] = {} if seed is None else {"seed": seed}
        options |= {"tuned": "leaderboard"} if card.track == "tuned" else {}
        made += f"{_listed(options)})"
    text = WEIGHTS.format(library=library, made=made, name=name, mean=list(shape.mean), std=list(shape.std))
    if _is_timm(found) and (side := spec.input_size) not in (None, shape.size):
        text = text.replace("\nlogits = model(x)\n", RESIZE.format(side=side))
    return text


def _is_timm(found: Deployed) -> bool:
    return found.plain and found.origin == "timm"


def _arguments(found: Deployed, classes: int, channels: int, size: int) -> dict[str, Any]:
    """The keyword arguments of `timm.create_model`."""
    spec = found.spec
    with torch.device("meta"):
        return create(spec.model, spec.options, classes=classes, channels=channels, size=spec.input_size or size)[1]


def _listed(arguments: dict[str, Any]) -> str:
    return "".join(f", {name}={value!r}" for name, value in arguments.items())
