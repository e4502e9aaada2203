"""Names of models, found without importing torch or timm: what `kdbench check` needs."""

from __future__ import annotations

import importlib.util
import re
from functools import lru_cache
from pathlib import Path

from kdbench import plugins


def own_names() -> tuple[str, ...]:
    """kdbench's own models, in the order of files and of their `NAMES`."""
    return tuple(plugins.declared("models"))


@lru_cache
def timm_names() -> tuple[str, ...]:
    """Functions that timm's source registers as models, sorted; empty where timm is not installed."""
    spec = importlib.util.find_spec("timm")
    names: set[str] = set()
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        for path in Path(folder, "models").glob("*.py"):
            names.update(re.findall(r"^@register_model\s+def (\w+)", path.read_text(encoding="utf-8"), re.MULTILINE))
    return tuple(sorted(names))


def known(name: str) -> bool:
    """Whether `name` is one of kdbench's own models or one of timm's, with or without a tag of pretrained weights.

    The tag itself (`a1_in1k` of `resnet18.a1_in1k`) is checked by timm when the model is built.
    """
    return name in plugins.declared("models") or name.partition(".")[0] in timm_names()
