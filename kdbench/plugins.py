"""The file name is the registry: methods, models and data sets are found, never listed by hand.

Methods come from `kdbench/methods/`, from installed packages (entry points `kdbench.methods`), or from a Python file
named in the suite. Whatever is wrong with a plug-in becomes one sentence with its file, never a traceback.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import inspect
import re
import sys
import traceback
import types
from collections.abc import Callable
from functools import cache, lru_cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from kdbench import files, plugins
from kdbench.errors import UserError, did_you_mean, near
from kdbench.method import Method, Wrapper

GROUP = "kdbench.methods"
PACKAGE = Path(__file__).parent
_FILES = "kdbench_files"  # parent of the modules made from users' files


def is_file(reference: str) -> bool:
    """Whether a name is a Python file (`./mine.py`) or something in one (`./mine.py:build`)."""
    path = reference.partition(":")[0]
    return path.endswith(".py") or reference.startswith(("./", "../"))


@cache
def builtin_methods() -> tuple[str, ...]:
    """The files in `kdbench/methods/`."""
    return tuple(sorted(path.stem for path in (PACKAGE / "methods").glob("*.py") if not path.stem.startswith("_")))


@cache
def _installed() -> tuple[dict[str, EntryPoint], tuple[str, ...]]:
    """Entry points by name, and a sentence for each name that is taken twice."""
    chosen: dict[str, EntryPoint] = {}
    sentences = []
    for point in sorted(entry_points(group=GROUP), key=lambda p: (p.name, _package(p), p.value)):
        if point.name in builtin_methods():
            sentences.append(f"method '{point.name}' of {_package(point)} is not used: kdbench has one of that name")
        elif point.name in chosen:
            first = _package(chosen[point.name])
            sentences.append(f"method '{point.name}' of {_package(point)} is not used: {first} has one of that name")
        else:
            chosen[point.name] = point
    return chosen, tuple(sentences)


def _package(point: EntryPoint) -> str:
    return f"package {point.dist.name}" if point.dist else f"module {point.module}"


def conflicts() -> tuple[str, ...]:
    """One sentence for each installed method that another of the same name hides."""
    return _installed()[1]


def method_names() -> tuple[str, ...]:
    """All methods by name: kdbench's own, then those of installed packages."""
    return (*builtin_methods(), *_installed()[0])


def method_class(name: str, folder: Path) -> type[Method]:
    """The class of "kd", of an installed method, or of "./mine.py" (relative to `folder`).

    Raises:
        LookupError: with a sentence: no such method, or it cannot be imported, or its file is not clear.
    """
    if is_file(name):
        return _only_method(_module(name, folder), f"'{name}'")
    if name in builtin_methods():
        return _only_method(_imported(f"kdbench.methods.{name}", f"method '{name}'"), f"method '{name}'")
    if name not in _installed()[0]:
        raise LookupError(f"unknown method '{name}'{did_you_mean(name, method_names())}")
    point = _installed()[0][name]
    title = f"method '{name}' of {_package(point)}"
    found: Any = _imported(point.module, title)
    if not point.attr:
        return _only_method(found, title)
    for part in point.attr.split("."):
        found = getattr(found, part, None)
    if not (isinstance(found, type) and issubclass(found, Method)):
        raise LookupError(f"{title} cannot be loaded: {point.value} is not a subclass of kdbench.method.Method")
    return found


def _imported(module: str, title: str) -> types.ModuleType:
    try:
        return importlib.import_module(module)
    except (Exception, SystemExit) as error:
        raise LookupError(f"{title} cannot be loaded: {_reason(error)}") from error


def _reason(error: BaseException) -> str:
    """'ZeroDivisionError: division by zero (mine.py, line 3)': the last line that is not the import system's."""
    if isinstance(error, SyntaxError):
        return f"SyntaxError: {error.msg} ({Path(error.filename or '?').name}, line {error.lineno})"
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "importlib" not in f.filename]
    frames = [f for f in frames if Path(f.filename) != Path(__file__)]
    place = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    said = re.sub(r"\s+", " ", str(error)).strip()
    return f"{type(error).__name__}{': ' + said if said else ''}{place}"


