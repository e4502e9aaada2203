# ruff: noqa: E501 (the sentences under test are quoted whole)
from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kdbench.errors import UserError
from kdbench.suite import checks
from kdbench.suite.job import expand
from kdbench.suite.load import Suite, load

METHODS = """
from __future__ import annotations
from dataclasses import dataclass
from kdbench.method import Method, Needs, Plan, Refusal, Stage, Wrapper, knob

class _Free(Method):
    def loss(self, learner, teachers, batch, heads):
        return {}
"""
FILES = {
    "plain": """
@dataclass(frozen=True)
class Plain(_Free):
    temperature: float = knob(4, "softens", low=1, high=16, log=True)
    layers: int = knob(2, low=1)
    flag: bool = knob(False)
    mode: str = knob("mean", choices=("mean", "sum"))
    weights: tuple[float, ...] = knob((1.0, 0.5), low=0)
    limit: float | None = knob(None)

    def __post_init__(self):
        if self.layers == 13:
            raise ValueError("13 is unlucky")
""",
    "alone": """
@dataclass(frozen=True)
class Alone(_Free):
    def plan(self, roles):
        return Plan((Stage({"student": ()}),))
""",
    "chain": """
@dataclass(frozen=True)
class Chain(Wrapper):
    steps: int = knob(1, low=1)
    def plan(self, roles):
        return Plan((Stage({"ta": ("teacher",)}), Stage({"student": ("ta",)})))
""",
    "other": """
@dataclass(frozen=True)
class Other(Wrapper):
    def plan(self, roles):
        return Plan((Stage({"student": ("peer",), "peer": ("student",)}),), copies={"peer": "student"})
""",
    "picky": """
@dataclass(frozen=True)
class Picky(_Free):
    def plan(self, roles):
        if "ta" in roles:
            raise Refusal("it wants no ta")
        return Plan((Stage({"student": ("teacher",)}, share=0.0), Stage({})), answer=("teacher",))
""",
    "fails": """
@dataclass(frozen=True)
class Fails(_Free):
    def plan(self, roles):
        return {}[3]
""",
    "coached": """
@dataclass(frozen=True)
class Coached(_Free):
    role: str = knob("teacher", choices=("teacher", "coach"))

    def plan(self, roles):
        copies = {} if self.role == "teacher" else {self.role: "teacher"}
        return Plan((Stage({self.role: (), "student": (self.role,)}),), copies=copies)
""",
    "refuses": """
@dataclass(frozen=True)
class Refuses(Wrapper):
    def needs(self):
        raise Refusal("refuses needs hard labels")
""",
}
BASE = """\
name: small
data: {name: digits}
recipe: {epochs: 4}
pairs:
  one: {teacher: big, student: small}
methods:
  plain: {method: ./plain.py}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with methods; kdbench's own models are `big` and `small`, timm's is `resnet18`."""
    monkeypatch.setattr(checks, "_timm_names", lambda: frozenset({"resnet18"}))
    monkeypatch.setattr(
        checks.plugins,
        "declared",
        lambda package: {"data": {"digits": "digits"}, "models": {"big": "m", "small": "m"}}[package],
    )
    monkeypatch.chdir(tmp_path)
    for name, text in FILES.items():
        Path(f"{name}.py").write_text(METHODS + text)
    return tmp_path


def of(text: str, name: str = "s.yaml") -> Suite:
    Path(name).write_text(text)
    return load(Path(name))


def lines(text: str) -> list[str]:
    with pytest.raises(UserError) as caught:
        of(text)
    return str(caught.value).split("\n")


def swap(old: str, new: str) -> str:
    assert old in BASE
    return BASE.replace(old, new)


def knobs(text: str) -> list[str]:
    return lines(swap("{method: ./plain.py}", "{method: ./plain.py, " + text + "}"))


CONTROLS = (
    BASE
    + """\
  alone: {method: ./alone.py}
  none: {method: ./alone.py}
  kd: {method: ./plain.py}
"""
)


def test_floor_and_reference_are_declared_and_checked(folder: Path) -> None:
    assert (of(CONTROLS).file.floor, of(CONTROLS).file.reference) == ("none", "kd")
    assert of(CONTROLS + "floor: alone\nreference: plain\n").file.floor == "alone"
    taught = "must learn without a teacher, but its method has one"
    assert lines(CONTROLS + "floor: plain\n") == [
        f"s.yaml:11:8: floor: 'plain' is the suite's floor: it {taught}; give another label"
    ]
    assert lines(CONTROLS + "reference: alone\n") == [
        "s.yaml:11:12: reference: 'alone' is the suite's reference: it must have a teacher, but its method has none; "
        "give another label"
    ]
    assert lines(CONTROLS + "floor: nonne\n") == [
        "s.yaml:11:8: floor: no method has the label 'nonne' (did you mean 'none'?)"
    ]
    assert lines(CONTROLS.replace("none: {method: ./alone.py}", "none: {method: ./plain.py}")) == [
        f"s.yaml:9:3: methods.none: 'none' is the suite's floor: it {taught}; give another label as `floor`, or rename "
        "this one"
    ]


