"""A suite's task: from its data set's file or its own word; what does not fit is refused with a line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kdbench import plugins
from kdbench.errors import UserError
from kdbench.suite.cell import cell_of, objectives_of, rises
from kdbench.suite.job import expand
from kdbench.suite.load import Suite, load
from kdbench.suite.search_rules import followed
from kdbench.tasks.classification import Classification
from kdbench.tasks.regression import Regression

SUITE = """name: s
data: {name: diabetes}
recipe: {epochs: 2}
pairs:
  p:
    teacher: {model: mlp, gate: 70}
    student: {model: mlp}
methods:
  none:
  imitate:
"""
DIGITS = SUITE.replace("diabetes", "digits").replace("imitate", "kd").replace("gate: 70", "min_top1: 70")
TASK = """
from dataclasses import dataclass
from kdbench.tasks import Metric
from kdbench.tasks.regression import Regression

@dataclass(frozen=True)
class Mine(Regression):
    headline = Metric("mae", "mm", "down", 1)
"""


def of(folder: Path, text: str) -> Suite:
    (folder / "s.yaml").write_text(text)
    return load(folder / "s.yaml")


def refused(folder: Path, text: str) -> list[str]:
    with pytest.raises(UserError) as caught:
        of(folder, text)
    return [line.partition("s.yaml:")[2] for line in str(caught.value).splitlines()]


def test_the_task_is_the_data_sets(tmp_path: Path) -> None:
    found = of(tmp_path, SUITE)
    assert (found.task, found.task_name) == (Regression, "regression")
    assert of(tmp_path, DIGITS).task is Classification
    assert plugins.declared_task("digits_lower_half", tmp_path) == "regression"
    assert plugins.declared_task("cifar10", tmp_path) == "classification"


def test_a_users_file_is_read_not_run(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text('raise SystemExit\nTASKS = {"load": "regression"}\ndef load(root): ...\n')
    assert of(tmp_path, SUITE.replace("diabetes", "./mine.py:load")).task is Regression
    assert of(tmp_path, "task: regression\n" + SUITE.replace("diabetes", "folder")).task is Regression


def test_a_method_that_cannot_do_it_is_refused_with_its_line(tmp_path: Path) -> None:
    (line,) = refused(tmp_path, SUITE + "  kd:\n")
    assert line.startswith("11:3: methods.kd: cannot do the suite's task, regression: it needs logits over classes")
    (line,) = refused(tmp_path, SUITE + "  mixed: {method: mixup, over: {method: kd}}\n")
    assert line.startswith("11:3: methods.mixed: ")
    assert of(tmp_path, SUITE + "  kd:\nexclude: [{pair: p, method: kd}]\n").cells == (("p", "none"), ("p", "imitate"))


@pytest.mark.parametrize("label", ["kd", "dkd", "dist", "label_smoothing", "active", "progressive", "mutual"])
def test_what_needs_classes_says_so(label: str) -> None:
    needs = plugins.method_class(label, Path())().needs()
    assert needs.categorical
    assert Regression.misfit(needs)
    assert not Classification.misfit(needs)


@pytest.mark.parametrize("label", ["none", "imitate", "rkd", "at", "sp", "fitnet", "crd", "simkd", "mixup"])
def test_what_fits_regression(label: str) -> None:
    assert Regression.misfit(plugins.method_class(label, Path())().needs()) == ""


def test_an_unknown_task_is_refused(tmp_path: Path) -> None:
    assert refused(tmp_path, "task: regresion\n" + SUITE) == [
        "1:7: task: unknown task 'regresion' (did you mean 'regression'?)"
    ]


def test_gates_name_what_the_task_measures(tmp_path: Path) -> None:
    (line,) = refused(tmp_path, SUITE.replace("gate: 70", "gate: {rms: 3}"))
    assert line.startswith("6:34: pairs.p.teacher.gate.rms: the task regression has no metric 'rms' (did you mean")
    (line,) = refused(tmp_path, SUITE.replace("gate: 70", "min_top1: 70"))
    assert line.startswith("6:37: pairs.p.teacher.min_top1: the task regression has no top1: write `gate`")
    (line,) = refused(tmp_path, DIGITS.replace("min_top1: 70", "min_top1: 70, gate: 3"))
    assert "`min_top1` is the old name of `gate`: remove it" in line
    (line,) = refused(tmp_path, SUITE.replace("student: {model: mlp}", "student: {model: mlp, gate: 3}"))
    assert "has no effect" in line


def test_a_gate_and_its_old_name_change_no_key(tmp_path: Path) -> None:
    texts = [DIGITS, DIGITS.replace("min_top1", "gate"), DIGITS.replace("min_top1: 70", "gate: {top1: 1, nll: 2}")]
    assert len({tuple(job.key for job in expand(of(tmp_path, text))) for text in texts}) == 1
    gates = [of(tmp_path, text).file.pairs["p"].teacher.gates("top1") for text in texts]
    assert gates == [{"top1": 70}, {"top1": 70}, {"top1": 1, "nll": 2}]


def test_the_task_counts_unless_it_is_classification(tmp_path: Path) -> None:
    (job, *_) = expand(of(tmp_path, SUITE))
    assert job.content["data"]["task"] == {"name": "regression"}
    assert job.frozen["teacher"].content["data"]["task"] == {"name": "regression"}
    keys = [each.key for each in expand(of(tmp_path, SUITE))]
    assert [each.key for each in expand(of(tmp_path, "task: regression\n" + SUITE))] == keys
    assert "task" not in expand(of(tmp_path, DIGITS))[0].content["data"]
    assert [j.key for j in expand(of(tmp_path, "task: classification\n" + DIGITS))] == [
        j.key for j in expand(of(tmp_path, DIGITS))
    ]


def test_a_users_task_counts_with_its_source(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(TASK)
    (job, *_) = expand(of(tmp_path, "task: ./mine.py\n" + SUITE))
    assert job.content["data"]["task"]["name"] == "mine"
    assert job.result("ok").headline == {"name": "mae", "unit": "mm", "better": "down", "digits": 1}
    (tmp_path / "mine.py").write_text(TASK + "# changed\n")
    (other, *_) = expand(of(tmp_path, "task: ./mine.py\n" + SUITE))
    assert other.key != job.key


def test_records_say_what_ranks_only_where_it_is_not_top1(tmp_path: Path) -> None:
    (job, *_) = expand(of(tmp_path, SUITE))
    said = json.loads(job.result("ok").to_json())
    assert said["headline"] == {"name": "rmse", "unit": "", "better": "down", "digits": 3}
    (job, *_) = expand(of(tmp_path, DIGITS))
    assert "headline" not in json.loads(job.result("ok").to_json())
    assert job.result("ok").main["name"] == "top1"


def test_tuning_takes_names_and_directions_from_the_task(tmp_path: Path) -> None:
    found = of(tmp_path, SUITE + "tune: {trials: 2}\n")
    assert objectives_of(found) == ("val/rmse",)
    assert cell_of(found, "p", "imitate").directions == ("minimize",)
    assert followed(Regression) == ("val/rmse", "val/r2")
    assert objectives_of(of(tmp_path, DIGITS + "tune: {trials: 2}\n")) == ("val/top1",)
    names = {name: rises(Classification, f"val/{name}") for name in ("top1", "top5", "nll", "ece", "brier")}
    assert names == {"top1": True, "top5": True, "nll": False, "ece": False, "brier": False}
    assert rises(Regression, "val/r2")
    assert rises(Regression, "images_per_second")
    assert not rises(Regression, "macs")
    (line,) = refused(tmp_path, SUITE + "tune: {trials: 2, metric: val/top1}\n")
    assert "tune.metric: unknown metric 'val/top1'" in line
    (line,) = refused(tmp_path, SUITE + "tune: {trials: 2, metric: val/mae, pruner: median}\n")
    assert "can follow val/rmse and val/r2 only" in line