def _only_method(module: types.ModuleType, title: str) -> type[Method]:
    """The method of a module: its only one, or the one named like the file."""
    found = {
        cls.__name__: cls
        for cls in vars(module).values()
        if isinstance(cls, type) and issubclass(cls, Method) and cls.__module__ == module.__name__
        if not cls.__name__.startswith("_") and not inspect.isabstract(cls)
    }
    if len(found) == 1:
        return next(iter(found.values()))
    if not found:
        raise LookupError(f"{title} has no method: define a subclass of kdbench.method.Method with a `loss`")
    stem = module.__name__.rpartition(".")[2]
    named = [cls for name, cls in found.items() if name.lower() == stem.replace("_", "").lower()]
    if len(named) != 1:
        raise LookupError(f"{title} has several methods ({', '.join(found)}): name one like the file, or split it")
    return named[0]


def _path(reference: str, folder: Path) -> Path:
    """Raises LookupError where there is no such file."""
    name = reference.partition(":")[0]
    path = folder / name
    if not files.is_file(path):
        raise LookupError(f"no such file: {name}{near(path, name[: -len(path.name)])}")
    return path


def _module(reference: str, folder: Path) -> types.ModuleType:
    """A user's file, executed once for each content.

    The module's name is stable (a hash of the path, then the stem) and registered, as dataclasses and pickle need.
    """
    path = _path(reference, folder)
    text = path.read_bytes()
    place = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]
    parents = (_FILES, f"{_FILES}.p{place}")
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
        raise LookupError(f"'{reference}' cannot be loaded: {_reason(error)}") from error
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
        found = getattr(_module(reference, folder), attribute, None)
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
        path = _path(reference, folder)
        tree = ast.parse(path.read_bytes(), filename=str(path))
    except LookupError as error:
        return str(error)
    except (SyntaxError, ValueError) as error:
        return f"'{reference}' cannot be loaded: {_reason(error)}"
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


@cache
def declared(package: str) -> dict[str, str]:
    """`NAMES` of every file of kdbench/models or kdbench/data -> the file's stem; read, not imported."""
    names: dict[str, str] = {}
    for path in sorted((PACKAGE / package).glob("*.py")):
        for node in ast.parse(path.read_bytes(), filename=str(path)).body:
            if not isinstance(node, ast.Assign | ast.AnnAssign) or node.value is None:
                continue
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            if isinstance(target, ast.Name) and target.id == "NAMES":
                names.update(dict.fromkeys(ast.literal_eval(node.value), path.stem))
    return names


@cache
def optimizer_names() -> tuple[str, ...]:
    """sgd, adamw and timm's optimisers, read from timm's source without importing it (it imports torch)."""
    spec = importlib.util.find_spec("timm")
    folders = list(spec.submodule_search_locations or ()) if spec else []
    source = Path(folders[0], "optim", "_optim_factory.py") if folders else None
    if source is None or not source.is_file():
        return ()
    pattern = r"(?:\bname=|\bregister_alias\()['\"]([a-z0-9_]+)['\"]"
    names = set(re.findall(pattern, source.read_text(encoding="utf-8")))
    return tuple(sorted({"sgd", "adamw", *names})) if names else ()


def source_sha(reference: str, folder: Path) -> str | None:
    """sha256 (16 hex digits) of a user's Python file, part of job keys; None for built-ins and installed methods."""
    if not is_file(reference):
        return None
    try:
        return hashlib.sha256(_path(reference, folder).read_bytes()).hexdigest()[:16]
    except LookupError as error:
        raise UserError(str(error)) from error


def class_sha(cls: type[Method]) -> str | None:
    """`source_sha` of the file that defines a method's class: also for the inner methods of a wrapper."""
    module = sys.modules.get(cls.__module__)
    sha = vars(module).get("__kdbench_sha__") if module else None
    return str(sha)[:16] if sha else None


def is_wrapper(cls: type[Method]) -> bool:
    return issubclass(cls, Wrapper)


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
