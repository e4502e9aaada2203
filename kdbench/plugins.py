"""The file name is the registry: methods, models, data sets and tasks are found, never listed by hand.

They come from `kdbench/methods/`, `kdbench/models/` and so on, from installed packages (entry points `kdbench.methods`,
`kdbench.models`, ...), or from a Python file named in the suite. Whatever is wrong with a plug-in becomes one sentence
with its file, never a traceback.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import importlib.util
import inspect
import re
import sys
import types
from collections.abc import Callable
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, TypeVar

from kdbench import installed
from kdbench.errors import UserError, did_you_mean
from kdbench.method import Method, Wrapper
from kdbench.userfiles import FILES, from_file, imported, is_file, missing_in_file, module_of, path_of, reason

PACKAGE = Path(__file__).parent
FUNCTIONS = {"models": ("build",), "data": ("read", "load")}  # what an entry point means that names a module alone
TASK = "classification"  # of a data set that says nothing
Base = TypeVar("Base")

__all__ = [
    "builtin", "builtin_methods", "class_sha", "conflicts", "declared", "declared_task", "forget", "from_file",
    "installed_function", "installed_names", "is_file", "is_wrapper", "method_class", "method_names",
    "missing_in_file", "name_of", "names", "optimizer_names", "origin", "plugin_class", "source_sha", "timm_models",
]  # fmt: skip


# names ---------------------------------------------------------------------------------------------------------------
def builtin(kind: str) -> tuple[str, ...]:
    """kdbench's own: the files of `methods` and `tasks`, the `NAMES` of those of `models` and `data`."""
    if kind in FUNCTIONS:
        return tuple(declared(kind))
    return _stems(kind)


@cache
def _stems(package: str) -> tuple[str, ...]:
    return tuple(sorted(path.stem for path in (PACKAGE / package).glob("*.py") if not path.stem.startswith("_")))


def builtin_methods() -> tuple[str, ...]:
    """The files in `kdbench/methods/`."""
    return builtin("methods")


@cache
def _installed(kind: str) -> installed.Points:
    def owner(name: str) -> str | None:
        if name in builtin(kind):
            return "kdbench"
        return "timm" if kind == "models" and name in timm_models() else None

    return installed.points(kind, owner)


def forget() -> None:
    """Look for installed packages again."""
    _installed.cache_clear()
    _stems.cache_clear()
    installed.module_sha.cache_clear()


def installed_names(kind: str) -> tuple[str, ...]:
    """Plug-ins of installed packages, by name."""
    return tuple(_installed(kind).chosen)


def names(kind: str) -> tuple[str, ...]:
    """All of a kind by name: kdbench's own, then those of installed packages."""
    return (*builtin(kind), *installed_names(kind))


def origin(kind: str, name: str) -> str:
    """ "of package kdbench-mine": where an installed plug-in comes from."""
    return f"of {installed.package(_installed(kind).chosen[name])}"


def method_names() -> tuple[str, ...]:
    """All methods by name."""
    return names("methods")


def conflicts(kind: str = "methods") -> tuple[installed.Conflict, ...]:
    """Installed plug-ins that another of the same name hides."""
    return _installed(kind).conflicts


# classes: methods and tasks ------------------------------------------------------------------------------------------
def method_class(name: str, folder: Path) -> type[Method]:
    """The class of "kd", of an installed method, or of "./mine.py" (relative to `folder`).

    Raises:
        LookupError: with a sentence: no such method, or it cannot be imported, or its file is not clear.
    """
    return plugin_class("methods", name, folder, Method)  # type: ignore[type-abstract]


def plugin_class(kind: str, name: str, folder: Path, base: type[Base]) -> type[Base]:
    """The subclass of `base` that a name of a kind ("methods", "tasks") stands for; raises as `method_class` does."""
    noun = installed.KINDS[kind]
    if is_file(name):
        return _only(module_of(name, folder), f"'{name}'", base, noun)
    if name in builtin(kind):
        title = f"{noun} '{name}'"
        return _only(imported(f"kdbench.{kind}.{name}", title), title, base, noun)
    if name not in installed_names(kind):
        raise LookupError(f"unknown {noun} '{name}'{did_you_mean(name, names(kind))}")
    found = _installed_class(kind, name, base)
    registered = _installed(kind).canonical(name)
    other = vars(found).get("registered", registered)
    if other != registered:
        raise LookupError(f"{_installed(kind).title(name)} is {noun} '{other}': use that name")
    if not _is_own(found):
        found.registered = registered  # type: ignore[attr-defined]
    return found


