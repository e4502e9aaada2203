"""The house: imports point one way, methods see only the vocabulary, the core names no plug-in."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import kdbench

PACKAGE = Path(kdbench.__file__).parent
ROOMS = [
    "door",
    "methods",
    "tasks",
    "suite",
    "data",
    "models",
    "train",
    "testing",
    "run",
    "board",
    "export",
    "tune",
    "cli",
]


def room(path: Path) -> str:
    """The room of a file; files at the top of the package are the door."""
    parts = path.relative_to(PACKAGE).parts
    return parts[0] if len(parts) > 1 else "door"


def imports(path: Path) -> set[str]:
    """kdbench modules that a file imports, ever, below `kdbench.`; outside type checking."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "kdbench":
            rest = node.module.split(".")[1:]
            found.update([".".join(rest)] if rest else [alias.name for alias in node.names])
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text(encoding="utf-8")))
    return found


def target_room(target: str) -> str:
    first = target.split(".")[0]
    return first if (PACKAGE / first).is_dir() else "door"


FILES = [path for path in sorted(PACKAGE.rglob("*.py")) if path.name != "__main__.py"]


def test_imports_point_one_way() -> None:
    order = ROOMS.index
    assert [(p.name, t) for p in FILES for t in imports(p) if order(target_room(t)) > order(room(p))] == []


def test_nothing_in_the_product_imports_its_tests() -> None:
    assert [p.name for p in FILES if room(p) != "testing" for t in imports(p) if target_room(t) == "testing"] == []
    found = [p.name for p in FILES if "import pytest" in p.read_text(encoding="utf-8") and room(p) != "testing"]
    assert found == []


def test_every_file_has_a_room_and_no_two_modules_differ_by_an_ending_alone() -> None:
    assert {room(path) for path in FILES} == set(ROOMS)
    stems = sorted({path.stem for path in FILES if path.name != "__init__.py"})
    assert [(a, b) for a in stems for b in stems if b in (a + "s", a + "ed", a + "er", a + "ing")] == []


def test_the_core_names_no_method() -> None:
    named = [(p.name, t) for p in FILES if room(p) != "methods" for t in imports(p) if t.startswith("methods")]
    assert named == []


@pytest.mark.parametrize("path", sorted((PACKAGE / "methods").glob("[!_]*.py")), ids=lambda path: path.stem)
def test_a_method_sees_the_vocabulary_and_the_losses(path: Path) -> None:
    """What serves one method alone stands beside it, in a file that begins with an underscore."""
    seen = {t for t in imports(path) if not t.startswith("methods.") and t != "methods"}
    assert seen <= {"batch", "method", "losses", "lazy", "targets"}


def test_the_loop_holds_no_name_of_a_method() -> None:
    text = (PACKAGE / "train" / "engine.py").read_text(encoding="utf-8")
    names = {path.stem for path in (PACKAGE / "methods").glob("[!_]*.py")} - {
        "none",
        "at",
        "active",
        "one",
    }  # English words
    words = {word.strip("\"'()[]{}:,.").lower() for word in text.split()}
    assert not names & words
