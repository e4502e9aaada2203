"""The contract that every model inherits, for one of each file in kdbench/models/. timm's: test_timm_models.py."""

from __future__ import annotations

from kdbench import plugins
from kdbench.testing import ModelContract

FILES = {module: name for name, module in reversed(plugins.declared("models").items())}  # the first that each names


class TestEveryFile(ModelContract):
    cases = {module: name for module, name in FILES.items() if name != "fcn"}  # noqa: RUF012
    shape = (3, 16, 16)


class TestMaps(ModelContract):
    model = "fcn"
    maps = True
    shape = (3, 16, 16)
