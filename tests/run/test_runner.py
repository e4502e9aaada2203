"""From a suite file to stored results: isolation of failures, reruns, shared teachers, gates."""

from __future__ import annotations

import dataclasses
import errno
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from training import LITTLE, assert_same

from kdbench.errors import UserError
from kdbench.run.runner import Listener, failed, run
from kdbench.run.store import Store
from kdbench.run.summary import Summary
from kdbench.suite.job import expand
from kdbench.suite.load import load
from kdbench.train import evaluate
from kdbench.train.workbench import Workbench

SUITE = LITTLE.replace("  kd:\n", "  kd:\n  fitnet:\n")

METHOD = """
from dataclasses import dataclass
from torch import nn
from kdbench.method import Method, Plan, Refusal, Stage, knob

class Mute(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x) * float("nan")

@dataclass(frozen=True)
class Odd(Method):
    kind: str = knob("raise", choices=["raise", "refuse", "nan", "touch", "mute"])

    def plan(self, roles):
        return Plan((Stage({"student": ("teacher",)}),))

    def loss(self, learner, teachers, batch, heads):
        if self.kind == "raise":
            raise ZeroDivisionError("on purpose")
        if self.kind == "refuse":
            raise Refusal("odd wants even classes")
        return {"odd": learner.rows.sum() * float("nan" if self.kind == "nan" else 0)}

    def deploy(self, learner, heads):
        return Mute(learner) if self.kind == "mute" else learner
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


def negated(folder: Path) -> None:
    """Logits that were never said, under weights that are whole."""
    path = folder / "weights.safetensors"
    tensors = load_file(path)
    save_file({k: -v if k.startswith("logits.") else v for k, v in tensors.items()}, path)


def edited(**fields: object) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = folder / "record.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))

    return edit


@pytest.mark.parametrize(
    "spoil",
    [
        negated,
        edited(scores={"val/top1": 99.9, "test/top1": 99.9}),
        edited(train_seconds=0.0),
        edited(macs=1),
        edited(key="0" * 12),
        edited(digest=""),
        edited(scores=[]),
        lambda folder: (folder / "record.json").write_text("[" * 100_000),
    ],
)
def test_what_is_read_back_of_a_teacher_is_under_one_digest(desk: Desk, spoil: Callable[[Path], object]) -> None:
    jobs, bench, _ = desk.open()
    role = jobs[0].frozen["teacher"]
    first = bench.teacher(role)
    folder = desk.folder / "runs" / "teachers" / role.key
    spoil(folder)
    again = desk.open()[1].teacher(role)
    assert any("damaged teacher" in sentence and sentence.isprintable() for sentence in desk.warned)
    assert folder.with_name(f"{role.key}.damaged").is_dir()
    assert again.record.sha256 == first.record.sha256
    assert again.record.scores == first.record.scores
    assert torch.equal(again.val, first.val)
    desk.warned.clear()
    assert desk.open()[1].teacher(role).record == again.record
    assert not desk.warned


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
        ("mute", "diverged", "after its last epoch its val answers are not finite"),
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


# A step a epoch, the last of which goes to infinity; no loss is measured after it.
LAST_STEP = """
name: little
data: {name: digits}
recipe: {epochs: 1, batch_size: 2000, optimizer: {name: sgd, lr: 1e20}, schedule: {name: constant}}
pairs:
  p:
    teacher: {model: cnn, options: {widths: [8, 16, 16]}, train: {optimizer: {lr: 0.05}}}
    student: {model: cnn, options: {widths: [4, 8, 8]}}
