"""From a suite file to stored results: isolation of failures, reruns, shared teachers, gates."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from training import LITTLE, assert_same

from kdbench.run.runner import Listener, failed, run
from kdbench.run.store import Store
from kdbench.suite.job import expand
from kdbench.suite.load import load
from kdbench.train.workbench import Workbench

SUITE = LITTLE.replace("  kd:\n", "  kd:\n  fitnet:\n")

METHOD = """
from dataclasses import dataclass
from kdbench.method import Method, Plan, Refusal, Stage, knob

@dataclass(frozen=True)
class Odd(Method):
    kind: str = knob("raise", choices=["raise", "refuse", "nan", "touch"])

    def plan(self, roles):
        return Plan((Stage({"student": ("teacher",)}),))

    def loss(self, learner, teachers, batch, heads):
        if self.kind == "raise":
            raise ZeroDivisionError("on purpose")
        if self.kind == "refuse":
            raise Refusal("odd wants even classes")
        return {"odd": learner.logits_BC.sum() * float("nan")}
"""


class Desk:
    """A suite in a temporary folder, opened as often as asked, always reading from disk."""

    def __init__(self, folder: Path, text: str = SUITE) -> None:
        self.folder, self.path, self.warned = folder, folder / "little.yaml", []
        self.write(text)

    def write(self, text: str) -> None:
        self.path.write_text(text)

    def open(self):
        suite = load(self.path)
        device = torch.device("cpu")
        jobs = expand(suite)
        bench = Workbench.load(jobs[0], self.folder, device, self.folder / "runs", warn=self.warned.append)
        return expand(suite, bench.data.fingerprint), bench, Store(self.folder / "board", suite.file.name)

    def run(self, **options):
        jobs, bench, store = self.open()
        return run(jobs, bench, store, **options)


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def test_every_job_gets_a_result_and_a_rerun_trains_nothing(desk: Desk) -> None:
    first = desk.run()
    assert first.trained == 6
    assert [r.status for r in first.results] == ["ok"] * 6
    started = []
    again = desk.run(listener=Listener(started=started.append))
    assert again.trained == 0
    assert started == []
    assert again.results == first.results


def test_a_result_holds_what_the_protocol_lists(desk: Desk) -> None:
    result = next(r for r in desk.run().results if r.method == "fitnet")
    assert {"test/top1", "test/nll", "test/ece", "test/brier", "test/agreement", "test/kl", "val/top1"} <= set(
        result.scores
    )
    assert len(result.curves["train/loss"]) == 2
    assert result.cost.head_parameters > 0
    assert result.cost.parameters < result.cost.teacher_parameters
    assert result.cost.train_seconds > 0
    assert result.cost.cpu_seconds > 0
    assert result.cost.teacher_seconds > 0
    assert result.cost.latency_ms_batch256 > result.cost.latency_ms_batch1 > 0
    assert result.teacher.sha256
    assert set(result.provenance) == {"versions", "git", "device", "device_name", "precision", "split"}
    assert result.job["data"]["fingerprint"]
    text = result.to_json()
    assert str(desk.folder) not in text
    assert str(Path.home()) not in text
    json.loads(text)


def test_one_teacher_for_all_trained_once(desk: Desk) -> None:
    watched = []
    jobs, bench, store = desk.open()
    bench.watch = lambda what, progress: watched.append(what)
    results = run(jobs, bench, store).results
    assert watched.count("teacher cnn") == 3  # its epochs, once
    assert len({r.teacher.sha256 for r in results}) == 1
    jobs, bench, store = Desk(desk.folder, SUITE.replace("seeds: [0, 1]", "seeds: [2]")).open()
    bench.watch = lambda what, progress: watched.append(what)
    run(jobs, bench, store)
    assert watched.count("teacher cnn") == 3


@pytest.mark.parametrize("victim", ["weights.safetensors", "record.json"])
def test_a_damaged_teacher_is_named_set_aside_and_made_again(desk: Desk, victim: str) -> None:
    first = desk.run()
    (path,) = (desk.folder / "runs" / "teachers").glob(f"*/{victim}")
    raw = bytearray(path.read_bytes())
    raw[-20] ^= 0x55
    path.write_bytes(bytes(raw) if victim.startswith("weights") else bytes(raw)[:40])
    desk.write(SUITE.replace("seeds: [0, 1]", "seeds: [2]"))
    second = desk.run()
    assert any("damaged teacher" in sentence for sentence in desk.warned)
    assert len(list((desk.folder / "runs" / "teachers").glob("*.damaged"))) == 1
    assert second.results[0].teacher.sha256 == first.results[0].teacher.sha256


def odd(kind: str) -> str:
    return SUITE.replace("  fitnet:", f"  odd: {{method: ./odd.py, kind: {kind}}}")


@pytest.mark.parametrize(
    ("kind", "status", "reason"),
    [
        ("raise", "failed", "ZeroDivisionError: on purpose"),
        ("refuse", "skipped", "odd wants even classes"),
        ("nan", "diverged", "not finite in epoch 1 of 2"),
    ],
)
def test_trouble_in_one_job_is_a_result_and_the_others_go_on(desk: Desk, kind: str, status: str, reason: str) -> None:
    (desk.folder / "odd.py").write_text(METHOD)
    desk.write(odd(kind))
    summary = desk.run()
    troubled = summary.troubled
    assert [(r.method, r.status) for r in troubled] == [("odd", status)] * 2
    assert all(reason in r.reason for r in troubled)
    assert sum(r.status == "ok" for r in summary.results) == 4
    assert summary.trained == (6 if status == "diverged" else 4)  # what failed, or was skipped, was not trained
    assert summary.reused == 0
    again = desk.run()
    assert len(again.new) == (0 if status == "diverged" else 2)  # a divergence is final, the rest is tried again
    assert (again.trained, again.reused) == (0, 6 - len(again.new))
    if status == "failed":
        (log,) = {r.reason.partition("log: ")[2].rstrip(")") for r in troubled[:1]}
        assert "ZeroDivisionError" in (desk.folder / "runs" / log).read_text()


def test_a_teacher_below_its_gate_stops_the_pair_with_a_sentence(desk: Desk) -> None:
    desk.write(SUITE.replace("train: {epochs: 3}", "train: {epochs: 3}, min_top1: 99.9"))
    summary = desk.run()
    assert {r.status for r in summary.results} == {"skipped"}
    assert "below its gate of 99.9%" in summary.results[0].reason
    desk.write(SUITE)  # the gate is not part of a job's identity
    assert {r.status for r in desk.run().results} == {"ok"}


def test_a_changed_knob_makes_stale_results_that_are_kept(desk: Desk) -> None:
    desk.run()
    desk.write(SUITE.replace("  kd:", "  kd: {method: kd, temperature: 2}"))
    again = desk.run()
    assert again.trained == 2
    assert {r.method for r in again.results if r.job["method"]["knobs"].get("temperature") == 2} == {"kd"}
    assert len(list((desk.folder / "board" / "results" / "little").glob("p.kd.*.json"))) == 4


class Killed(BaseException):
    pass


def test_a_stopped_job_continues_from_its_checkpoint_with_the_same_numbers(desk: Desk, tmp_path: Path) -> None:
    undisturbed = Desk(tmp_path / "other" if (tmp_path / "other").mkdir() is None else tmp_path).run().results
    epochs = []

    def stop_after_three(what: str, progress) -> None:
        epochs.append(what)
        if len(epochs) % 3 == 0:
            raise Killed

    for _ in range(30):
        jobs, bench, store = desk.open()
        bench.watch = stop_after_three
        try:
            results = run(jobs, bench, store).results
            break
        except Killed:
            continue
    assert len(epochs) == 3 + 12  # every epoch of teacher and students was trained once
    for one, other in zip(results, undisturbed, strict=True):
        assert one.scores == other.scores
        assert one.curves == other.curves
    assert not list((desk.folder / "runs" / "checkpoints").glob("*"))


def test_students_are_kept_and_reload(desk: Desk) -> None:
    from safetensors.torch import load_file

    result = desk.run().results[0]
    jobs, bench, _ = desk.open()
    model = bench.build(jobs[0], "student")
    kept = load_file(desk.folder / "runs" / "students" / f"{result.key}.safetensors")
    model.load_state_dict(kept)
    assert_same(dict(sorted(kept.items())), dict(sorted(model.state_dict().items())))


def test_same_content_under_two_labels_is_trained_once(desk: Desk) -> None:
    desk.write(SUITE.replace("  fitnet:", "  twin: {method: kd, temperature: 4.0}"))
    summary = desk.run()
    assert summary.trained == 4
    by_label = {(r.method, r.seed): r for r in summary.results}
    assert dataclasses.replace(by_label["twin", 0], method="kd") == by_label["kd", 0]


def test_results_that_cannot_be_written_stop_the_run_with_a_sentence(desk: Desk) -> None:
    from kdbench.errors import UserError

    (desk.folder / "board").write_text("in the way")
    with pytest.raises(UserError, match="cannot write results"):
        desk.run()


def test_a_teacher_is_read_from_a_file_and_the_file_is_part_of_the_identity(desk: Desk) -> None:
    jobs, bench, _ = desk.open()
    teacher = bench.teacher(jobs[0].frozen["teacher"])
    torch.save({"state_dict": teacher.model.state_dict()}, desk.folder / "teacher.pt")
    desk.write(SUITE.replace("train: {epochs: 3}", "weights: teacher.pt"))
    found = desk.run()
    assert {r.status for r in found.results} == {"ok"}
    assert {r.teacher.sha256 for r in found.results} == {teacher.record.sha256}
    assert {r.teacher.scores["val/top1"] for r in found.results} == {teacher.record.scores["val/top1"]}
    assert {r.cost.teacher_seconds for r in found.results} == {0.0}
    torch.save({k: v * 1.5 for k, v in teacher.model.state_dict().items()}, desk.folder / "teacher.pt")
    assert not {r.key for r in found.results} & {job.key for job in desk.open()[0]}


def test_a_failure_is_recorded_on_the_track_of_its_job(tmp_path: Path) -> None:
    (tmp_path / "little.yaml").write_text(SUITE)
    job = expand(load(tmp_path / "little.yaml"), "f00d")[0]
    assert failed(job, "why").track == "default"
    assert failed(dataclasses.replace(job, track="tuned"), "why").track == "tuned"
