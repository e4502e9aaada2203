"""Files that come with a suite are refused where the user says so, before anything of them is run."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from commands import Done, kdbench

from kdbench import plugins
from kdbench.errors import UserError
from kdbench.userfiles import NO_FILES, refusing_files

SUITE = """\
name: s
data: {name: digits}
recipe: {epochs: 1, batch_size: 64}
pairs: {p: {teacher: cnn, student: mlp}}
methods: {none: }
seeds: [0]
"""
LOUD = "from pathlib import Path\nPath(__file__).with_suffix('.ran').touch()\n"
PLACES = {
    "methods: {none: }": "methods: {none: , x: {method: ./mine.py}}",
    "student: mlp": "student: {model: ./mine.py:build}",
    "name: digits": "name: ./mine.py:load",
}
COMMANDS = ("check", "status", "board", "plan", "run", "retry", "clean", "tune", "show results")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(LOUD + "def build(): ...\ndef load(root): ...\n")
    (tmp_path / "plain.yaml").write_text(SUITE)
    return tmp_path


def refused(folder: Path, done: Done) -> bool:
    assert not (folder / "mine.ran").exists()
    return done.returncode == 2 and "mine.py' is a Python file, and --no-plugins" in done.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_on_a_suite_refuses_before_a_file_is_run(folder: Path, command: str) -> None:
    (folder / "s.yaml").write_text(SUITE.replace("methods: {none: }", "methods: {x: {method: ./mine.py}}"))
    done = kdbench(folder, *command.split(), "s.yaml", "--no-plugins")
    assert refused(folder, done), done
    assert "s.yaml:5:" in done.stderr
    assert NO_FILES not in os.environ  # it was for that command


@pytest.mark.parametrize("old", list(PLACES))
def test_methods_models_and_data_from_files_are_refused_also_in_the_suite_that_is_extended(
    folder: Path, old: str
) -> None:
    (folder / "s.yaml").write_text(SUITE.replace(old, PLACES[old]))
    (folder / "child.yaml").write_text("extends: s.yaml\nname: child\n")
    assert refused(folder, kdbench(folder, "check", "s.yaml", "--no-plugins"))
    assert refused(folder, kdbench(folder, "check", "child.yaml", "--no-plugins"))


def test_a_suite_without_files_is_not_touched_and_without_the_switch_files_run(folder: Path) -> None:
    assert kdbench(folder, "check", "plain.yaml", "--no-plugins").returncode == 0
    (folder / "s.yaml").write_text(SUITE.replace("methods: {none: }", "methods: {x: {method: ./mine.py}}"))
    assert "has no method" in kdbench(folder, "check", "s.yaml").stderr
    assert (folder / "mine.ran").exists()


def test_the_environment_refuses_too(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "s.yaml").write_text(SUITE.replace("methods: {none: }", "methods: {x: {method: ./mine.py}}"))
    monkeypatch.setenv(NO_FILES, "1")
    assert refused(folder, kdbench(folder, "check", "s.yaml"))
    monkeypatch.setenv(NO_FILES, "0")
    assert "--no-plugins" not in kdbench(folder, "check", "s.yaml").stderr


def test_nothing_gives_a_refused_file(folder: Path) -> None:
    with refusing_files():
        with pytest.raises(LookupError, match="--no-plugins"):
            plugins.method_class("./mine.py", folder)
        with pytest.raises(UserError, match="--no-plugins"):
            plugins.from_file("./mine.py:build", folder)
        with pytest.raises(UserError, match="--no-plugins"):
            plugins.source_sha("models", "./mine.py:build", folder)
        assert "--no-plugins" in (plugins.missing_in_file("./mine.py:build", folder) or "")
        assert plugins.method_class("kd", folder)
    assert plugins.from_file("./mine.py:build", folder)
