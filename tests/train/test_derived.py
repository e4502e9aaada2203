"""Roles that start from another role's trained weights: whole, or some of its layers; frozen or learning."""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from training import assert_same, states

from kdbench import models
from kdbench.board.heading import heading
from kdbench.data import load as load_data
from kdbench.errors import UserError
from kdbench.method import Prepared, Rates
from kdbench.methods.none import NoTeacher
from kdbench.models import layers
from kdbench.streams import seeded
from kdbench.suite.job import expand
from kdbench.suite.load import load
from kdbench.train.workbench import Workbench

SUITE = """
name: derived
data: {name: digits, fraction: 0.2}
recipe: {epochs: 1, batch_size: 32, optimizer: {lr: 0.02}}
pairs:
  p:
    teacher: {model: mlp, options: {hidden: [16, 16, 16]}, train: {epochs: 2}}
    student: {from: teacher, layers: [0, 2]}
    ta: {from: teacher}
methods:
  kd:
seeds: [0]
"""


ONLY = """
from dataclasses import dataclass

from kdbench.method import Plan, Stage
from kdbench.methods.kd import KD


@dataclass(frozen=True)
class Only(KD):
    def plan(self, roles):
        return Plan((Stage({"student": ("ta",)}),))
"""


def suite(folder: Path, text: str = SUITE):
    (folder / "s.yaml").write_text(text)
    return load(folder / "s.yaml")


@pytest.fixture
def made(tmp_path: Path):
    declared = suite(tmp_path)
    data = load_data(declared.file.data, tmp_path)
    (job,) = expand(declared, data.fingerprint)
    return job, Workbench(data, torch.device("cpu"), tmp_path / "runs")


def test_a_student_starts_from_layers_of_the_trained_teacher(made) -> None:
    job, bench = made
    frozen = {role: bench.teacher(spec) for role, spec in job.frozen.items()}
    student, teacher = bench.build(job, "student", frozen), frozen["teacher"].model
    assert len(student.layers) == 2
    for number, other in ((0, 0), (1, 2)):
        assert torch.equal(student.layers[number][0].weight, teacher.layers[other][0].weight)
    assert torch.equal(student.classifier.weight, teacher.classifier.weight)
    assert len(teacher.layers) == 3
    assert any(p.requires_grad for p in student.parameters())
    result = bench.perform(job)
    assert result.status == "ok", result.reason
    assert result.job["roles"]["student"]["layers"] == [0, 2]
    assert result.job["roles"]["student"]["from"] == result.job["roles"]["teacher"]
    assert result.cost.parameters == sum(p.numel() for p in student.parameters())


def test_a_frozen_role_may_be_derived(made) -> None:
    job, bench = made
    (job.folder / "s.yaml").write_text(SUITE.replace("  kd:", "  chain: {method: ./only.py}"))
    (job.folder / "only.py").write_text(ONLY)
    (other,) = expand(load(job.folder / "s.yaml"), bench.data.fingerprint)
    assert set(other.frozen) == {"teacher", "ta"}
    ta, teacher = bench.teacher(other.frozen["ta"]), bench.teacher(other.frozen["teacher"])
    assert ta.record.sha256 == teacher.record.sha256
    assert ta.record.key != teacher.record.key
    assert ta.record.train_seconds == 0
    assert bench.perform(other).status == "ok"


def test_what_it_starts_from_is_part_of_its_identity(tmp_path: Path) -> None:
    def key(text: str) -> str:
        return expand(suite(tmp_path, text), "f")[0].key

    plain = SUITE.replace(
        "student: {from: teacher, layers: [0, 2]}", "student: {model: mlp, options: {hidden: [16, 16]}}"
    )
    keys = {
        key(text) for text in (SUITE, plain, SUITE.replace("[0, 2]", "[0, 1]"), SUITE.replace("epochs: 2", "epochs: 3"))
    }
    assert len(keys) == 4
    assert "from layers 0, 2 of the trained teacher" in heading(suite(tmp_path)).roles["p"]["student"]


@dataclass(frozen=True)
class Adapted(NoTeacher):
    """An adapter beside the classifier of the derived student, which is frozen but for it."""

    def prepare(self, model, role, teachers):
        model.requires_grad_(False)
        model.classifier = nn.Sequential(model.classifier, nn.Linear(10, 10))
        return Prepared(model, {"classifier.1.*": Rates(lr=2.0)})