def test_a_small_suite(folder: Path) -> None:
    suite = of(BASE + "  soft: {method: ./plain.py, temperature: 8, weights: [1, 2], limit: 1}\n")
    assert suite.cells == (("one", "plain"), ("one", "soft"))
    assert suite.method_names == {"plain": "./plain.py", "soft": "./plain.py"}
    plain, soft = suite.methods.values()
    assert (plain.temperature, type(plain.temperature)) == (4.0, float)  # type: ignore[attr-defined]
    assert (soft.temperature, type(soft.temperature), soft.weights, soft.limit) == (8.0, float, (1.0, 2.0), 1.0)  # type: ignore[attr-defined]
    assert suite.folder == Path()
    assert suite.where("pairs", "one", "teacher") == "s.yaml:5:18"
    assert suite.where("pairs", "one") == "s.yaml:5:3"
    assert suite.notes == ()


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("epochs: 4", "epochs: ten", "3:18: recipe.epochs: expects a whole number, got 'ten'"),
        ("epochs: 4", "epochs: 4.0", "3:18: recipe.epochs: expects a whole number, got 4.0"),
        ("epochs: 4", "epochs: true", "3:18: recipe.epochs: expects a whole number, got true"),
        ("epochs: 4", "epochs: ", "3:1: recipe: needs `epochs`, or `steps`"),
        ("epochs: 4", "epochs: 0", "3:18: recipe.epochs: must be at least 1, got 0"),
        ("epochs: 4", "epochs: 4, epohcs: 3", "3:21: recipe.epohcs: unknown field (did you mean 'epochs'?)"),
        ("epochs: 4", "epochs: 4, compile: yes", "3:30: recipe.compile: expects true or false, got 'yes'"),
        ("epochs: 4", "epochs: 4, clip_norm: .inf", "3:32: recipe.clip_norm: expects a finite number, got inf"),
        ("epochs: 4", "epochs: 4, clip_norm: '1'", "3:32: recipe.clip_norm: expects a number, got '1'"),
        ("epochs: 4", "epochs: 4, augment: 3", "3:30: recipe.augment: expects a map, got 3"),
        ("epochs: 4", "epochs: 4, optimizer: {lr: 0}", "3:37: recipe.optimizer.lr: must be more than 0, got 0"),
        (
            "epochs: 4",
            "epochs: 4, optimizer: {momentum: 1}",
            "3:43: recipe.optimizer.momentum: must be less than 1, got 1",
        ),
        (
            "epochs: 4",
            "epochs: 4, optimizer: {name: lam}",
            "3:39: recipe.optimizer.name: unknown optimiser 'lam' (did you mean 'lamb'?)",
        ),
        (
            "epochs: 4",
            "epochs: 4, precision: fp23",
            "3:32: recipe.precision: expects one of 'auto', 'fp32', 'bf16', got 'fp23' (did you mean 'fp32'?)",
        ),
        (
            "epochs: 4",
            "epochs: 4, schedule: {name: multistep}",
            "3:21: recipe.schedule: multistep needs milestones, for example [150, 180, 210]",
        ),
        (
            "epochs: 4",
            "epochs: 4, schedule: {name: multistep, milestones: 3}",
            "3:61: recipe.schedule.milestones: expects a list, got 3",
        ),
        (
            "epochs: 4",
            "epochs: 4, schedule: {name: multistep, milestones: [4]}",
            "3:1: recipe: milestone 4 is not before the last epoch (4)",
        ),
        ("recipe: {epochs: 4}", "recipe: {}", "3:1: recipe: needs `epochs`, or `steps`"),
        ("recipe: {epochs: 4}\n", "", "1:1: needs `recipe`"),
        ("name: small", "name: 3", "1:7: name: expects text, got 3; put it in quotes"),
        (
            "name: small",
            "name: a b",
            "1:7: name: is not a name: use letters, digits and _ . + -, starting with a letter or digit",
        ),
        ("name: small", "nam: small\nname: small", "1:1: nam: unknown field (did you mean 'name'?)"),
        ("name: digits", "name: digts", "2:14: data.name: unknown data set 'digts' (did you mean 'digits'?)"),
        ("name: digits", "name: digits, fraction: 2", "2:32: data.fraction: must be at most 1, got 2"),
        (
            "name: digits",
            "name: ./plain.py:load",
            "2:14: data.name: './plain.py:load': plain.py defines no 'load'",
        ),
        ("{epochs: 4}", "{epochs: 4, extends: x}", "3:21: recipe.extends: `extends` is allowed at the top level only"),
        ("teacher: big", "teacher: bigg", "5:18: pairs.one.teacher: unknown model 'bigg' (did you mean 'big'?)"),
        (
            "teacher: big",
            "teacher: {model: bigg}",
            "5:26: pairs.one.teacher.model: unknown model 'bigg' (did you mean 'big'?)",
        ),
        ("teacher: big", "teacher: 3", "5:18: pairs.one.teacher: expects a model's name or a map, got 3"),
        ("teacher: big, ", "", "5:3: pairs.one: needs `teacher`"),
        ("teacher: big", "teacher: {seed: 1}", "5:9: pairs.one.teacher: needs `model`"),
        (
            "teacher: big",
            "teacher: ./nett.py:build",
            "5:18: pairs.one.teacher: no such file: ./nett.py",
        ),
        (
            "teacher: big",
            "teacher: {model: big, weights: t.pt}",
            "5:40: pairs.one.teacher.weights: no such file: t.pt (looked for beside the suite file)",
        ),
        (
            "teacher: big",
            "teacher: {model: resnet18, pretrained: true, weights: plain.py}",
            "5:9: pairs.one.teacher: choose one source of weights: `weights` or `pretrained`",
        ),
        (
            "teacher: big",
            "teacher: {model: big, pretrained: true}",
            "5:43: pairs.one.teacher.pretrained: pretrained weights exist for timm's models only; give 'big' its `weights`",
        ),
        (
            "teacher: big",
            "teacher: {model: big, train: 3}",
            "5:38: pairs.one.teacher.train: expects true or false, got 3",
        ),
        (
            "teacher: big",
            "teacher: {model: big, train: {epohcs: 3}}",
            "5:39: pairs.one.teacher.train.epohcs: unknown field (did you mean 'epochs'?)",
        ),
        (
            "teacher: big",
            "teacher: {model: big, train: {schedule: {warmup_epochs: 9}}}",
            "5:31: pairs.one.teacher.train: warm-up of 9 epochs leaves none of 4",
        ),
        (
            "student: small",
            "student: small, recipe: {schedule: {name: multistep, milestones: [2, 2]}}",
            "5:48: pairs.one.recipe.schedule: milestones must increase",
        ),
        (
            "student: small",
            "student: small, recipe: {optimizer: {name: sgdd}}",
            "5:66: pairs.one.recipe.optimizer.name: unknown optimiser 'sgdd' (did you mean 'sgd'?)",
        ),
        (
            "student: small",
            "student: {model: small, min_top1: 3}",
            "5:57: pairs.one.student.min_top1: has no effect: no method of the pair uses 'student' as a frozen teacher; remove it",
        ),
        (
            "student: small",
            "student: small, reported: {plian: 70}",
            "5:50: pairs.one.reported.plian: no method has the label 'plian' (did you mean 'plain'?)",
        ),
        (
            "student: small",
            "student: small, reported: {plain: high}",
            "5:57: pairs.one.reported.plain: expects a number or a map, got 'high'",
        ),
        (
            "student: small",
            "student: small, reported: {plain: {top1: 98, prefixes: {0: 72}}}",
            "5:79: pairs.one.reported.plain.prefixes.0: must be at least 1, got '0'",
        ),
        (
            "student: small",
            "student: small, reported: {plain: {top1: 98, prefixes: {first: 72}}}",
            "5:79: pairs.one.reported.plain.prefixes.first: expects a whole number, got 'first'",
        ),
        (
            "student: small",
            "student: small, reported: {plain: {top1: 98, macs_percent: 63, prefixes: {1: 172}}}",
            "5:100: pairs.one.reported.plain.prefixes.1: must be at most 100, got 172",
        ),
        (
            "student: small",
            "student: small, note: 3",
            "5:45: pairs.one.note: expects text, got 3; put it in quotes",
        ),
        (
            "student: small",
            "student: small, t-a: small",
            "5:39: pairs.one.t-a: is not the name of a role: use letters, digits and _, starting with a letter",
        ),
        (
            "method: ./plain.py",
            "method: ./plian.py",
            "7:19: methods.plain.method: no such file: ./plian.py (did you mean './plain.py'?)",
        ),
        ("method: ./plain.py", "method: 3", "7:19: methods.plain.method: expects the name of a method, got 3"),
        ("{method: ./plain.py}", "kd", "7:10: methods.plain: expects a map such as {method: kd}, got 'kd'"),
        ("{method: ./plain.py}", "", "7:3: methods.plain: unknown method 'plain' (did you mean 'chain'?)"),
        (
            "{method: ./plain.py}",
            "{temperature: 3}",
            "7:3: methods.plain: unknown method 'plain' (did you mean 'chain'?); "
            "a label of your own needs `method: <name>` beside its knobs",
        ),
        ("methods:\n  plain: {method: ./plain.py}", "methods: {}", "6:1: methods: needs at least one entry"),
    ],
)
def test_one_mistake_is_one_line(folder: Path, old: str, new: str, line: str) -> None:
    assert lines(swap(old, new)) == [f"s.yaml:{line}"]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("temprature: 3", "7:31: methods.plain.temprature: unknown knob (did you mean 'temperature'?)"),
        ("temperature: 0.5", "7:44: methods.plain.temperature: must be at least 1, got 0.5"),
        ("temperature: 1e2", "7:44: methods.plain.temperature: must be at most 16, got 100.0"),
        ("temperature: true", "7:44: methods.plain.temperature: expects a number, got true"),
        ("temperature: '4'", "7:44: methods.plain.temperature: expects a number, got '4'"),
        ("temperature: .nan", "7:44: methods.plain.temperature: expects a finite number, got nan"),
        ("layers: 2.0", "7:39: methods.plain.layers: expects a whole number, got 2.0"),
        ("layers: true", "7:39: methods.plain.layers: expects a whole number, got true"),
        ("layers: '2'", "7:39: methods.plain.layers: expects a whole number, got '2'"),
        ("flag: 1", "7:37: methods.plain.flag: expects true or false, got 1"),
        ("mode: mena", "7:37: methods.plain.mode: expects one of 'mean', 'sum', got 'mena' (did you mean 'mean'?)"),
        ("mode: 3", "7:37: methods.plain.mode: expects text, got 3; put it in quotes"),
        ("weights: 3", "7:40: methods.plain.weights: expects a list, got 3"),
        ("weights: [1, -1]", "7:44: methods.plain.weights[1]: must be at least 0, got -1"),
        ("limit: x", "7:38: methods.plain.limit: expects a number, got 'x'"),
        ("layers: 13", "7:19: methods.plain: './plain.py' does not accept these knobs: 13 is unlucky"),
        ("over: {method: ./plain.py}", "7:31: methods.plain.over: './plain.py' is not a wrapper: remove `over`"),
    ],
)
def test_knobs(folder: Path, text: str, line: str) -> None:
    assert knobs(text) == [f"s.yaml:{line}"]