def _installed_class(kind: str, name: str, base: type[Base]) -> type[Base]:
    points = _installed(kind)
    point, title = points.chosen[name], points.title(name)
    found: Any = imported(point.module, title)
    if not point.attr:
        return _only(found, title, base, installed.KINDS[kind])
    for part in point.attr.split("."):
        found = getattr(found, part, None)
    if not (isinstance(found, type) and issubclass(found, base)):
        raise LookupError(f"{title} cannot be loaded: {point.value} is not a subclass of kdbench.{base.__name__}")
    return found


def name_of(cls: type, base: type = Method) -> str:
    """The registered name of a method's class (or a task's: `base`), its identity: "kd", an entry point's, a stem.

    A class that is not the one of its file is `stem:Class`, one of an installed package that no entry point names
    `module:Class`.
    """
    if name := vars(cls).get("registered"):
        return str(name)
    module = sys.modules[cls.__module__]
    if _is_own(cls) or FILES in cls.__module__:
        stem = cls.__module__.rpartition(".")[2]
        own = _main(_classes(module, base), stem) is cls
        return stem if own else f"{stem}:{cls.__name__}"
    kind = "methods" if base is Method else "tasks"
    for name in installed_names(kind):
        with contextlib.suppress(LookupError):
            if plugin_class(kind, name, Path(), base) is cls:
                return name_of(cls, base)
    return f"{cls.__module__}:{cls.__qualname__}"


def _is_own(cls: type) -> bool:
    return cls.__module__.startswith("kdbench.")


def _only(module: types.ModuleType, title: str, base: type[Base], noun: str) -> type[Base]:
    """The method of a module: its only one, or the one named like the file."""
    stem, found = module.__name__.rpartition(".")[2], _classes(module, base)
    if chosen := _main(found, stem):
        return chosen
    if not found:
        members = ", ".join(f"`{name}`" for name in sorted(getattr(base, "__abstractmethods__", ())))
        needs = f" with a {members}" if members else ""
        raise LookupError(f"{title} has no {noun}: define a subclass of kdbench.{base.__name__}{needs}")
    raise LookupError(f"{title} has several {noun}s ({', '.join(found)}): name one like the file, or split it")


def _classes(module: types.ModuleType, base: type[Base]) -> dict[str, type[Base]]:
    return {
        cls.__name__: cls
        for cls in vars(module).values()
        if isinstance(cls, type) and issubclass(cls, base) and cls.__module__ == module.__name__
        if not cls.__name__.startswith("_") and not inspect.isabstract(cls)
    }


def _main(found: dict[str, type[Base]], stem: str) -> type[Base] | None:
    named = [cls for name, cls in found.items() if name.lower() == stem.replace("_", "").lower()]
    chosen = list(found.values()) if len(found) == 1 else named
    return chosen[0] if len(chosen) == 1 else None


def installed_function(kind: str, name: str) -> Callable[..., Any]:
    """The function of an installed model or data set: what its entry point names, or else `FUNCTIONS` of its module.

    Raises:
        UserError: it cannot be imported, or there is no such function.
    """
    points = _installed(kind)
    point, title = points.chosen[name], points.title(name)
    try:
        module = imported(point.module, title)
    except LookupError as error:
        raise UserError(str(error)) from error
    for attribute in (point.attr,) if point.attr else FUNCTIONS[kind]:
        found: Any = module
        for part in attribute.split("."):
            found = getattr(found, part, None)
        if callable(found):
            return found
    listed = " or ".join(f"`{name}`" for name in FUNCTIONS[kind])
    wanted = f"{point.value} is not a function" if point.attr else f"{point.module} has no {listed}"
    raise UserError(f"{title} cannot be loaded: {wanted}")