def test_prepare_works_on_the_derived_weights(made) -> None:
    job, bench = made
    method = Adapted()
    frozen = {role: bench.teacher(spec) for role, spec in job.frozen.items()}
    adapted = dataclasses.replace(job, method=method, plan=method.plan(("teacher", "student")))
    answer = bench._train(adapted, frozen).answer
    source = layers.keep(copy.deepcopy(frozen["teacher"].model), (0, 2), bench.data.shape, "teacher")
    for name, value in states(source.layers).items():
        assert torch.equal(answer.layers.state_dict()[name], value)
    assert torch.equal(answer.classifier[0].weight, source.classifier.weight)


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        (
            "from: teacher, layers: [0, 2]",
            "from: techer",
            "student starts from 'techer', which is no role of this pair",
        ),
        ("from: teacher, layers: [0, 2]", "from: ta", "which itself starts from a role"),
        ("from: teacher, layers: [0, 2]", "from: teacher, layers: [2, 0]", "layers must increase"),
        ("from: teacher, layers: [0, 2]", "model: mlp, layers: [0]", "give `from`"),
        ("from: teacher, layers: [0, 2]", "model: mlp, from: teacher", "remove `model`"),
        ("ta: {from: teacher}", "ta: {from: teacher, pretrained: true}", "remove `weights`, `pretrained` and `train`"),
        ("ta: {from: teacher}", "ta: {from: student}", "itself starts from a role"),
    ],
)
def test_mistakes_are_sentences(tmp_path: Path, old: str, new: str, sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        suite(tmp_path, SUITE.replace(old, new))
    assert sentence in str(caught.value)
    assert "s.yaml:" in str(caught.value)


def test_who_is_trained_by_a_method_gives_no_weights(tmp_path: Path) -> None:
    text = SUITE.replace("student: {from: teacher, layers: [0, 2]}", "student: {from: ta}").replace(
        "ta: {from: teacher}", "ta: {model: mlp}"
    )
    with pytest.raises(UserError, match="starts from 'ta', which method 'chain' trains"):
        suite(tmp_path, text.replace("  kd:", "  kd:\n  chain:"))
    suite(tmp_path, text)


def test_layers_that_do_not_fit_are_refused_when_the_network_is_made(made) -> None:
    job, bench = made
    (job.folder / "s.yaml").write_text(SUITE.replace("[0, 2]", "[0, 7]"))
    (other,) = expand(load(job.folder / "s.yaml"), bench.data.fingerprint)
    with pytest.raises(UserError, match="teacher mlp has no layer 7"):
        bench.build(other, "student")


def test_a_method_may_start_a_copy_from_the_trained_teacher(tmp_path: Path) -> None:
    text = SUITE.replace("{from: teacher, layers: [0, 2]}", "{model: mlp, options: {hidden: [16, 16]}}")
    declared = suite(tmp_path, text.replace("  kd:", "  okd:"))
    data = load_data(declared.file.data, tmp_path)
    (job,) = expand(declared, data.fingerprint)
    assert job.roles["tutor"].init == "teacher"
    assert job.content["roles"]["tutor"]["from"] == job.content["roles"]["teacher"]
    bench = Workbench(data, torch.device("cpu"), tmp_path / "runs")
    frozen = {role: bench.teacher(spec) for role, spec in job.frozen.items()}
    tutor = bench.build(job, "tutor", frozen)
    for name, value in frozen["teacher"].model.state_dict().items():
        assert torch.equal(tutor.state_dict()[name], value)
    assert bench.perform(job).status == "ok"


def test_a_copy_cannot_start_from_a_file_of_answers(tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_bytes(b"")
    text = SUITE.replace("{from: teacher, layers: [0, 2]}", "{model: mlp, options: {hidden: [16, 16]}}")
    line = next(line for line in text.splitlines() if line.strip().startswith("teacher:"))
    text = text.replace(line, "    teacher: {answers: a.npz}").replace("  kd:", "  okd:")
    with pytest.raises(UserError, match="starts a tutor from 'teacher', which is a file of answers and has no weights"):
        suite(tmp_path, text)


# weights in a file ---------------------------------------------------------------------------------------------------
SAMPLED = SUITE.replace(
    "{from: teacher, layers: [0, 2]}", "{model: mlp, options: {hidden: [16, 16]}, init: drawn.safetensors}"
).replace("  kd:", "  none:\n  kd:\n  born_again:")


def drawn(folder: Path, seed: int, hidden: list[int]) -> None:
    """A network's weights, as a generator of weights would leave them."""
    with seeded(seed, "drawn"):
        net = models.build("mlp", {"hidden": hidden}, classes=10, channels=1, size=8)
    save_file(net.state_dict(), folder / "drawn.safetensors")


def test_a_student_starts_from_the_weights_in_a_file_and_its_copies_do_not(tmp_path: Path) -> None:
    drawn(tmp_path, 1, [16, 16])
    declared = suite(tmp_path, SAMPLED)
    data = load_data(declared.file.data, tmp_path)
    jobs = {job.label: job for job in expand(declared, data.fingerprint)}
    bench = Workbench(data, torch.device("cpu"), tmp_path / "runs")
    frozen = {role: bench.teacher(spec) for role, spec in jobs["kd"].frozen.items()}
    expected = load_file(tmp_path / "drawn.safetensors")
    for label in ("none", "kd", "born_again"):
        assert_same(dict(sorted(states(bench.build(jobs[label], "student", frozen)).items())), expected)
    other = states(bench.build(jobs["born_again"], "generation0", frozen))
    assert not torch.equal(other["layers.0.0.weight"], expected["layers.0.0.weight"])
    result = bench.perform(jobs["kd"])
    assert (result.status, result.reason) == ("ok", "")
    assert "from the weights in drawn.safetensors" in heading(declared).roles["p"]["student"]


def test_what_is_in_the_file_is_part_of_the_job_and_its_name_is_not(tmp_path: Path) -> None:
    def key(text: str, label: str = "kd") -> str:
        return {job.label: job.key for job in expand(suite(tmp_path, text), "f")}[label]

    drawn(tmp_path, 1, [16, 16])
    first = key(SAMPLED)
    (tmp_path / "drawn.safetensors").rename(tmp_path / "other.safetensors")
    assert key(SAMPLED.replace("drawn", "other")) == first
    drawn(tmp_path, 2, [16, 16])
    assert key(SAMPLED) != first
    assert key(SAMPLED.replace(", init: drawn.safetensors", "")) not in (first, key(SAMPLED))


@pytest.mark.parametrize(
    ("hidden", "sentence"),
    [([16, 8], "these are not the weights of this Mlp .of another shape: .*"), (None, "weight .* is not finite")],
)
def test_weights_that_do_not_fit_are_a_sentence(tmp_path: Path, hidden: list[int] | None, sentence: str) -> None:
    drawn(tmp_path, 1, hidden or [16, 16])
    if hidden is None:
        kept = load_file(tmp_path / "drawn.safetensors")
        spoilt = {name: torch.full_like(value, torch.nan) for name, value in kept.items()}
        save_file(spoilt, tmp_path / "drawn.safetensors")
    declared = suite(tmp_path, SAMPLED)
    data = load_data(declared.file.data, tmp_path)
    job = next(job for job in expand(declared, data.fingerprint) if job.label == "kd")
    with pytest.raises(UserError, match=f"drawn.safetensors: .*{sentence}"):
        Workbench(data, torch.device("cpu"), tmp_path / "runs").perform(job)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (("", ""), r"s.yaml:\d+:\d+.*no such file: drawn.safetensors \(looked for beside the suite file\)"),
        (("init: drawn", "from: teacher, init: drawn"), "student has the network of the role that it starts from"),
        (("hidden: [16, 16]}, init", "hidden: [16, 16]}, weights: w.pt, init"), "choose where its weights come from"),
        (
            ("train: {epochs: 2}", "init: drawn.safetensors"),
            "is where a role starts to learn, and a method",
        ),
    ],
)
def test_an_impossible_start_is_a_sentence(tmp_path: Path, change: tuple[str, str], sentence: str) -> None:
    if change[0]:
        drawn(tmp_path, 1, [16, 16])
    with pytest.raises(UserError, match=sentence):
        suite(tmp_path, SAMPLED.replace(*change) if change[0] else SAMPLED)