def test_wrappers(folder: Path) -> None:
    pair = swap("student: small", "student: small, ta: small")
    suite = of(pair + "  c: {method: ./chain.py, steps: 2, over: {method: ./plain.py, temperature: 2}}\n")
    method = suite.methods["c"]
    assert (method.steps, method.over.temperature) == (2, 2.0)  # type: ignore[attr-defined]
    for text, line in [
        (
            "{method: ./other.py}",
            "8:3: methods.c: './other.py' needs `over`: the method to wrap, for example {method: kd}",
        ),
        ("{method: ./chain.py, over: {}}", "8:27: methods.c.over: needs `method`: the name of the method to wrap"),
        (
            "{method: ./chain.py, over: {method: ./plain.py, layers: 0}}",
            "8:62: methods.c.over.layers: must be at least 1, got 0",
        ),
        (
            "{method: ./chain.py, over: {method: ./other.py, over: {method: ./plain.py}}}",
            "8:3: methods.c: Chain and Other both set `plan`; only one wrapper may",
        ),
        ("{method: ./refuses.py, over: {method: ./plain.py}}", "8:3: methods.c: refuses needs hard labels"),
    ]:
        assert lines(f"{pair}  c: {text}\n") == [f"s.yaml:{line}"]


def test_plans(folder: Path) -> None:
    chain = "  c: {method: ./chain.py, over: {method: ./plain.py}}\n"
    assert lines(BASE + chain) == [
        "s.yaml:5:3: pairs.one: method 'c' needs role 'ta' in pair 'one': add it, or exclude the pair"
    ]
    assert of(BASE + chain + "exclude: [{pair: one, method: c}]\n").cells == (("one", "plain"),)
    both = BASE + "  o: {method: ./other.py, over: {method: ./plain.py}}\n"
    assert of(both).cells == (("one", "plain"), ("one", "o"))
    assert lines(both.replace("student: small", "student: small, peer: big")) == [
        "s.yaml:5:3: pairs.one: method 'o' has an impossible plan: it makes a copy called 'peer', which the pair has as a role"
    ]
    wrong = "s.yaml:5:3: pairs.one: method 'p' has an impossible plan: "
    picky = BASE + "  p: {method: ./picky.py}\n"
    assert lines(picky) == [
        f"{wrong}a stage trains nobody",
        f"{wrong}the share of a stage must be more than 0",
        f"{wrong}'teacher' answers without having been trained",
    ]
    assert lines(picky.replace("student: small", "student: small, ta: big")) == [
        "s.yaml:5:3: pairs.one: method 'p' cannot be used here: it wants no ta"
    ]
    assert lines(BASE + "  p: {method: ./coached.py}\n") == [
        f"{wrong}it trains 'teacher', which every row of the pair is compared with: train a copy instead, "
        "`copies={'coach': 'teacher'}` in its plan"
    ]
    (coached,) = expand(
        of(BASE + "  p: {method: ./coached.py, role: coach}\nseeds: [0]\nexclude: [{pair: one, method: plain}]\n")
    )
    assert (coached.plan.learners, set(coached.frozen)) == (("coach", "student"), {"teacher"})
    assert lines(BASE + "  p: {method: ./fails.py}\n") == [
        "s.yaml:5:3: pairs.one: method 'p' cannot be used here: its plan fails: KeyError: 3"
    ]