methods: {none: , kd: }
seeds: [0]
"""


def test_a_divergence_in_the_last_step_is_one(desk: Desk) -> None:
    desk.write(LAST_STEP)
    summary = desk.run()
    assert [r.status for r in summary.results] == ["diverged"] * 2
    assert all("not finite" in r.reason and not r.scores for r in summary.results)
    assert not list((desk.folder / "runs" / "students").glob("*"))


def test_a_teacher_that_is_not_finite_is_a_sentence(desk: Desk) -> None:
    desk.write(LAST_STEP.replace(", train: {optimizer: {lr: 0.05}}", ""))
    summary = desk.run()
    assert {r.status for r in summary.results} == {"failed"}
    assert all("its teacher cnn failed" in r.reason and "not finite" in r.reason for r in summary.results)

    desk.write(SUITE)
    jobs, bench, _ = desk.open()
    state = bench.teacher(jobs[0].frozen["teacher"]).model.state_dict()
    name = next(iter(state))
    torch.save(state | {name: state[name] * float("nan")}, desk.folder / "teacher.pt")
    desk.write(SUITE.replace("train: {epochs: 3}", "weights: teacher.pt"))
    with pytest.raises(UserError, match=rf"teacher\.pt: no teacher .*{name} is not finite"):
        desk.run()


def full(path: Path, payload: bytes, **options: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def watched(desk: Desk) -> tuple[list[str], Summary]:
    jobs, bench, store = desk.open()
    epochs: list[str] = []
    bench.watch = lambda what, progress: epochs.append(what)
    return epochs, run(jobs, bench, store)


@pytest.mark.parametrize("module", ["run.store", "train.teachers"])
def test_a_full_disk_costs_no_training(desk: Desk, tmp_path_factory, monkeypatch, module: str) -> None:
    desk.write(LITTLE.replace("seeds: [0, 1]", "seeds: [0]"))
    other = Desk(tmp_path_factory.mktemp("undisturbed"), desk.path.read_text())
    undisturbed = other.run().results
    with monkeypatch.context() as patched:
        patched.setattr(f"kdbench.{module}.write_atomically", full)
        with pytest.raises(UserError, match="No space left"):
            desk.run()
    kept = list((desk.folder / "runs" / "checkpoints").glob("*.pt"))
    assert len(kept) == 1
    epochs, summary = watched(desk)
    none = ["p/none seed 0"] * 2
    assert epochs == [*(none if module == "train.teachers" else []), *["p/kd seed 0"] * 2]
    assert [(r.scores, r.curves) for r in summary.results] == [(r.scores, r.curves) for r in undisturbed]
    assert not list((desk.folder / "runs" / "checkpoints").glob("*"))


def test_a_batch_that_does_not_fit_is_timed_as_unknown(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    def measured(model: torch.nn.Module, x: torch.Tensor) -> float:
        if len(x) == 256:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return 1.5

    monkeypatch.setattr(evaluate, "latency_ms", measured)
    summary = desk.run()
    assert {r.status for r in summary.results} == {"ok"}
    assert {(r.cost.latency_ms_batch1, r.cost.latency_ms_batch256) for r in summary.results} == {(1.5, 0.0)}


def test_results_that_cannot_be_written_stop_the_run_with_a_sentence(desk: Desk) -> None:
    (desk.folder / "board").write_text("in the way")
    with pytest.raises(UserError, match="cannot read results"):
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


ELSEWHERE = SUITE.replace("train: {epochs: 3}", "weights: teacher.pt")


def test_a_teacher_that_knows_the_validation_images_is_noted(desk: Desk) -> None:
    jobs, bench, _ = desk.open()
    honest = bench.teacher(jobs[0].frozen["teacher"])
    torch.save(honest.model.state_dict(), desk.folder / "teacher.pt")
    desk.write(ELSEWHERE)
    assert not any(result.notes for result in desk.run().results)
    assert desk.warned == []
    # Further trained on validation alone, as weights from elsewhere may have been.
    val, model = bench.data.val, honest.model.requires_grad_(True).train()
    x = (val.images / 255 - bench.data.mean[0]) / bench.data.std[0]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(60):
        torch.nn.functional.cross_entropy(model(x), val.labels).backward()
        optimizer.step()
        optimizer.zero_grad()
    torch.save(model.state_dict(), desk.folder / "teacher.pt")
    found = desk.run()
    scores = found.results[0].teacher.scores
    assert scores["val/top1"] > scores["test/top1"] + 5
    said = f"reaches {scores['val/top1']:.1f}% on validation and {scores['test/top1']:.1f}% on test: its weights have"
    assert len(found.results) == 6
    assert all(len(result.notes) == 1 and said in result.notes[0] for result in found.results)
    assert len(desk.warned) == 1
    jobs, bench, _ = desk.open()
    assert bench.perform(jobs[0], ("val",)).notes == []


def test_a_teacher_with_other_classes_stops_the_run_with_a_sentence(desk: Desk) -> None:
    from kdbench.errors import UserError

    (desk.folder / "net.py").write_text(
        "import torch\nfrom torch import nn\nclass Net(nn.Sequential):\n"
        "    def forward(self, x):\n        y = super().forward(x)\n        return torch.cat([y, y], 1)\n"
        "def build(classes, channels, size):\n    return Net(nn.Flatten(), nn.Linear(channels * size**2, classes))\n"
    )
    torch.save({"1.weight": torch.zeros(10, 64), "1.bias": torch.zeros(10)}, desk.folder / "teacher.pt")
    student = ELSEWHERE.replace(
        "{model: cnn, options: {widths: [8, 16, 16]}, weights", "{model: ./net.py:build, weights"
    )
    assert student != ELSEWHERE
    for text in (student, student.replace(", weights: teacher.pt", "")):
        desk.write(text)
        with pytest.raises(UserError, match=r"'./net.py:build': the teacher \(Net\) answers \(2, 20\) .* \(2, 10\)"):
            desk.run()
