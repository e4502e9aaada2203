"""The contract that every method inherits, for each file of kdbench/methods/, by discovery."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kdbench import plugins
from kdbench.method import Method
from kdbench.methods.crd import CRD
from kdbench.testing import MethodContract, Problem, VanishesWhenEqual
from kdbench.testing.method_contract import rounded_terms
from kdbench.testing.watch import FORBIDDEN

NAMES = plugins.builtin_methods()
METHODS: dict[str, Method] = {name: plugins.method_class(name, Path())() for name in NAMES}
PACKAGE = Path(plugins.__file__).parent
VANISHING = (
    "kd", "dkd", "at", "sp", "rkd", "chain", "mutual", "born_again", "active", "progressive", "reverse_kl", "skew_kl",
    "jsd", "logit_mse", "mlkd", "sdd", "ls", "function_matching", "multi_kd",
)  # fmt: skip


class TestEveryMethod(MethodContract):
    cases = METHODS


class TestDivergences(VanishesWhenEqual):
    cases = {name: METHODS[name] for name in VANISHING}  # noqa: RUF012


def test_every_file_is_discovered() -> None:
    expected = "active at born_again chain crd dist dkd fitnet kd label_smoothing mixup mutual none rkd simkd sp"
    assert set(expected.split()) <= set(NAMES)


def test_crd_embeds_in_float32_under_autocast() -> None:
    """Layers in heads may round as the engine says; crd's products with its memory may not."""
    found = rounded_terms(Problem(CRD()))
    for name, value in found[torch.bfloat16].items():
        assert value.item() == pytest.approx(found[torch.float32][name].item(), rel=1e-5)


# imports -------------------------------------------------------------------------------------------------------------
def sources() -> list[Path]:
    return [PACKAGE / "losses.py", *(PACKAGE / "methods" / f"{name}.py" for name in NAMES)]


def test_losses_read_nothing_from_the_device() -> None:
    """Also on branches that no test enters. Of a method's file the contract says so."""
    tree = ast.parse((PACKAGE / "losses.py").read_text())
    assert not {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)} & FORBIDDEN


@pytest.mark.parametrize("path", sources(), ids=lambda p: p.stem)
def test_its_imports_point_one_way(path: Path) -> None:
    """Methods know the vocabulary and each other; a method with mathematics beyond one file brings a module along."""
    allowed = {f"kdbench.{module}" for module in ("batch", "errors", "lazy", "losses", "method", "targets")}
    tree = ast.parse(path.read_text())
    typing_only = {
        node for block in ast.walk(tree) if isinstance(block, ast.If) for item in block.body for node in ast.walk(item)
    }
    for node in ast.walk(tree):
        if node in typing_only:
            continue
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0
            assert node.module
            for module in (
                [f"kdbench.{alias.name}" for alias in node.names] if node.module == "kdbench" else [node.module]
            ):
                assert module in allowed or module.startswith("kdbench.methods") or not module.startswith("kdbench")
                assert not module.startswith("torch")
        elif isinstance(node, ast.Import):
            assert not any(alias.name.startswith(("torch", "kdbench")) for alias in node.names)


def test_importing_every_method_does_not_import_torch() -> None:
    code = (
        "import importlib, sys, kdbench.losses\n"
        f"for name in {NAMES!r}: importlib.import_module('kdbench.methods.' + name)\n"
        "from kdbench import plugins; from pathlib import Path\n"
        f"made = [plugins.method_class(name, Path())() for name in {NAMES!r}]\n"
        "[(m.needs(), m.plan(('teacher', 'student')), hash(m)) for m in made]\n"
        "assert 'torch' not in sys.modules, 'torch was imported'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
