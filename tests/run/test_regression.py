"""Regression from a suite file to records: a table, and maps whose pixels are rows."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from commands import kdbench
from sklearn.metrics import r2_score, root_mean_squared_error
from training import assert_same

from kdbench.data.batches import fetch
from kdbench.result import Result
from kdbench.run.runner import run
from kdbench.run.store import Store
from kdbench.suite.job import expand
from kdbench.suite.load import load
from kdbench.train.workbench import Workbench

TABLE = """
name: table
data: {name: diabetes, fraction: 0.5}
recipe: {epochs: 3, batch_size: 16, optimizer: {name: adamw, lr: 0.01}}
pairs:
  p:
    teacher: {model: mlp, options: {hidden: [16]}, train: {epochs: 5}, gate: 1000}
    student: {model: mlp, options: {hidden: [4]}}
methods: {none: , imitate: , rkd: , mixup: }
seeds: [0]
"""
MAPS = """
name: maps
data: {name: digits_lower_half, fraction: 0.2}
recipe: {epochs: 2, batch_size: 32, optimizer: {name: adamw, lr: 0.01}}
pairs:
  p:
    teacher: {model: fcn, options: {widths: [8, 8]}, train: {epochs: 2}, gate: {rmse: 1, r2: -1}}
    student: {model: fcn, options: {widths: [4, 4]}}
methods: {none: , imitate: , fitnet: , at: , mixup: }
seeds: [0]
"""


@pytest.fixture(scope="module", params=[TABLE, MAPS], ids=["table", "maps"])
def done(request, tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("regression")
    (folder / "s.yaml").write_text(request.param)
    suite = load(folder / "s.yaml")
    jobs = expand(suite)
    bench = Workbench.load(jobs[0], folder, torch.device("cpu"), folder / "runs")
    jobs = expand(suite, bench.data.fingerprint)
    return jobs, bench, run(jobs, bench, Store(folder / "board", suite.file.name))


def test_every_job_is_finished_and_its_record_survives_the_file(done) -> None:
    jobs, _, summary = done
    assert [(r.method, r.status, r.reason) for r in summary.results] == [(job.label, "ok", "") for job in jobs]
    for result in summary.results:
        assert Result.from_json(result.to_json()) == result
        assert result.main == {"name": "rmse", "unit": "", "better": "down", "digits": 3}
        assert {f"{s}/{m}" for s in ("val", "test") for m in ("rmse", "mae", "r2", "rmse_to_teacher")} == set(
            result.scores
        )
        assert len(result.curves["val/rmse"]) == len(result.curves["train/loss"])
        assert result.curves["val/rmse"][-1] == pytest.approx(result.scores["val/rmse"])
        assert result.cost.macs > 0
        assert not result.exits


def test_the_scores_are_those_of_the_weights_by_scikit_learn(done) -> None:
    from safetensors.torch import load_file

    jobs, bench, summary = done
    for job, result in zip(jobs, summary.results, strict=True):
        student = bench.build(job, "student").eval()
        student.load_state_dict(load_file(bench.runs / "students" / f"{job.key}.safetensors"))
        test, task = bench.data.test, bench.data.task
        with torch.inference_mode():
            said = student(fetch(test, torch.arange(len(test)))) * task.scale[0] + task.centre[0]
        expected, found = test.labels.flatten().double(), said.flatten().double()
        assert result.scores["test/rmse"] == pytest.approx(root_mean_squared_error(expected, found), rel=1e-5)
        assert result.scores["test/r2"] == pytest.approx(r2_score(expected, found), rel=1e-4)


def test_stored_teachers_say_the_same(done, tmp_path: Path) -> None:
    """A teacher whose answers are looked up teaches what one that runs does: rows follow their examples."""
    jobs, bench, _ = done
    job = next(job for job in jobs if job.label == "imitate")
    recipe = job.recipe.model_copy(update={"teacher_logits": "stored"})
    answers = []
    for number, given in enumerate((job.recipe, recipe)):
        from dataclasses import replace

        own = replace(bench, runs=tmp_path / str(number))
        trained = own._train(replace(job, recipe=given), {r: own.teacher(s) for r, s in job.frozen.items()})
        answers.append(trained.answer.state_dict())
    assert list(answers[0]) == list(answers[1])
    for name in answers[0]:
        torch.testing.assert_close(answers[0][name], answers[1][name])
    assert_same(answers[0], answers[0])


@pytest.mark.parametrize(("gate", "word"), [("1", "above its gate of 1"), ("{r2: 0.99}", "below its gate of 0.99")])
def test_a_teacher_beyond_its_gate_stops_the_pair(tmp_path: Path, gate: str, word: str) -> None:
    (tmp_path / "s.yaml").write_text(TABLE.replace("gate: 1000", f"gate: {gate}"))
    (job, *_) = expand(load(tmp_path / "s.yaml"))
    bench = Workbench.load(job, tmp_path, torch.device("cpu"), tmp_path / "runs")
    result = bench.perform(job)
    assert result.status == "skipped"
    assert word in result.reason
    assert result.reason.endswith("(pairs.p.teacher.gate)")


def test_the_commands_speak_of_the_task(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(TABLE.replace("methods: {none: , imitate: , rkd: , mixup: }", "methods: {none: }"))
    done = kdbench(tmp_path, "run", "s.yaml", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    assert "p/none seed 0: test rmse " in done.stderr + done.stdout
    assert "rows/s" in next((tmp_path / "runs" / "logs").glob("*.txt")).read_text()
    listed = kdbench(tmp_path, "show", "results", "s.yaml", "--json")
    assert "test rmse" in listed.stdout
    assert "regression" in kdbench(tmp_path, "show", "tasks").stdout


def test_a_model_of_images_is_refused_with_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(TABLE.replace("model: mlp", "model: cnn").replace("hidden", "widths"))
    done = kdbench(tmp_path, "run", "s.yaml", "--device", "cpu")
    assert done.returncode == 2
    assert "model 'cnn' takes square images, and the examples of this data set are 10" in done.stderr
