"""The public names: lazy, whole, and all that documents, cards and snippets use."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import kdbench

ROOT = Path(__file__).parents[1]
PACKAGE = Path(kdbench.__file__).parent
FENCE = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PAGES = [ROOT / "README.md", *sorted(path for path in (ROOT / "docs").glob("*.md") if path.name != "LOG.md")]


def run(code: str, *arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False, cwd=cwd
    )


def test_importing_kdbench_imports_nothing_heavy() -> None:
    code = (
        "import sys, kdbench; from kdbench import Method, Needs, Refusal, UserError, F, nn, torch, knob, losses\n"
        "print(sorted({'torch', 'numpy', 'pydantic', 'timm', 'pytest'} & set(sys.modules)))"
    )
    done = run(code)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


def test_every_name_is_there_and_no_other() -> None:
    for name in kdbench.__all__:
        assert getattr(kdbench, name) is not None
        assert name in dir(kdbench)
    assert kdbench.build.__module__ == "kdbench.models"
    assert kdbench.Method.__module__ == "kdbench.method"
    with pytest.raises(AttributeError, match="'kdbench' has no attribute 'Methode'"):
        _ = kdbench.Methode  # type: ignore[attr-defined]


def test_type_checkers_see_the_same_names() -> None:
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    seen = {alias.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    places = {name: f"kdbench.{module}" for name, module in kdbench._PLACES.items()}
    assert seen == places | dict.fromkeys(kdbench._MODULES, "kdbench")
    assert set(kdbench.__all__) == set(seen)


def test_a_missing_pytest_is_a_sentence() -> None:
    code = "import sys; sys.modules['pytest'] = None\ntry:\n import kdbench.testing\nexcept ImportError as e: print(e)"
    assert run(code).stdout == (
        "kdbench.testing needs pytest, which is not installed: pip install 'kdbench[testing]'\n"
    )


# what documents use --------------------------------------------------------------------------------------------------
def foreign(code: str) -> set[str]:
    """What a piece of Python takes of kdbench that is no public name."""
    found = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names if alias.name.startswith("kdbench."))
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "kdbench":
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Attribute) and ast.unparse(node).startswith("kdbench."):
            found.add(ast.unparse(node))
    return {name for name in found if name.split(".")[1] not in kdbench.__all__}


def test_foreign_names_are_found() -> None:
    assert foreign("from kdbench.method import Method\nimport kdbench.models, torch") == {
        "kdbench.method.Method",
        "kdbench.models",
    }
    assert foreign("import kdbench.testing\nfrom kdbench.losses import soft_kl\nkdbench.build('x')") == set()


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_documents_use_public_names_alone(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert {name for block in FENCE.findall(text) for name in foreign(block)} == set()
    # In running text: `kdbench.name(` and `kdbench.Name` are Python; entry points and commands are not.
    spoken = set(re.findall(r"`[^`\n]*?\bkdbench\.(\w+)", FENCE.sub("", text)))
    assert spoken <= {*kdbench.__all__, "methods", "models", "data", "tasks"}


def test_snippets_of_cards_use_public_names_alone() -> None:
    text = (PACKAGE / "export" / "snippets.py").read_text(encoding="utf-8")
    strings = [n.value for n in ast.walk(ast.parse(text)) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
    # In quotes it is a key of a file's metadata ("kdbench.preprocessing").
    named = {name for value in strings for name in re.findall(r'(?<!")\bkdbench\.(\w+)', value)}
    assert named == {"build", "architecture"}


# examples that run ---------------------------------------------------------------------------------------------------
def examples() -> dict[str, str]:
    """The Python of docs/*.md, each under its file's name: the class in snake case, or test_*.py."""
    found = {}
    for path in sorted((ROOT / "docs").glob("*.md")):
        for number, block in enumerate(FENCE.findall(path.read_text(encoding="utf-8"))):
            tree = ast.parse(block)
            tested = "kdbench.testing" in block
            (name, *_) = [node.name for node in tree.body if isinstance(node, ast.ClassDef)] or [""]
            snake = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()
            found[f"test_{path.stem.replace('-', '_')}_{number}" if tested else snake] = block
    return found


def test_every_python_example_of_the_documents_works(tmp_path: Path) -> None:
    """Methods pass their contract, and tests pass."""
    written = examples()
    assert {"match_logits", "embed", "halves"} <= set(written)
    for name, block in written.items():
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(block), encoding="utf-8")
    (tmp_path / "test_halves.py").write_text(
        "import kdbench.testing\nfrom halves import Halves\n\n\n"
        "class TestHalves(kdbench.testing.MethodContract):\n    method = Halves()\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(tmp_path)]
    done = subprocess.run([*command, str(tmp_path)], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stdout[-3000:]
    count = re.search(r"(\d+) passed", done.stdout)
    assert count
    assert int(count.group(1)) > 80
