from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from kdbench import installed, plugins
from kdbench.errors import UserError
from kdbench.method import Method

HEAD = """
from __future__ import annotations
from dataclasses import dataclass
from kdbench.method import Method, knob
"""
BODY = """
@dataclass(frozen=True)
class {name}(Method):
    t: float = knob(4.0)
    def loss(self, learner, teachers, batch, heads):
        return {{}}
"""


def write(folder: Path, name: str, *classes: str, tail: str = "") -> None:
    (folder / name).write_text(HEAD + "".join(BODY.format(name=cls) for cls in classes) + tail)


def sentence(name: str, folder: Path) -> str:
    with pytest.raises(LookupError) as caught:
        plugins.method_class(name, folder)
    return str(caught.value.args[0])


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[object]:
    """Pretend that entry points are installed: install(("name", "module:Class"), kind="methods")."""
    monkeypatch.syspath_prepend(tmp_path)
    groups: dict[str, list[EntryPoint]] = {}

    def pretend(*points: tuple[str, str], kind: str = "methods") -> None:
        groups[f"kdbench.{kind}"] = [EntryPoint(name, value, f"kdbench.{kind}") for name, value in points]
        monkeypatch.setattr(installed, "entry_points", lambda group: groups.get(group, []))
        plugins.forget()

    yield pretend
    plugins.forget()


def test_a_method_file_gives_its_only_method(tmp_path: Path) -> None:
    write(tmp_path, "mine.py", "Anything")
    cls = plugins.method_class("./mine.py", tmp_path)
    assert (cls.__name__, cls().t) == ("Anything", 4.0)  # type: ignore[attr-defined]
    assert plugins.method_class("./mine.py", tmp_path) is cls  # executed once
    assert cls.__module__.rpartition(".")[2] == "mine"


def test_a_value_of_a_method_file_survives_pickle(tmp_path: Path) -> None:
    write(tmp_path, "mine.py", "Mine")
    value = plugins.method_class("./mine.py", tmp_path)()
    assert pickle.loads(pickle.dumps(value)) == value


def test_a_changed_method_file_is_read_again(tmp_path: Path) -> None:
    write(tmp_path, "mine.py", "Mine")
    before = plugins.method_class("./mine.py", tmp_path)
    write(tmp_path, "mine.py", "Other")
    after = plugins.method_class("./mine.py", tmp_path)
    assert (before.__name__, after.__name__, before.__module__) == ("Mine", "Other", after.__module__)


def test_files_of_one_name_in_two_folders_are_two_modules(tmp_path: Path) -> None:
    for place in ("a", "b"):
        (tmp_path / place).mkdir()
        write(tmp_path / place, "mine.py", place.upper())
    assert [plugins.method_class(f"./{p}/mine.py", tmp_path).__name__ for p in "ab"] == ["A", "B"]


def test_of_several_methods_the_one_named_like_the_file_is_meant(tmp_path: Path) -> None:
    write(tmp_path, "my_method.py", "Helper", "MyMethod", "_Private")
    assert plugins.method_class("./my_method.py", tmp_path).__name__ == "MyMethod"
    write(tmp_path, "two.py", "A", "B")
    assert sentence("./two.py", tmp_path) == (
        "'./two.py' has several methods (A, B): name one like the file, or split it"
    )


def test_an_imported_class_is_not_the_files_own(tmp_path: Path) -> None:
    write(tmp_path, "mine.py", tail="from kdbench.method import Wrapper\n")
    expected = "'./mine.py' has no method: define a subclass of kdbench.Method with a `loss`"
    assert sentence("./mine.py", tmp_path) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x = 1\ny = x / 0\n", "'./bad.py' cannot be loaded: ZeroDivisionError: division by zero (bad.py, line 2)"),
        ("def f(:\n", "'./bad.py' cannot be loaded: SyntaxError: invalid syntax (bad.py, line 1)"),
        ("import no_such_module\n", "ModuleNotFoundError: No module named 'no_such_module' (bad.py, line 1)"),
        ("import sys\nsys.exit(3)\n", "'./bad.py' cannot be loaded: SystemExit: 3 (bad.py, line 2)"),
    ],
)
def test_a_broken_file_is_one_sentence(tmp_path: Path, text: str, expected: str) -> None:
    (tmp_path / "bad.py").write_text(text)
    said = sentence("./bad.py", tmp_path)
    assert said.endswith(expected)
    assert "\n" not in said


