"""A user's own Python files, named in a suite: `./mine.py`, `./net.py:build`. They are executed, once for each content.

Whatever is wrong with a file becomes one sentence, never a traceback. See docs/security.md for what runs when.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import importlib
import importlib.util
import os
import re
import sys
import traceback
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from kdbench import files
from kdbench.errors import UserError, did_you_mean, near

FILES = "kdbench_files"  # parent of the modules made from users' files
NO_FILES = "KDBENCH_NO_PLUGINS"  # in the environment, so that worker processes inherit it
OFF = ("", "0", "false", "f", "no", "n", "off")


@contextlib.contextmanager
def refusing_files() -> Iterator[None]:
    """Within it, whatever names a Python file is refused with a sentence: nothing that came with a suite is run."""
    before = os.environ.get(NO_FILES)
    os.environ[NO_FILES] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[NO_FILES]
        else:
            os.environ[NO_FILES] = before


def is_file(reference: str) -> bool:
    """Whether a name is a Python file (`./mine.py`) or something in one (`./mine.py:build`)."""
    path = reference.partition(":")[0]
    return path.endswith(".py") or reference.startswith(("./", "../"))


def path_of(reference: str, folder: Path) -> Path:
    """Raises LookupError where there is no such file, or files are refused."""
    name = reference.partition(":")[0]
    if os.environ.get(NO_FILES, "").lower() not in OFF:
        raise LookupError(
            f"'{name}' is a Python file, and --no-plugins ({NO_FILES}) refuses suites that bring code: read the file, "
            "then leave --no-plugins out"
        )
    path = folder / name
    if not files.is_file(path):
        raise LookupError(f"no such file: {name}{near(path, name[: -len(path.name)])}")
    return path


def module_of(reference: str, folder: Path) -> types.ModuleType:
    """A user's file, executed once for each content.

    The module's name is stable (a hash of the path, then the stem) and registered, as dataclasses and pickle need.
    """
    path = path_of(reference, folder)
    text = path.read_bytes()
    place = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]
    parents = (FILES, f"{FILES}.p{place}")
    name = f"{parents[1]}.{path.stem}"
    sha = hashlib.sha256(text).hexdigest()
    known = sys.modules.get(name)
    if known is not None and vars(known).get("__kdbench_sha__") == sha:
        return known
    for parent in parents:
        sys.modules.setdefault(parent, types.ModuleType(parent))
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise LookupError(f"'{reference}' is not a Python file (.py)")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        exec(compile(text, str(path), "exec"), module.__dict__)  # not exec_module: its bytecode cache goes by time
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise LookupError(f"'{reference}' cannot be loaded: {reason(error)}") from error
    module.__dict__["__kdbench_sha__"] = sha
    return module


def from_file(reference: str, folder: Path) -> Callable[..., Any]:
    """The function of "./net.py:build", relative to `folder`.

    Raises:
        UserError: no such file or function, or the file raises when it is executed.
    """
    attribute = reference.partition(":")[2]
    if sentence := missing_in_file(reference, folder):
        raise UserError(sentence)
    try:
        found = getattr(module_of(reference, folder), attribute, None)
    except LookupError as error:
        raise UserError(str(error)) from error
    if not callable(found):
        raise UserError(f"'{reference}': {attribute} is not a function")
    return found


def missing_in_file(reference: str, folder: Path) -> str | None:
    """What is wrong with "./net.py:build", as far as reading the file tells; nothing is executed."""
    attribute = reference.partition(":")[2]
    if not attribute:
        return f"'{reference}' names no function: write '{reference}:function'"
    try:
        path = path_of(reference, folder)
        tree = ast.parse(path.read_bytes(), filename=str(path))
    except LookupError as error:
        return str(error)
    except (SyntaxError, ValueError) as error:
        return f"'{reference}' cannot be loaded: {reason(error)}"
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names.update((alias.asname or alias.name).partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
    if "*" in names or attribute in names:
        return None
    return f"'{reference}': {path.name} defines no '{attribute}'{did_you_mean(attribute, names)}"


def imported(module: str, title: str) -> types.ModuleType:
    try:
        return importlib.import_module(module)
    except (Exception, SystemExit) as error:
        raise LookupError(f"{title} cannot be loaded: {reason(error)}") from error


def reason(error: BaseException) -> str:
    """'ZeroDivisionError: division by zero (mine.py, line 3)': the last line that is not the import system's."""
    if isinstance(error, SyntaxError):
        return f"SyntaxError: {error.msg} ({Path(error.filename or '?').name}, line {error.lineno})"
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "importlib" not in f.filename]
    frames = [f for f in frames if Path(f.filename).parent != Path(__file__).parent]
    place = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    said = re.sub(r"\s+", " ", str(error)).strip()
    return f"{type(error).__name__}{': ' + said if said else ''}{place}"
