"""Plug-ins of installed packages, from distributions that are really found: their names, sources, and clashes."""

from __future__ import annotations

import abc
import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from kdbench import data, plugins
from kdbench.cli import listing, zoo
from kdbench.errors import UserError
from kdbench.method import Method
from kdbench.models import build
from kdbench.suite import fields
from kdbench.suite.job import Job, expand
from kdbench.suite.load import load

METHOD = """
from __future__ import annotations
from dataclasses import dataclass
from kdbench.method import Method, Wrapper, knob

@dataclass(frozen=True)
class Plug(Method):
    t: float = knob(4.0, low=1.0, high=9.0)
    def loss(self, learner, teachers, batch, heads):
        return {}
"""
OUTER = """
@dataclass(frozen=True)
class Outer(Wrapper):
    over: Method = Plug()
"""
NET = """
from torch import nn

def build(*, classes, channels, size, width=8):
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * size * size, width), nn.ReLU(), nn.Linear(width, classes))
"""
DATA = """
import numpy as np
from kdbench.data import Raw

def load(root, count=40):
    images = np.arange(count * 64, dtype=np.int64).reshape(count, 1, 8, 8).astype(np.uint8)
    labels = np.arange(count) % 2
    return Raw(images, labels, images[:10], labels[:10], (0.5,), (0.2,), classes=2, val=10)
"""
SUITE = """
name: mine
data: {{name: {data}}}
recipe: {{epochs: 2, batch_size: 8}}
pairs:
  p: {{teacher: {{model: {model}}}, student: mlp}}
methods:
  none:
  mine: {method}
seeds: [0]
"""
Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """install("alpha", {"alpha/plug.py": text}, methods={"alpha": "alpha.plug:Plug"}), into a folder on sys.path."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(site)
    before = set(sys.modules)

    def fresh() -> None:
        for name in set(sys.modules) - before:
            if name.partition(".")[0] in {path.name.partition(".")[0] for path in site.iterdir()}:
                del sys.modules[name]
        importlib.invalidate_caches()
        plugins.forget()

    def pretend(package: str, files: dict[str, str], **kinds: dict[str, str]) -> None:
        info = site / f"{package}-1.0.dist-info"
        info.mkdir(exist_ok=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        groups = [
            f"[kdbench.{kind}]\n" + "".join(f"{name} = {value}\n" for name, value in points.items())
            for kind, points in kinds.items()
        ]
        (info / "entry_points.txt").write_text("\n".join(groups))
        for name, text in files.items():
            (site / name).parent.mkdir(exist_ok=True)
            (site / name).write_text(text)
        fresh()

    yield pretend
    fresh()


def job(folder: Path, method: str = "{method: kd}", *, data: str = "digits", model: str = "cnn") -> Job:
    (folder / "mine.yaml").write_text(SUITE.format(method=method, data=data, model=model))
    return next(job for job in expand(load(folder / "mine.yaml"), "f") if job.label == "mine")


# identity ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("form", ["{{method: {}}}", "{{method: mixup, over: {{method: {}}}}}"])
def test_packages_whose_modules_share_their_last_name_have_keys_of_their_own(
    tmp_path: Path, install: Install, form: str
) -> None:
    for name in ("alpha", "beta"):
        install(name, {f"{name}/plug.py": METHOD}, methods={name: f"{name}.plug:Plug"})
    alpha, beta = (job(tmp_path, form.format(name)) for name in ("alpha", "beta"))
    assert alpha.key != beta.key
    inner = [found.content["method"].get("over", found.content["method"]) for found in (alpha, beta)]
    assert [method["name"] for method in inner] == ["alpha", "beta"]
    assert inner[0]["source"] == inner[1]["source"]  # the same text
    assert inner[0]["knobs"] == {"t": 4.0}


def test_the_source_of_an_installed_method_is_content(tmp_path: Path, install: Install) -> None:
    points = {"alpha": "alpha.plug:Plug"}
    install("alpha", {"alpha/plug.py": METHOD, "alpha/other.py": "x = 1\n"}, methods=points)
    before = [job(tmp_path, text).key for text in ("{method: alpha}", "{method: mixup, over: {method: alpha}}")]
    install("alpha", {"alpha/plug.py": METHOD.replace("return {}", "return {'a': 0}")}, methods=points)
    after = [job(tmp_path, text).key for text in ("{method: alpha}", "{method: mixup, over: {method: alpha}}")]
    assert not set(before) & set(after)


def test_a_name_does_not_depend_on_the_package_or_module_that_has_it(tmp_path: Path, install: Install) -> None:
    install("alpha", {"alpha/plug.py": METHOD}, methods={"same": "alpha.plug:Plug"})
    before = job(tmp_path, "{method: same}").key
    install("alpha", {}, methods={})
    install("moved", {"moved_kd/elsewhere.py": METHOD}, methods={"same": "moved_kd.elsewhere:Plug"})
    assert job(tmp_path, "{method: same}").key == before


@pytest.mark.parametrize("looked_up", [False, True])
def test_what_a_wrapper_wraps_by_default_has_its_registered_name(
    tmp_path: Path, install: Install, looked_up: bool
) -> None:
    points = {"outer": "alpha.plug:Outer", "zz_inner": "alpha.plug:Plug", "inner": "alpha.plug:Plug"}
    install("alpha", {"alpha/plug.py": METHOD + OUTER}, methods=points)
    if looked_up:
        plugins.method_class("zz_inner", tmp_path)
    assert job(tmp_path, "{method: outer}").content["method"]["over"]["name"] == "inner"  # the first of two names
    assert job(tmp_path, "{method: outer}").key == job(tmp_path, "{method: outer, over: {method: zz_inner}}").key


def test_a_class_without_a_registered_name_is_named_by_its_place(tmp_path: Path, install: Install) -> None:
    install("alpha", {"alpha/plug.py": METHOD + OUTER}, methods={"outer": "alpha.plug:Outer"})
    assert job(tmp_path, "{method: outer}").content["method"]["over"]["name"] == "alpha.plug:Plug"
    (tmp_path / "mine.py").write_text((METHOD + OUTER).replace("Outer", "Mine"))
    said = job(tmp_path, "{method: ./mine.py}").content["method"]
    assert (said["name"], said["over"]["name"]) == ("mine", "mine:Plug")
    assert said["source"] == said["over"]["source"]


def test_one_class_under_two_paths_is_refused(tmp_path: Path, install: Install) -> None:
    files = {"alpha/plug.py": METHOD, "alpha/__init__.py": "from alpha.plug import Plug\n"}
    install("alpha", files, methods={"a": "alpha:Plug", "b": "alpha.plug:Plug"})
    assert plugins.method_class("a", tmp_path) is plugins.method_class("a", tmp_path)
    with pytest.raises(LookupError, match="method 'b' of package alpha is method 'a': use that name"):
        plugins.method_class("b", tmp_path)


# models and data sets ------------------------------------------------------------------------------------------------
def test_an_installed_model_is_built_listed_and_content(tmp_path: Path, install: Install) -> None:
    install("nets", {"nets.py": NET}, models={"tiny": "nets:build", "whole": "nets"})
    for name in ("tiny", "whole"):
        model = build(name, {"width": 3}, classes=5, channels=1, size=8)
        assert model(torch.zeros(2, 1, 8, 8)).shape == (2, 5)
        assert [row["model"] for row in listing.models(name)] == [name]
    before = job(tmp_path, model="tiny")
    assert before.content["roles"]["teacher"]["model"] == "tiny"
    assert len(before.content["roles"]["teacher"]["source"]) == 16
    assert "source" not in before.content["roles"]["student"]
    install("nets", {"nets.py": NET + "# another text\n"}, models={"tiny": "nets:build"})
    assert job(tmp_path, model="tiny").key != before.key
    with pytest.raises(UserError, match=r"model 'tiny' has no option 'widht' \(did you mean 'width'\?\)"):
        build("tiny", {"widht": 3}, classes=5, channels=1, size=8)
    with pytest.raises(UserError, match=r"unknown model 'tinny' \(did you mean 'tiny'\?\)"):
        job(tmp_path, model="tinny")


def test_a_package_of_networks_counts_with_all_its_files(tmp_path: Path, install: Install) -> None:
    files = {"nets/__init__.py": "from nets._net import build\n", "nets/_net.py": NET}
    install("nets", files, models={"tiny": "nets:build"})
    before = job(tmp_path, model="tiny").key
    install("nets", {"nets/_net.py": NET.replace("ReLU", "GELU")}, models={"tiny": "nets:build"})
    assert job(tmp_path, model="tiny").key != before


def test_an_installed_data_set_is_read_listed_and_content(tmp_path: Path, install: Install) -> None:
    install("sets", {"sets.py": DATA}, data={"ramp": "sets:load", "whole": "sets"})
    for name in ("ramp", "whole"):
        found = data.load(fields.Data(name=name, options={"count": 30}), tmp_path)
        assert (found.classes, len(found.train.labels), len(found.val.labels)) == (2, 20, 10)
    assert data.found(tmp_path)["ramp"] == "of package sets"
    said = job(tmp_path, data="ramp").content["data"]
    assert (said["name"], len(said["source"])) == ("ramp", 16)
    with pytest.raises(UserError, match=r"unknown data set 'rampp' \(did you mean 'ramp'\?\)"):
        job(tmp_path, data="rampp")


def test_what_an_entry_point_names_must_be_a_function(tmp_path: Path, install: Install) -> None:
    install("nets", {"nets.py": NET, "bad.py": "1 / 0\n"}, models={"a": "nets:width", "b": "bad"}, data={"c": "nets"})
    for name, expected in (
        ("a", "model 'a' of package nets cannot be loaded: nets:width is not a function"),
        ("b", "model 'b' of package nets cannot be loaded: ZeroDivisionError: division by zero (bad.py, line 1)"),
    ):
        with pytest.raises(UserError) as caught:
            build(name, {}, classes=5, channels=1, size=8)
        assert str(caught.value) == expected
    with pytest.raises(UserError, match="data set 'c' of package nets cannot be loaded: nets has no `read` or `load`"):
        data.load(fields.Data(name="c"), tmp_path)


def test_a_missing_module_is_a_sentence(tmp_path: Path, install: Install) -> None:
    install("nets", {}, models={"tiny": "nowhere:build"})
    with pytest.raises(UserError) as caught:
        job(tmp_path, model="tiny")
    expected = "model 'tiny' of package nets cannot be loaded: ModuleNotFoundError: No module named 'nowhere'"
    assert str(caught.value) == expected
    install("nets", {}, methods={"lost": "nowhere:Lost"})
    assert [row["about"] for row in zoo.rows() if row["method"] == "lost"] == [
        expected.replace("model 'tiny'", "method 'lost'")
    ]


# clashes -------------------------------------------------------------------------------------------------------------
def test_names_of_kdbench_and_timm_stay_theirs_and_the_suite_says_so(tmp_path: Path, install: Install) -> None:
    plain = job(tmp_path, "{method: mixup, over: {method: kd}}", model="resnet18").key
    install(
        "greedy",
        {"greedy.py": NET + DATA + METHOD},
        methods={"kd": "greedy:Plug", "dkd": "greedy:Plug"},
        models={"resnet18": "greedy:build", "cnn": "greedy:build", "mlp": "greedy:build"},
        data={"digits": "greedy:load"},
    )
    assert job(tmp_path, "{method: mixup, over: {method: kd}}", model="resnet18").key == plain
    assert load(tmp_path / "mine.yaml").notes == (
        "data set 'digits' of package greedy is not used: kdbench has one of that name",
        "model 'mlp' of package greedy is not used: kdbench has one of that name",
        "model 'resnet18' of package greedy is not used: timm has one of that name",
        "method 'kd' of package greedy is not used: kdbench has one of that name",
    )
    parts = {row["part"]: row["state"] for row in listing.doctor(tmp_path)}
    assert parts["models"].count("greedy") == 3


# tasks ---------------------------------------------------------------------------------------------------------------
class Task(abc.ABC):
    """Stands for the class of tasks: what is found by name does not depend on it."""

    @abc.abstractmethod
    def score(self) -> float: ...


def test_tasks_are_found_like_methods(tmp_path: Path, install: Install) -> None:
    text = f"from {__name__} import Task\nclass {{}}(Task):\n    def score(self):\n        return 1.0\n"
    install("ranks", {"ranks.py": text.format("Ranks"), "none.py": ""}, tasks={"ranks": "ranks", "none": "none"})
    assert plugins.names("tasks")[-2:] == ("none", "ranks")
    assert plugins.plugin_class("tasks", "ranks", tmp_path, Task)().score() == 1.0  # type: ignore[type-abstract]
    (tmp_path / "own.py").write_text(text.format("Own"))
    assert plugins.plugin_class("tasks", "./own.py", tmp_path, Task).__name__ == "Own"  # type: ignore[type-abstract]
    for name, expected in (
        ("rank", "unknown task 'rank' (did you mean 'ranks'?)"),
        ("none", "task 'none' of package ranks has no task: define a subclass of kdbench.Task with a `score`"),
    ):
        with pytest.raises(LookupError) as caught:
            plugins.plugin_class("tasks", name, tmp_path, Task)  # type: ignore[type-abstract]
        assert caught.value.args == (expected,)


def test_own_tasks_are_the_files_of_their_folder(
    tmp_path: Path, install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tasks").mkdir()
    for name in ("sorting", "_helper"):
        (tmp_path / "tasks" / f"{name}.py").touch()
    monkeypatch.setattr(plugins, "PACKAGE", tmp_path)
    plugins.forget()
    assert plugins.builtin("tasks") == ("sorting",)


def test_methods_of_kdbench_have_no_source_in_their_content() -> None:
    for name in plugins.builtin_methods():
        cls = plugins.method_class(name, Path())
        assert (plugins.name_of(cls), plugins.class_sha(cls)) == (name, None)
        assert issubclass(cls, Method)