def test_unknown_names_have_neighbours(tmp_path: Path, install) -> None:  # type: ignore[no-untyped-def]
    install(("extra", "nowhere:Extra"))
    write(tmp_path, "mine.py", "Mine")
    assert sentence("exta", tmp_path) == "unknown method 'exta' (did you mean 'extra'?)"
    assert sentence("./mien.py", tmp_path) == "no such file: ./mien.py (did you mean './mine.py'?)"


def test_installed_methods(tmp_path: Path, install) -> None:  # type: ignore[no-untyped-def]
    write(tmp_path, "kdb_plug.py", "Plug", "Second")
    write(tmp_path, "kdb_single.py", "Single")
    (tmp_path / "kdb_broken.py").write_text("\nraise RuntimeError('no\\nluck')\n")
    install(
        ("plug", "kdb_plug:Plug"),
        ("single", "kdb_single"),
        ("broken", "kdb_broken:X"),
        ("absent", "kdb_plug:Nope"),
        ("wrong", "kdb_plug:dataclass"),
    )
    assert plugins.method_names() == (*plugins.builtin_methods(), "absent", "broken", "plug", "single", "wrong")
    assert issubclass(plugins.method_class("plug", tmp_path), Method)
    assert plugins.method_class("single", tmp_path).__name__ == "Single"
    assert sentence("broken", tmp_path) == (
        "method 'broken' of module kdb_broken cannot be loaded: RuntimeError: no luck (kdb_broken.py, line 2)"
    )
    for name, value in (("absent", "kdb_plug:Nope"), ("wrong", "kdb_plug:dataclass")):
        assert sentence(name, tmp_path) == (
            f"method '{name}' of module kdb_plug cannot be loaded: {value} is not a subclass of kdbench.Method"
        )


def test_a_name_of_kdbench_wins_with_a_sentence(install) -> None:  # type: ignore[no-untyped-def]
    install(("kd", "a:KD"), ("x", "b:X"), ("x", "c:X"))
    assert plugins.method_names() == (*plugins.builtin_methods(), "x")
    assert plugins.conflicts() == (
        installed.Conflict("kd", "method 'kd' of module a is not used: kdbench has one of that name"),
        installed.Conflict("x", "method 'x' of module c is not used: module b has one of that name"),
    )


def test_from_file(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text("def build(x):\n    return x + 1\nnumber = 3\n")
    assert plugins.from_file("./net.py:build", tmp_path)(2) == 3
    for reference, expected in [
        ("./net.py:biuld", "'./net.py:biuld': net.py defines no 'biuld' (did you mean 'build'?)"),
        ("./net.py:number", "'./net.py:number': number is not a function"),
        ("./net.py", "'./net.py' names no function: write './net.py:function'"),
        ("./nets.py:build", "no such file: ./nets.py (did you mean './net.py'?)"),
    ]:
        with pytest.raises(UserError) as caught:
            plugins.from_file(reference, tmp_path)
        assert str(caught.value) == expected


def test_looking_into_a_file_does_not_execute_it(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(
        "raise RuntimeError\ndef build(): ...\nfrom os import path as p\nif 1:\n    q = 2\n"
    )
    assert [plugins.missing_in_file(f"./net.py:{name}", tmp_path) for name in ("build", "p", "q")] == [None] * 3
    (tmp_path / "net.py").write_text("def build(:\n")
    said = plugins.missing_in_file("./net.py:build", tmp_path)
    assert said == "'./net.py:build' cannot be loaded: SyntaxError: invalid syntax (net.py, line 1)"


def test_source_sha(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_bytes(b"abc")
    assert plugins.source_sha("models", "./net.py:build", tmp_path) == "ba7816bf8f01cfea"  # FIPS 180-2, appendix B.1
    assert plugins.source_sha("models", "cnn", tmp_path) is None
    write(tmp_path, "mine.py", "Mine")
    cls = plugins.method_class("./mine.py", tmp_path)
    assert plugins.class_sha(cls) == plugins.source_sha("methods", "./mine.py", tmp_path)
    assert plugins.class_sha(Method) is None


def test_declared_names_are_read_without_import() -> None:
    code = "import sys; from kdbench import plugins; print(*plugins.declared('data')); print('torch' in sys.modules)"
    names, torch = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert {"digits", "mnist", "fashion_mnist", "cifar10", "cifar100"} <= set(names.split())
    assert torch == "False"
    assert plugins.declared("data")["fashion_mnist"] == "mnist"


def test_optimizer_names_are_timms() -> None:
    from timm.optim import list_optimizers

    assert set(plugins.optimizer_names()) >= set(list_optimizers(exclude_filters=["bnb*", "fused*"]))
    assert "kd" not in plugins.optimizer_names()