def test_a_role_that_is_never_frozen_has_no_gate_but_a_teacher_of_some_method_has(folder: Path) -> None:
    pair = swap("student: small", "student: small, ta: {model: small, min_top1: 9, train: {epochs: 2}}")
    chain = "  c: {method: ./chain.py, over: {method: ./plain.py}}\n"
    said = "has no effect: no method of the pair uses 'ta' as a frozen teacher; remove it"
    assert lines(pair + chain) == [
        f"s.yaml:5:68: pairs.one.ta.min_top1: {said}",
        f"s.yaml:5:71: pairs.one.ta.train: {said}",
    ]
    assert of(swap("teacher: big", "teacher: {model: big, min_top1: 9, seed: 3, train: {epochs: 2}}")).cells


def test_a_misspelt_field_of_a_pair_is_understood(folder: Path) -> None:
    assert lines(swap("student: small", "student: small, recpie: {epochs: 3}")) == [
        "s.yaml:5:39: pairs.one.recpie: is taken for a role, which needs `model` (did you mean 'recipe'?)",
        "s.yaml:5:48: pairs.one.recpie.epochs: unknown field",
    ]


TWO = BASE.replace("methods:", "  two: {teacher: big, student: small}\nmethods:") + "  soft: {method: ./plain.py}\n"


