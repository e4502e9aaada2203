"""The arrows of the design: imports point one way, methods see only the vocabulary, the core names no plug-in."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import kdbench

PACKAGE = Path(kdbench.__file__).parent

# Lower lines may import higher ones; a module may import its own line.
LAYERS = (
    ("__init__", "errors", "lazy", "files", "statistics"),
    ("batch", "method", "pairing", "spec", "result", "card", "streams", "allocator", "lease", "joblog", "processes"),
    (
        "losses",
        "recipe",
        "augment",
        "cutmix",
        "rand_augment",
        "resized_crop",
        "taps",
        "decompositions",
        "flops",
        "memory",
        "provenance",
        "plugins",
        "yamlfile",
        "mpo",
        "matrices",
        "bdistil",
        "scan",
    ),
    (
        "models",
        "data",
        "methods",
        "evaluate",
        "prefixes",
        "stored",
        "task",
        "wording",
        "schema",
        "overrides",
        "tunerules",
        "tunespace",
        "configure",
        "checks",
    ),
    ("suite", "engine", "checkpoint", "standing", "networks"),
    ("job", "board", "anytime"),
    ("space",),
    ("tuning",),
    ("winners", "storages"),
    ("study",),
    ("studies",),
    ("store", "teachers", "cells", "palette"),
    ("picture_cost",),
    ("render", "render_pair", "render_anytime", "render_tuned", "picture", "picture_anytime", "workbench"),
    ("runner", "listing", "progress", "estimate", "ladder", "setting", "deployed"),
    ("worker",),
    ("crew",),
    ("tracks",),
    ("publish",),
    ("upkeep",),
    ("session",),
    ("tuner", "tune_picture"),
    ("tune_order", "tune_screen"),
    ("tune_workers",),
    ("tune_session", "tune_report"),
    ("options",),
    ("cli_tune",),
    ("loading", "formats"),
    ("export",),
    ("cli_export", "cli_ladder", "cli_show"),
    ("cli", "__main__"),
)


def modules() -> dict[str, list[Path]]:
    """First part of the dotted name below kdbench -> its files."""
    found: dict[str, list[Path]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        found.setdefault(path.relative_to(PACKAGE).parts[0].removesuffix(".py"), []).append(path)
    return found


def imports(path: Path, *, lazily: bool = False) -> set[str]:
    """kdbench modules that a file imports when it is imported itself (with `lazily`: ever), outside type checking."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if isinstance(node, ast.FunctionDef) and not lazily:
            return
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "kdbench":
            rest = node.module.split(".")[1:]
            found.update([".".join(rest)] if rest else [alias.name for alias in node.names])
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text(encoding="utf-8")))
    return found


def layer(name: str) -> int:
    base = name.split(".")[0]
    for number, names in enumerate(LAYERS):
        if base in names or any(base.startswith(f"{known}_") for known in names if known in ("scan", "mpo")):
            return number
    raise AssertionError(f"kdbench/{base} has no layer: add it to LAYERS in {Path(__file__).name}")


def test_imports_point_one_way() -> None:
    wrong = [
        f"{path.relative_to(PACKAGE)} imports {target}"
        for name, paths in modules().items()
        for path in paths
        for target in imports(path)
        if target != "__version__" and layer(target) > layer(name)
    ]
    assert wrong == []


def test_the_core_names_no_method() -> None:
    named = [
        f"{path.relative_to(PACKAGE)} imports {target}"
        for name, paths in modules().items()
        if name != "methods"
        for path in paths
        for target in imports(path, lazily=True)
        if target.startswith("methods")
    ]
    assert named == []


@pytest.mark.parametrize("path", sorted((PACKAGE / "methods").glob("[!_]*.py")), ids=lambda path: path.stem)
def test_a_method_sees_the_vocabulary_and_the_losses(path: Path) -> None:
    companions = {"opdf": {"matrices", "mpo", "mpo_shapes"}, "progressive": {"bdistil"}}.get(
        path.stem, set()
    )  # the mathematics of one method, docs/adr/0006
    allowed = {"batch", "method", "losses", "lazy"} | companions
    seen = {target for target in imports(path, lazily=True) if not target.startswith("methods.")}
    assert seen <= allowed


def test_the_loop_holds_no_name_of_a_method() -> None:
    text = (PACKAGE / "engine.py").read_text(encoding="utf-8")
    names = {path.stem for path in (PACKAGE / "methods").glob("[!_]*.py")} - {"none", "at", "active"}  # English words
    words = {word.strip("\"'()[]{}:,.").lower() for word in text.split()}
    assert not names & words