@cache
def declared(package: str) -> dict[str, str]:
    """`NAMES` of every file of kdbench/models or kdbench/data -> its module below that folder; read, not imported."""
    names: dict[str, str] = {}
    for path in sorted((PACKAGE / package).rglob("*.py")):
        source = path.read_bytes()
        for node in ast.parse(source, filename=str(path)).body if b"NAMES" in source else ():
            if not isinstance(node, ast.Assign | ast.AnnAssign) or node.value is None:
                continue
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            if isinstance(target, ast.Name) and target.id == "NAMES":
                module = ".".join(path.relative_to(PACKAGE / package).with_suffix("").parts)
                names.update(dict.fromkeys(ast.literal_eval(node.value), module))
    return names


def declared_task(name: str, folder: Path) -> str:
    """The task of a data set as its file declares it, read without executing it; else "classification".

    A literal `TASK = "regression"`, or `TASKS`, a map by the data set's name (in a user's file by the function's).
    """
    try:
        if is_file(name):
            path, key = path_of(name, folder), name.partition(":")[2]
        elif name in declared("data"):
            path, key = (PACKAGE / "data" / declared("data")[name].replace(".", "/")).with_suffix(".py"), name
        elif name in installed_names("data"):
            spec, key = importlib.util.find_spec(_installed("data").chosen[name].module), name
            path = Path(spec.origin or "") if spec else Path()
        else:
            return TASK
        return _declared_task(path, path.stat().st_mtime_ns, key)
    except Exception:  # whatever is wrong with the file is reported where it is read
        return TASK


@lru_cache
def _declared_task(path: Path, changed: int, key: str) -> str:
    found: dict[str, Any] = {}
    for node in ast.parse(path.read_bytes(), filename=str(path)).body:
        names = [target.id for target in getattr(node, "targets", ()) if isinstance(target, ast.Name)]
        if isinstance(node, ast.Assign) and names in (["TASK"], ["TASKS"]):
            found[names[0]] = ast.literal_eval(node.value)
    return str(found.get("TASKS", {}).get(key) or found.get("TASK") or TASK)


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


@cache
def timm_models() -> frozenset[str]:
    """Functions that timm's source registers as models, read without importing it; empty where it is not installed."""
    spec = importlib.util.find_spec("timm")
    found: set[str] = set()
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        for path in Path(folder, "models").glob("*.py"):
            found.update(re.findall(r"^@register_model\s+def (\w+)", path.read_text(encoding="utf-8"), re.MULTILINE))
    return frozenset(found)


# source, a part of job keys ------------------------------------------------------------------------------------------
def source_sha(kind: str, name: str, folder: Path) -> str | None:
    """sha256 (16 hex digits) of the source of a model or data set that is not ours, nor timm's.

    Raises:
        UserError: its file or module is missing.
    """
    try:
        if is_file(name):
            return hashlib.sha256(path_of(name, folder).read_bytes()).hexdigest()[:16]
        if name in installed_names(kind):
            return _sha_of(_installed(kind).chosen[name].module, _installed(kind).title(name))
    except LookupError as error:
        raise UserError(str(error)) from error
    return None


def class_sha(cls: type) -> str | None:
    """`source_sha` of the file that defines a method's class: also for the inner methods of a wrapper.

    Raises:
        UserError: its module's file cannot be read.
    """
    if _is_own(cls):
        return None
    sha = vars(sys.modules[cls.__module__]).get("__kdbench_sha__")
    try:
        return str(sha)[:16] if sha else _sha_of(cls.__module__, f"method {cls.__name__}")
    except LookupError as error:
        raise UserError(str(error)) from error


def _sha_of(module: str, title: str) -> str | None:
    try:
        return installed.module_sha(module)
    except Exception as error:  # whatever a package around the module raises
        raise LookupError(f"{title} cannot be loaded: {reason(error)}") from error


def is_wrapper(cls: type[Method]) -> bool:
    return issubclass(cls, Wrapper)


def own_names() -> tuple[str, ...]:
    """kdbench's own models, in the order of files and of their `NAMES`, and those of installed packages."""
    return names("models")


@lru_cache
def timm_names() -> tuple[str, ...]:
    """Functions that timm's source registers as models, sorted; empty where timm is not installed."""
    return tuple(sorted(timm_models()))


def known(name: str) -> bool:
    """Whether `name` is a model of kdbench, of an installed package, or of timm.

    The tag of pretrained weights that timm's may have (`a1_in1k` of `resnet18.a1_in1k`) is checked by timm when the
    model is built.
    """
    return name in own_names() or name.partition(".")[0] in timm_names()