@pytest.mark.parametrize(
    ("text", "cells"),
    [
        ("", "one/plain one/soft two/plain two/soft"),
        ("triples: [{pair: two, method: soft}, {pair: one, method: plain}]", "one/plain two/soft"),
        ('triples: [{pair: "*", method: s*}, {pair: one, method: soft}]', "one/soft two/soft"),
        ('exclude: [{pair: t*, method: "*"}]', "one/plain one/soft"),
        ("triples: [{pair: '*', method: soft}]\nexclude: [{pair: one, method: soft}]", "two/soft"),
        ('triples: [{pair: "[to]*", method: plain}]', "one/plain two/plain"),
    ],
)
def test_cells(folder: Path, text: str, cells: str) -> None:
    assert " ".join("/".join(cell) for cell in of(f"{TWO}{text}\n").cells) == cells


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("triples: [{pair: tow, method: soft}]", "10:18: triples[0].pair: no pair matches 'tow' (did you mean 'two'?)"),
        (
            "triples: [{pair: one, method: sfot}]",
            "10:31: triples[0].method: no method matches 'sfot' (did you mean 'soft'?)",
        ),
        ("exclude: [{pair: z*, method: soft}]", "10:18: exclude[0].pair: no pair matches 'z*'"),
        (
            "triples: [{pair: one, method: soft}]\nexclude: [{pair: two, method: soft}]",
            "11:11: exclude[0]: excludes nothing: no triple is left that it matches",
        ),
        ("exclude: [{pair: '*', method: '*'}]", "10:1: exclude: nothing is left to train"),
        ("triples: []", "10:1: triples: nothing is left to train"),
        ("triples: [{pair: one}]", "10:11: triples[0]: needs `method`"),
        ("seeds: [1, 2, 1]", "10:15: seeds[2]: seed 1 is given twice"),
        ("seeds: [-1]", "10:9: seeds[0]: must be at least 0, got -1"),
        ("seeds: []", "10:1: seeds: needs at least one entry"),
        ("seeds: 3", "10:8: seeds: expects a list, got 3"),
        (
            "tune: {seeds: [5, 1]}",
            "10:19: tune.seeds[1]: seed 1 is one of the suite's seeds: tuning and final seeds must differ",
        ),
        (
            "seeds: [1000]\ntune: {trials: 3}",
            "11:1: tune: its default seed 1000 is one of the suite's seeds: give `seeds` that differ from them",
        ),
    ],
)
def test_mistakes_in_lists(folder: Path, text: str, line: str) -> None:
    assert lines(f"{TWO}{text}\n") == [f"s.yaml:{line}"]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            "metric: test/top1",
            "11: tune.metric: 'test/top1' is a test score, and the test split must not choose anything: use 'val/top1'",
        ),
        ("metric: val/tp1", "11: tune.metric: unknown metric 'val/tp1' (did you mean 'val/top1'?)"),
        ("objectives: [val/nll, mac]", "25: tune.objectives[1]: unknown metric 'mac' (did you mean 'macs'?)"),
        ("objectives: [macs, macs]", "22: tune.objectives[1]: objective 'macs' is given twice"),
        (
            "constraints: {mcas: 4e6}",
            "17: tune.constraints.mcas: cannot be bounded: only parameters, macs and epochs are known before training"
            " (did you mean 'macs'?)",
        ),
        ("budget: gpu_seconds", "11: tune.budget: needs `gpu_seconds` beside it: how many"),
        ("gpu_seconds: 3", "16: tune.gpu_seconds: has no effect without `budget: gpu_seconds`"),
        (
            "sampler: tpee",
            "12: tune.sampler: expects one of 'tpe', 'gp', 'random', 'grid', 'cmaes', got 'tpee' (did you mean 'tpe'?)",
        ),
    ],
)
def test_tune(folder: Path, text: str, line: str) -> None:
    assert lines(f"{BASE}tune:\n  {text}\n") == [f"s.yaml:9:{line}"]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            "{pruner: median, metric: val/ece}",
            "8:16: tune.pruner: can follow val/top1 and val/nll only, which are measured while training runs",
        ),
        (
            "{sampler: cmaes, objectives: [val/top1, macs]}",
            "8:17: tune.sampler: 'cmaes' takes one objective: use 'tpe' or 'gp' for several",
        ),
        (
            "{epochs: 2, space: {recipe.epochs: [1, 2]}}",
            "8:27: tune.space.recipe.epochs: has no place beside `tune.epochs`, which sets the epochs of every trial",
        ),
        (
            "{space: {mode: {choices: [sum], when: {flag: true}}, flag: {when: {mode: sum}}}}",
            "8:16: tune.space.mode.when: goes in a circle (mode -> flag -> mode)",
        ),
        (
            "{sampler: grid, space: {temperature: {low: 1, high: 2}, layers: {low: 1, high: 3}}}",
            "8:31: tune.space.temperature: is a continuous range: a grid needs a list, or a `step`",
        ),
        (
            "{sampler: grid}",
            "8:17: tune.sampler: 'grid' needs `tune.space`: what to try, as lists or with a `step`",
        ),
        (
            "{sampler: grid, space: {temperature: {when: {flag: true}}}}",
            "8:31: tune.space.temperature: is a continuous range: a grid needs a list, or a `step`",
        ),
        ("{trials: 0}", "8:16: tune.trials: must be at least 1, got 0"),
        ("{trials: 2.5}", "8:16: tune.trials: expects a whole number, got 2.5"),
        ("{epochs: 0}", "8:16: tune.epochs: must be at least 1, got 0"),
        ("{seeds: 7}", "8:15: tune.seeds: expects a list, got 7"),
        ("{seeds: [-7]}", "8:16: tune.seeds[0]: must be at least 0, got -7"),
        ("{budget: hours}", "8:16: tune.budget: expects one of 'trials', 'gpu_seconds', got 'hours'"),
        ("{budget: gpu_seconds, gpu_seconds: 0}", "8:42: tune.gpu_seconds: must be more than 0, got 0"),
        (
            "{pruner: hyperbnd}",
            "8:16: tune.pruner: expects one of 'hyperband', 'median', 'none', got 'hyperbnd'"
            " (did you mean 'hyperband'?)",
        ),
        ("{constraints: {macs: many}}", "8:28: tune.constraints.macs: expects a number, got 'many'"),
        ("{constraints: [macs]}", "8:8: tune.constraints: expects a map, got a list"),
        ("{space: [lr]}", "8:8: tune.space: expects a map, got a list"),
        ("{objectives: val/top1}", "8:20: tune.objectives: expects a list, got 'val/top1'"),
        ("{metric: 3}", "8:16: tune.metric: expects text, got 3; put it in quotes"),
        ("{trails: 3}", "8:8: tune.trails: unknown field (did you mean 'trials'?)"),
        ("7", "8:7: tune: expects a map, got 7"),
    ],
)
def test_fields_of_tune_that_do_not_go_together(folder: Path, text: str, line: str) -> None:
    assert lines(f"{BASE}tune: {text}\n") == [f"s.yaml:{line}"]


def test_a_grid_of_lists_steps_and_whole_numbers_is_finite(folder: Path) -> None:
    space = (
        "{temperature: {low: 1, high: 3, step: 0.5}, layers: {low: 1, high: 3}, recipe.batch_size: {low: 8, high: 9}}"
    )
    assert of(f"{BASE}tune: {{sampler: grid, space: {space}}}\n").file.tune.sampler == "grid"


def test_a_pruner_wants_one_objective(folder: Path) -> None:
    assert lines(BASE + "tune: {pruner: median, objectives: [val/top1, macs]}\n") == [
        "s.yaml:8:16: tune.pruner: cannot prune with several objectives: write `pruner: none`"
    ]


@pytest.mark.parametrize(
    "text",
    [
        "temperature: {low: 1, high: 8, log: true}",
        "temperature: [1, 2.5]",
        "layers: {low: 1, high: 9, step: 2}",
        "mode: {choices: [mean, sum], when: {layers: [1, 2]}}",
        "layers: {when: {mode: mean}}",
        "over.temperature: [2]",
        "recipe.optimizer.lr: {low: 1e-4, high: 1e-1, log: true}",
        "recipe.optimizer.name: [sgd, lamb]",
        "recipe.optimizer.options.eps: [1e-8, 1e-6]",
        "student.options.depth: {low: 2, high: 4}",
        "student.model: [small, resnet18]",
        "weights: [[1, 2], [3]]",
    ],
)
def test_spaces(folder: Path, text: str) -> None:
    pair = swap("student: small", "student: small, ta: small")
    suite = of(f"{pair}  c: {{method: ./chain.py, over: {{method: ./plain.py}}}}\ntune:\n  space:\n    {text}\n")
    assert suite.file.tune is not None
    assert len(suite.file.tune.space) == 1


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("temprature: [1]", "5: temprature: no method of the suite has this knob (did you mean 'temperature'?)"),
        ("temperature: 3", "18: temperature: expects a list of values or {low: ..., high: ...}, got 3"),
        ("temperature: {low: 1}", "5: temperature: needs `high`"),
        ("temperature: {}", "5: temperature: needs `low`|5: temperature: needs `high`"),
        ("temperature: {low: 0.5, high: 3}", "24: temperature.low: must be at least 1, got 0.5"),
        ("temperature: {low: 5, high: 3}", "33: temperature.high: must be more than `low` (5), got 3"),
        ("temperature: {low: 2, high: 3, stpe: 1}", "36: temperature.stpe: unknown field (did you mean 'step'?)"),
        ("temperature: {low: 2, high: 3, step: 0}", "42: temperature.step: must be more than 0, got 0"),
        ("temperature: {low: 2, high: 3, log: 1}", "41: temperature.log: expects true or false, got 1"),
        ("temperature: {low: 2, high: x}", "33: temperature.high: expects a number, got 'x'"),
        ("temperature: {low: 2, high: 3, step: 1, log: true}", "42: temperature.step: has no place beside `log: true`"),
        ("temperature: {choices: [2], low: 3}", "33: temperature.low: has no place beside `choices`"),
        ("temperature: [2, 2]", "22: temperature[1]: 2 is given twice"),
        ("temperature: []", "5: temperature: expects a list with at least one value"),
        ("temperature: [99]", "19: temperature[0]: must be at most 16, got 99"),
        ("layers: {low: 1.5, high: 3}", "19: layers.low: expects a whole number, got 1.5"),
        ("mode: [mean, median]", "18: mode[1]: expects one of 'mean', 'sum', got 'median' (did you mean 'mean'?)"),
        (
            "temperature: {choices: [2], when: 3}",
            "39: temperature.when: expects a map such as {other_key: value}, got 3",
        ),
        (
            "recipe.epochs: {when: {mode: mean}}",
            "5: recipe.epochs: needs `low` and `high`, or `choices`",
        ),
        ("temperature: {choices: [2], when: {temperature: 3}}", "40: temperature.when.temperature: depends on itself"),
        ("temperature: {choices: [2], when: {flag: 1}}", "46: temperature.when.flag: expects true or false, got 1"),
        (
            "temperature: {choices: [2], when: {flagg: 1}}",
            "40: temperature.when.flagg: no method of the suite has this knob (did you mean 'flag'?);"
            " `when` names a key of the space or a knob",
        ),
        ("recipe.epochs: [1, 2.5]", "24: recipe.epochs[1]: expects a whole number, got 2.5"),
        ("recipe.optimizer: [1]", "5: recipe.optimizer: names no single field: write `recipe.optimizer.<field>`"),
        (
            "recipe.optimizer.rl: [1]",
            "5: recipe.optimizer.rl: unknown field of the recipe (did you mean 'recipe.optimizer.lr'?)",
        ),
        (
            "teacher.model: [big]",
            "5: teacher.model: `teacher` cannot be tuned: it is the same for all trials and methods",
        ),
        (
            "student.train: [1]",
            "5: student.train: of the student, only `student.model` and `student.options.<name>` can be tuned",
        ),
        ("student.model: [bg]", "21: student.model[0]: unknown model 'bg' (did you mean 'big'?)"),
    ],
)
def test_mistakes_in_spaces(folder: Path, text: str, line: str) -> None:
    expected = []
    for part in line.split("|"):
        column, rest = part.split(": ", 1)
        expected.append(f"s.yaml:10:{column}: tune.space.{rest}")
    assert lines(f"{BASE}tune:\n  space:\n    {text}\n") == expected


def test_ten_mistakes_are_ten_lines_at_once(folder: Path) -> None:
    text = """\
name: ten
data: {name: digts}
recipe:
  epochs: ten
  optimizer: {name: sgdd}
pairs:
  one:
    teacher: {model: bigg}
    student: small
    reported: {kdd: 70}
methods:
  plain: {method: ./plain.py, temprature: 3}
  plain: {method: ./plain.py}
triples:
  - {pair: two, method: plain}
seeds: [0, 0]
bogus: 1
"""
    assert lines(text) == [
        "s.yaml:2:14: data.name: unknown data set 'digts' (did you mean 'digits'?)",
        "s.yaml:4:11: recipe.epochs: expects a whole number, got 'ten'",
        "s.yaml:5:21: recipe.optimizer.name: unknown optimiser 'sgdd' (did you mean 'sgd'?)",
        "s.yaml:8:22: pairs.one.teacher.model: unknown model 'bigg' (did you mean 'big'?)",
        "s.yaml:10:16: pairs.one.reported.kdd: no method has the label 'kdd'",
        "s.yaml:12:31: methods.plain.temprature: unknown knob (did you mean 'temperature'?)",
        "s.yaml:13:3: methods.plain: is given twice; the first is on line 12",
        "s.yaml:15:12: triples[0].pair: no pair matches 'two'",
        "s.yaml:16:12: seeds[1]: seed 0 is given twice",
        "s.yaml:17:1: bogus: unknown field",
    ]


def test_extends_merges_maps_and_replaces_lists(folder: Path) -> None:
    Path("base.yaml").write_text(BASE + "seeds: [1, 2]\n")
    Path("middle.yaml").write_text("extends: base.yaml\nname: middle\nrecipe: {batch_size: 8}\n")
    suite = of("extends: middle.yaml\nname: top\nseeds: [7]\nmethods: {soft: {method: ./plain.py}}\n")
    assert (suite.file.name, suite.file.seeds, list(suite.methods)) == ("top", (7,), ["plain", "soft"])
    assert (suite.file.recipe.epochs, suite.file.recipe.batch_size) == (4, 8)
    assert suite.where("recipe", "epochs") == "base.yaml:3:18"
    assert suite.where("recipe", "batch_size") == "middle.yaml:3:22"


def test_mistakes_point_into_the_file_they_come_from(folder: Path) -> None:
    Path("base.yaml").write_text(swap("epochs: 4", "epochs: ten, clip_norm: -1"))
    assert lines("extends: base.yaml\nname: top\nrecipe: {clip_norm: 0, x: 1}\n") == [
        "s.yaml:3:21: recipe.clip_norm: must be more than 0, got 0",
        "s.yaml:3:24: recipe.x: unknown field",
        "base.yaml:3:18: recipe.epochs: expects a whole number, got 'ten'",
    ]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("extends: bsae.yaml", "s.yaml:1:10: extends: no such file: bsae.yaml (did you mean 'base.yaml'?)"),
        ("extends: s.yaml", "s.yaml:1:10: extends: goes in a circle (s.yaml -> s.yaml)"),
        ("extends: back.yaml", "back.yaml:1:10: extends: goes in a circle (s.yaml -> back.yaml -> s.yaml)"),
        ("extends: /base.yaml", "s.yaml:1:10: extends: expects a path relative to this file, got '/base.yaml'"),
    ],
)
def test_extends_refuses(folder: Path, text: str, line: str) -> None:
    Path("base.yaml").write_text(BASE)
    Path("back.yaml").write_text("extends: ./s.yaml\n")
    assert lines(f"{text}\n") == [line]


def test_extends_of_the_wrong_type(folder: Path) -> None:
    assert lines(BASE + "extends: [a]\n") == ["s.yaml:8:1: extends: expects text, got a list"]


def test_references_of_a_base_in_another_folder_still_hold(folder: Path) -> None:
    Path("sub").mkdir()
    Path("sub/net.py").write_text("def build(): ...\n")
    Path("sub/w.pt").write_bytes(b"")
    Path("sub/near.py").write_text(METHODS + FILES["plain"].replace("Plain", "Near"))
    text = swap("teacher: big", "teacher: {model: ./net.py:build, weights: w.pt}").replace("plain.py", "near.py")
    Path("sub/base.yaml").write_text(text)
    suite = of("extends: sub/base.yaml\nname: top\n")
    teacher = suite.file.pairs["one"].teacher
    assert (teacher.model, teacher.weights, suite.method_names["plain"]) == (
        "./sub/net.py:build",
        "./sub/w.pt",
        "./sub/near.py",
    )


def test_checking_is_quick_and_imports_no_torch(folder: Path) -> None:
    pairs = "".join(f"  p{i}: {{teacher: resnet18, student: ./net.py:build}}\n" for i in range(200))
    methods = "".join(f"  m{i}: {{method: ./plain.py, layers: {i + 20}}}\n" for i in range(10))
    Path("net.py").write_text("def build(): ...\n")
    Path("big.yaml").write_text(
        f"name: big\ndata: {{name: ./net.py:build}}\nrecipe: {{epochs: 1}}\npairs:\n{pairs}methods:\n{methods}"
    )
    start = time.process_time()
    suite = load(Path("big.yaml"))
    assert (len(suite.cells), time.process_time() - start < 1.0) == (2000, True)
    code = (
        "import sys; from pathlib import Path; from kdbench.suite.load import load;"
        "print(len(load(Path('big.yaml')).cells), {'torch', 'timm', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("2000 set()\n", "")


# ladders and stored logits -------------------------------------------------------------------------------------------
LADDER = swap(
    "one: {teacher: big, student: small}",
    "one: {teacher: big, student: {model: small, options: {patch: 4, dim: 9}}, ta: big, ladder: [{dim: 2}, {model: big, depth: 3}, {}]}",
)


def test_a_ladder_makes_roles_of_growing_number(folder: Path) -> None:
    roles = of(LADDER).file.pairs["one"].roles
    assert list(roles) == ["teacher", "student", "weak1", "weak2", "weak3", "ta"]
    made = {role: (roles[role].model, roles[role].options) for role in ("weak1", "weak2", "weak3")}
    assert made == {
        "weak1": ("small", {"patch": 4, "dim": 2}),
        "weak2": ("big", {"depth": 3}),  # another model: the student's options are not its
        "weak3": ("small", {"patch": 4, "dim": 9}),
    }


def test_methods_see_the_rungs_in_the_order_of_the_pair_s_roles(folder: Path) -> None:
    source = """
@dataclass(frozen=True)
class Sees(_Free):
    def plan(self, roles):
        raise Refusal(" ".join(roles))
"""
    Path("sees.py").write_text(METHODS + source)
    (line,) = lines(LADDER.replace("./plain.py", "./sees.py"))
    assert line.endswith("cannot be used here: " + " ".join(["teacher", "student", "weak1", "weak2", "weak3", "ta"]))


@pytest.mark.parametrize(
    ("ladder", "expected"),
    [
        ("ladder: []", "s.yaml:5:39: pairs.one.ladder: needs at least one entry"),
        ("ladder: {dim: 2}", "s.yaml:5:39: pairs.one.ladder: expects a list, got a map"),
        ("ladder: [{dim: 2}, 7]", "s.yaml:5:58: pairs.one.ladder[1]: expects a map, got 7"),
        (
            "ladder: [{model: bigg}]",
            "s.yaml:5:56: pairs.one.ladder[0].model: unknown model 'bigg' (did you mean 'big'?)",
        ),
        ("ladder: [{model: 3}]", "s.yaml:5:56: pairs.one.ladder[0].model: expects text, got 3; put it in quotes"),
        (
            "ladder: [{dim: 2}], weak1: big",
            "s.yaml:5:59: pairs.one.weak1: is a rung of the pair's `ladder` already: remove one of them",
        ),
    ],
)
def test_mistakes_in_a_ladder(folder: Path, ladder: str, expected: str) -> None:
    assert lines(swap("student: small}", f"student: small, {ladder}}}")) == [expected]


def test_options_of_a_rung_are_not_fields_of_a_role(folder: Path) -> None:
    """`seed` and `train` would be refused on a role that learns; in a rung they are the model's options."""
    roles = of(swap("student: small}", "student: small, ladder: [{seed: 3, train: false}]}")).file.pairs["one"].roles
    assert roles["weak1"].options == {"seed": 3, "train": False}


def test_a_method_that_needs_a_ladder_says_so(folder: Path) -> None:
    source = """
@dataclass(frozen=True)
class Sums(_Free):
    def plan(self, roles):
        return Plan((Stage({"weak1": ("teacher",)}),), answer=("weak1",))
"""
    Path("sums.py").write_text(METHODS + source)
    (line,) = lines(swap("./plain.py", "./sums.py"))
    assert line.endswith("method 'plain' needs role 'weak1' in pair 'one': add a `ladder`, or exclude the pair")
    assert of(swap("student: small}", "student: small, weak1: small}").replace("./plain.py", "./sums.py"))


STORED = "`stored` is exact without augmentation only: what teachers say of an image changes with its pixels; remove `augment`, or let them run (`live`)"


@pytest.mark.parametrize(
    ("recipe", "pair", "expected"),
    [
        ("teacher_logits: stored, augment: {crop: 2}", "", ["s.yaml:3:37: recipe.teacher_logits: " + STORED]),
        (
            "augment: {flip: true}",
            ", recipe: {teacher_logits: stored}",
            ["s.yaml:5:64: pairs.one.recipe.teacher_logits: " + STORED],
        ),
        (
            "teacher_logits: stored",
            ", recipe: {augment: {crop: 1}}",
            ["s.yaml:5:48: pairs.one.recipe.teacher_logits: " + STORED],
        ),
        ("teacher_logits: keep", "", None),
    ],
)
def test_stored_logits_need_images_that_stay_as_they_are(folder: Path, recipe: str, pair: str, expected) -> None:
    text = swap("{epochs: 4}", f"{{epochs: 4, {recipe}}}").replace("student: small}", f"student: small{pair}}}")
    found = lines(text)
    if expected is None:
        assert "expects one of 'live', 'stored', got 'keep'" in found[0]
    else:
        assert found == expected


def test_a_teacher_may_be_augmented_where_its_logits_are_stored(folder: Path) -> None:
    text = swap("{epochs: 4}", "{epochs: 4, teacher_logits: stored}")
    assert of(text.replace("teacher: big", "teacher: {model: big, train: {augment: {crop: 2}}}"))


@pytest.mark.parametrize(
    ("name", "pair", "label", "where"),
    [
        ("README", "p", "kd", "name"),
        ("ReadMe", "p", "kd", "name"),
        ("s.tuned", "p", "kd", "name"),
        ("s.p.anytime", "p", "kd", "name"),
        ("s", "p.tuned", "kd", "pairs.p.tuned"),
        ("s", "README.md", "kd", "pairs.README.md"),
        ("s", "P0", "kd", "pairs.P0"),
        ("s", "p", "expected-best", "methods.expected-best"),
        ("s", "p", "NONE", "methods.NONE"),
    ],
)
def test_no_name_is_that_of_another_file(tmp_path: Path, name: str, pair: str, label: str, where: str) -> None:
    path = tmp_path / "s.yaml"
    roles = "{teacher: cnn, student: cnn}"
    path.write_text(
        f"name: {name}\ndata: {{name: digits}}\nrecipe: {{epochs: 1, batch_size: 64, optimizer: {{lr: 0.1}}}}\n"
        f"pairs:\n  p0: {roles}\n  {pair}: {roles}\nmethods:\n  none:\n  {label}: {{method: kd}}\nseeds: [0]\n"
    )
    with pytest.raises(UserError) as raised:
        load(path)
    (sentence,) = str(raised.value).splitlines()
    assert re.match(rf".*s\.yaml:\d+:\d+: {re.escape(where)}:? ", sentence), sentence
