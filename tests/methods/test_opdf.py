from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import training
from torch import nn

from kdbench import models
from kdbench.batch import Profile
from kdbench.data import DataSet
from kdbench.method import Method, Needs, Plan, Refusal, Stage, Wrapper, clashes
from kdbench.methods import _mpo as mpo
from kdbench.methods._matrices import Matrix, chosen, matrices, pairs
from kdbench.methods._mpo_shapes import automatic, parse
from kdbench.methods.kd import KD
from kdbench.methods.mixup import Mixup
from kdbench.methods.mutual import Mutual
from kdbench.methods.none import NoTeacher
from kdbench.methods.opdf import OPDF, alignment_loss
from kdbench.suite.fields import Optimizer
from kdbench.suite.load import load
from kdbench.train.engine import Engine, State
from kdbench.train.recipe import parameter_groups

# Same widths, another depth: so that shapes match.
TEACHER = ("cnn", {"widths": [4, 8, 8], "depth": 2})
STUDENT = ("cnn", {"widths": [4, 8, 8]})
VIT = {"patch_size": 2, "embed_dim": 12, "num_heads": 2, "mlp_ratio": 2}


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def digits() -> DataSet:
    return training.digits()


def vit(depth: int, seed: int = 0, **options: object) -> nn.Module:
    torch.manual_seed(seed)
    options = {**VIT, "depth": depth, **options}
    return models.build("vit_tiny_patch16_224", options, classes=10, channels=1, size=8)


def profile(role: str, model: nn.Module) -> Profile:
    return Profile(role, model, 10, {}, 100)


def made(method: OPDF, student: nn.Module, teacher: nn.Module) -> tuple[nn.Module, nn.Module]:
    """The over-parameterised student and its heads."""
    model = method.prepare(student, "student", {"teacher": teacher}).model
    return model, method.heads(profile("student", model), {"teacher": profile("teacher", teacher)})


def term(heads: nn.Module) -> torch.Tensor:
    return alignment_loss(*heads.compared())


# surgery -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("ones", [0, 1, 3])
@pytest.mark.parametrize("build", [lambda: vit(2), lambda: models.build("resnet8", {}, classes=10, channels=1, size=8)])
def test_the_student_starts_as_it_was_and_ends_as_plain(ones: int, build: object) -> None:
    plain = build().eval()
    method = OPDF(scale=ones, align=False)
    model = method.prepare(copy.deepcopy(plain), "student", {}).model.eval()
    x = torch.randn(8, 1, 8, 8)
    torch.testing.assert_close(model(x), plain(x), rtol=0, atol=1e-5)
    added = sum(automatic(*m.shape, ones).added() for m in chosen(plain, (), "student").values())
    assert added > 0
    count = [sum(p.numel() for p in m.parameters()) for m in (model, plain)]
    assert count[0] == count[1] + added

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(3):  # now factors are no longer balanced
        model(x).square().mean().backward()
        optimizer.step()
    trained = model(x)
    assert not torch.allclose(trained, plain(x), atol=1e-3)
    heads = method.heads(profile("student", model), {})
    deployed = method.deploy(copy.deepcopy(model.requires_grad_(False)), copy.deepcopy(heads))
    torch.testing.assert_close(deployed(x), trained, rtol=0, atol=1e-4)
    assert [type(m) for m in deployed.modules()] == [type(m) for m in plain.modules()]
    assert {k: v.shape for k, v in deployed.state_dict().items()} == {k: v.shape for k, v in plain.state_dict().items()}
    assert list(deployed.state_dict()) == list(plain.state_dict())
    assert [n for n, _ in deployed.named_parameters()] == [n for n, _ in plain.named_parameters()]
    torch.testing.assert_close(model(x), trained, rtol=0, atol=0)  # the learner goes on undisturbed


def test_default_layers_of_each_family() -> None:
    names = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    assert list(chosen(vit(2), (), "student")) == [f"blocks.{i}.{name}" for i in (0, 1) for name in names]
    resnet = models.build("resnet8", {}, classes=10, channels=3, size=32)
    body = chosen(resnet, (), "student")
    assert not {"conv1", "fc"} & set(body)
    assert body["layer2.0.conv1"].shape == (32, 16 * 9)
    mlp = models.build("mlp", {"hidden": [8, 6]}, classes=10, channels=1, size=8)
    assert [m.shape for m in chosen(mlp, (), "student").values()] == [(8, 64), (6, 8)]
    mobile = models.build("mobilenetv2_035", {}, classes=10, channels=3, size=32)
    body = chosen(mobile, (), "student")
    assert body
    assert all(m.layer.groups == 1 for m in body.values())
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 1)
    names = ("self_attn.in_proj", "self_attn.out_proj", "linear1", "linear2")
    assert list(chosen(encoder, (), "student")) == [f"layers.0.{name}" for name in names]


def test_layers_by_pattern() -> None:
    assert list(chosen(vit(2), ("blocks.0.*", "*fc1"), "student")) == [
        *(f"blocks.0.{name}" for name in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")),
        "blocks.1.mlp.fc1",
    ]
    with pytest.raises(Refusal, match=r"no weight matrix of the student is called 'blocks.0.attn.qvk' \(did you mean"):
        chosen(vit(1), ("blocks.0.attn.qvk",), "student")
    linear = models.build("mlp", {"hidden": []}, classes=10, channels=1, size=8)
    with pytest.raises(Refusal, match="no inner weight matrices"):
        chosen(linear, (), "student")


def test_a_shared_weight_is_left_alone() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8))
    model[2].weight = model[0].weight
    assert list(matrices(model)) == ["1"]


def test_shapes_by_hand() -> None:
    method = OPDF(align=False, shapes=("6,1,1,4 x 4,1,1,3",))
    model = method.prepare(vit(1), "student", {}).model
    modes = {
        path: [t.shape[1] for t in mpo.tensors_of(matrix.layer, matrix.name)]
        for path, matrix in chosen(model, (), "student").items()
    }
    assert modes["blocks.0.mlp.fc1"] == [24, 1, 1, 12]
    assert modes["blocks.0.mlp.fc2"] == [4 * 6, 1, 3 * 4]  # others stay automatic
    with pytest.raises(
        Refusal, match="no matrix of the student has the size of shape '5,2 x 3,4'; it has 12x12, 12x24"
    ):
        OPDF(align=False, shapes=("5,2 x 3,4",)).prepare(vit(1), "student", {})


@pytest.mark.parametrize(
    ("knobs", "said"),
    [
        ({"shapes": ("4 4",)}, "'4 4' is not a shape: write rows x columns, for example '32,1,24 x 64,1,48'"),
        ({"shapes": ("2,2 x 2,2", "4,1 x 4,1")}, "shapes: 4x4 is given twice"),
        ({"layer_map": ("0: 1",)}, "layer_map: '0: 1' is not `student <- teacher`, for example 'blocks.0 <- blocks.1'"),
        ({"gauge": "teacher", "rank": 3}, "gauge: teacher keeps full ranks; remove `rank`"),
        (
            {"gauge": "teacher", "shapes": ("4,1,3 x 4,1,3",)},
            "gauge: teacher needs a larger middle than '4,1,3 x 4,1,3' has: the tensors left of it, and those right of "
            "it, must be square together",
        ),
    ],
)
def test_wrong_knobs_are_told(knobs: dict, said: str) -> None:
    with pytest.raises(ValueError) as caught:
        OPDF(**knobs)
    assert str(caught.value) == said


def test_a_rank_bounds_every_bond() -> None:
    model = OPDF(align=False, rank=5).prepare(vit(1), "student", {}).model
    for matrix in chosen(model, (), "student").values():
        one, middle, other = mpo.tensors_of(matrix.layer, matrix.name)
        assert (one.shape[2], middle.shape, other.shape[0]) == (5, (5, 1, 5), 5)


def test_factors_have_rate_and_decay_of_their_own() -> None:
    made = OPDF(align=False, factor_lr=0.25, factor_decay=0.5).prepare(vit(1), "student", {})
    groups = parameter_groups((made.model,), Optimizer(lr=0.1, weight_decay=0.01), made.rates())
    found = {(group["lr"], group["weight_decay"]): group["params"] for group in groups}
    assert set(found) == {(0.1, 0.01), (0.025, 0.005)}
    assert len(found[0.025, 0.005]) == 4 * 3
    made = OPDF(align=False).prepare(vit(1), "student", {})
    default = parameter_groups((made.model,), Optimizer(weight_decay=0.01), made.rates())
    assert {group["weight_decay"] for group in default} == {0.0, 0.01}


# alignment -----------------------------------------------------------------------------------------------------------
def test_the_loss_by_loops() -> None:
    torch.manual_seed(0)
    shapes = [[(1, 4, 3), (3, 6, 1)], [(2, 2, 2)]]
    own, other = ([[torch.randn(s, dtype=torch.float64) for s in group] for group in shapes] for _ in range(2))
    total = 0.0
    for tensors_s, tensors_t in zip(own, other, strict=True):
        matrix = 0.0
        for s, t in zip(tensors_s, tensors_t, strict=True):
            squares = [(a - b) ** 2 for a, b in zip(s.flatten().tolist(), t.flatten().tolist(), strict=True)]
            matrix += sum(squares) / len(squares)
        total += matrix / len(tensors_s)
    assert float(alignment_loss(own, other)) == pytest.approx(total / len(own), rel=1e-12)


@pytest.mark.parametrize(("ones", "auxiliary"), [(0, [1]), (1, [0, 2]), (2, [0, 2, 3]), (3, [0, 1, 3, 4])])
def test_all_but_the_central_tensor_reach_the_loss(ones: int, auxiliary: list[int]) -> None:
    student, heads = made(OPDF(scale=ones), vit(1, seed=1), vit(1, seed=2))
    term(heads).backward()
    for matrix in chosen(student, (), "student").values():
        tensors = mpo.tensors_of(matrix.layer, matrix.name)
        assert [k for k, t in enumerate(tensors) if t.grad is not None] == auxiliary
        assert all(tensors[k].grad.abs().sum() > 0 for k in {0, ones + 1} & set(auxiliary))


def test_the_target_is_the_teachers_decomposition() -> None:
    teacher = vit(1, seed=2)
    student, heads = made(OPDF(scale=1, layers=("*qkv",)), vit(1, seed=1), teacher)
    shape = automatic(36, 12, 1)
    theirs = mpo.decompose(teacher.get_submodule("blocks.0.attn.qkv").weight, shape)
    ours = mpo.tensors_of(student.get_submodule("blocks.0.attn.qkv"), "weight")
    mean = sum((o.reshape(t.shape) - t).square().mean() for o, t in ((ours[0], theirs[0]), (ours[2], theirs[2]))) / 2
    torch.testing.assert_close(term(heads), mean)
    mpo.fold(student).load_state_dict(teacher.state_dict())
    _, heads = made(OPDF(scale=1), student, teacher)
    assert term(heads).item() == 0.0


def test_training_on_the_alignment_moves_the_student_to_the_teacher() -> None:
    """What the released code cannot do: its term has no gradient."""
    student, heads = made(OPDF(), vit(1, seed=1), vit(1, seed=2))
    optimizer = torch.optim.Adam(student.parameters(), lr=1e-2)
    first = term(heads).item()
    for _ in range(60):
        optimizer.zero_grad()
        term(heads).backward()
        optimizer.step()
    assert term(heads).item() < 0.05 * first


def test_the_default_map_is_even() -> None:
    def found(m: int, n: int) -> list[int]:
        student, teacher = (
            {f"blocks.{i}.fc": Matrix(nn.Linear(2, 2), "weight") for i in range(count)} for count in (m, n)
        )
        return [int(path.split(".")[1]) for path in pairs(student, teacher).values()]

    assert found(6, 12) == [2 * i + 1 for i in range(6)]  # the paper's code
    assert found(4, 4) == [0, 1, 2, 3]
    assert found(3, 9) == [2, 5, 8]
    assert found(2, 3) == [1, 2]
    assert found(4, 2) == [0, 0, 1, 1]


def test_pairs_keep_to_their_place_and_shape() -> None:
    student, teacher = chosen(vit(2), (), "student"), matrices(vit(4))
    found = pairs(student, teacher)
    assert found["blocks.0.mlp.fc1"] == "blocks.1.mlp.fc1"
    assert found["blocks.1.attn.proj"] == "blocks.3.attn.proj"
    build = {name: models.build(name, {}, classes=10, channels=3, size=32) for name in ("resnet8", "resnet20")}
    found = pairs(chosen(build["resnet8"], (), "student"), matrices(build["resnet20"]))
    assert found["layer2.0.conv1"] == "layer2.0.conv1"  # 144 columns: the stage's first block only
    assert found["layer2.0.conv2"] == "layer2.2.conv2"
    renamed = {f"encoder.{path}": matrix for path, matrix in teacher.items()}
    assert pairs(student, renamed)["blocks.0.attn.qkv"] == "encoder.blocks.1.attn.qkv"  # by shape alone


def test_a_map_by_hand() -> None:
    student, teacher = chosen(vit(2), (), "student"), matrices(vit(4))
    found = pairs(student, teacher, ("blocks.1 <- blocks.0", "blocks.0.mlp.fc1 <- blocks.2.mlp.fc1"))
    assert found["blocks.1.attn.qkv"] == "blocks.0.attn.qkv"
    assert found["blocks.0.mlp.fc1"] == "blocks.2.mlp.fc1"
    assert len(found) == 5
    with pytest.raises(Refusal, match=r"'blocks\.7 <- blocks\.0' joins no matrices"):
        pairs(student, teacher, ("blocks.7 <- blocks.0",))
    with pytest.raises(Refusal, match=r"fc1 \(24x12\) and the teacher's blocks.0.mlp.fc2 \(12x24\) differ in shape"):
        pairs(student, teacher, ("blocks.0.mlp.fc1 <- blocks.0.mlp.fc2",))


def test_no_pair_of_one_shape_is_refused_with_the_shapes() -> None:
    with pytest.raises(Refusal) as caught:
        made(OPDF(), vit(1), vit(1, embed_dim=20))
    assert str(caught.value) == (
        "no matrix of the student (36x12, 12x12, 24x12, 12x24) can be aligned with one of the teacher (20x4, 60x20, "
        "20x20, 40x20, 20x40, 10x20), since none has the same shape; set `align: false`, or take a teacher of the same "
        "width"
    )
    _, heads = made(OPDF(align=False), vit(1), vit(1, embed_dim=20))
    assert not list(heads.buffers())
    with pytest.raises(Refusal, match="the student has no teacher"):
        OPDF().heads(profile("student", OPDF().prepare(vit(1), "student", {}).model), {})


def test_in_the_teachers_gauge_only_the_middle_differs() -> None:
    plain, teacher = vit(1, seed=1), vit(2, seed=2, embed_dim=20)
    method = OPDF(gauge="teacher", layers=("*attn.proj", "*mlp.fc1"))
    x = torch.randn(4, 1, 8, 8)
    student, heads = made(method, copy.deepcopy(plain), teacher)  # 2,3,2 against 2,5,2: another width
    assert term(heads).item() < 1e-10
    torch.testing.assert_close(student(x), plain(x), rtol=0, atol=1e-4)
    ours = mpo.tensors_of(student.get_submodule("blocks.0.attn.proj"), "weight")
    theirs = mpo.decompose(teacher.get_submodule("blocks.1.attn.proj").weight, parse("2,5,2 x 2,5,2"))
    assert [t.shape[1] for t in ours] == [4, 9, 4]
    for k in (0, 2):
        torch.testing.assert_close(ours[k], theirs[k].flatten(1, 2), rtol=0, atol=1e-6)
    teacher.get_submodule("blocks.1.attn.proj").weight.data.zero_()
    with pytest.raises(Refusal, match="cannot take the teacher's tensors"):
        made(method, copy.deepcopy(plain), teacher)


# in the engine -------------------------------------------------------------------------------------------------------
def options(**changes: object) -> dict:
    return {"teacher": TEACHER, "student": STUDENT, **changes}


def test_trained_and_deployed_in_the_engine(digits: DataSet) -> None:
    method = OPDF(weight=0.1)
    task = training.task(method, digits, **options())
    before = training.states(task.models["teacher"])
    plain = training.network(digits, "student", spec=STUDENT)
    trained = Engine(task).train()
    training.assert_same(before, training.states(task.models["teacher"]))
    assert list(trained.answer.state_dict()) == list(plain.state_dict())
    assert type(trained.answer) is type(plain)
    sizes = [sum(p.numel() for p in m.parameters()) for m in (plain, trained.answer)]
    added = sum(automatic(*m.shape, 1).added() for m in chosen(plain, (), "student").values())
    assert (sizes[0], trained.learner_parameters, trained.head_parameters) == (sizes[1], sizes[0] + added, 0)
    curve = trained.curves["train/opdf"]
    assert 0 < curve[-1] < curve[0]


def test_a_resumed_training_is_the_same(digits: DataSet) -> None:
    method = OPDF(weight=0.1)
    whole = training.train(method, digits, **options())
    saved: list[State] = []
    Engine(training.task(method, digits, **options()), save=lambda s: saved.append(training.snapshot(s))).train()
    assert not any("matrix" in name for name in saved[0].tensors["heads"]["student"])  # targets are found again
    resumed = Engine(training.task(method, digits, **options()), state=saved[0]).train()
    training.assert_same(training.states(whole.answer), training.states(resumed.answer))


def test_without_alignment_the_wrapped_methods_terms_alone(digits: DataSet) -> None:
    trained = training.train(OPDF(align=False, over=NoTeacher()), digits, **options())
    assert set(trained.curves) == {"train/loss", "train/ce", "train/top1", "val/top1", "val/nll"}


@pytest.mark.parametrize("over", [Mixup(over=KD()), KD()])
def test_over_other_methods(digits: DataSet, over: Method) -> None:
    trained = training.train(OPDF(over=over), digits, **options())
    assert all(0 < value < float("inf") for value in trained.curves["train/opdf"])


@dataclass(frozen=True)
class Projected(Method):
    """Trains a head and deploys with it: what reaches the wrapped method must be its own heads."""

    def needs(self) -> Needs:
        return Needs(learner=("pooled",))

    def heads(self, learner: Profile, teachers: Mapping[str, Profile]) -> nn.Module:
        return nn.ModuleDict({"line": nn.Linear(learner.taps["pooled"][0], 1)})

    def deploy(self, model: nn.Module, heads: nn.Module) -> nn.Module:
        model.head_weight = heads["line"].weight.detach()
        return model

    def loss(self, learner, teachers, batch, heads):
        return {"ce": learner.rows.square().mean() + heads["line"](learner.pooled).square().mean()}


def test_the_wrapped_methods_heads_are_its_own(digits: DataSet) -> None:
    trained = training.train(OPDF(over=Projected()), digits, **options())
    assert trained.answer.head_weight.shape == (1, 8)
    assert trained.head_parameters == 9


def test_peers_are_aligned_with_each_other_as_they_learn(digits: DataSet) -> None:
    method = OPDF(over=Mutual(), weight=10.0)
    task = training.task(method, digits, student=STUDENT, peer=STUDENT)
    engine = Engine(task)
    trained = engine.train()
    live = mpo.tensors_of(engine.models["peer"].get_submodule("stages.1.0"), "weight")
    _, targets = engine.heads["student"].compared()
    assert targets[0][0].data_ptr() == live[0].data_ptr()
    assert not targets[0][0].requires_grad
    curve = trained.curves["train/student/opdf"]
    assert curve[-1] < curve[0]


@dataclass(frozen=True)
class Successive(Wrapper):
    """weak1 <- teacher, weak2 <- weak1; the answer is their sum: the shape of progressive distillation."""

    over: Method = KD()

    def plan(self, roles: tuple[str, ...]) -> Plan:
        stages = (Stage({"weak1": ("teacher",)}, 0.5), Stage({"weak2": ("weak1",)}, 0.5))
        return Plan(stages, answer=("weak1", "weak2"), copies={"weak1": "student", "weak2": "student"})


def test_over_several_stages(digits: DataSet) -> None:
    method = OPDF(over=Successive())
    assert clashes(method) == []
    models_ = {"teacher": TEACHER, "weak1": STUDENT, "weak2": STUDENT}
    whole = Engine(training.task(method, digits, **models_)).train()
    saved: list[State] = []
    Engine(training.task(method, digits, **models_), save=lambda s: saved.append(training.snapshot(s))).train()
    resumed = Engine(training.task(method, digits, **models_), state=saved[0]).train()
    training.assert_same(training.states(whole.answer), training.states(resumed.answer))
    assert not any("parametrizations" in name for name in whole.answer.state_dict())


def test_a_peer_that_no_longer_learns_is_a_snapshot() -> None:
    peer = OPDF(align=False).prepare(vit(1, seed=2), "weak1", {}).model.requires_grad_(False)
    _, heads = made(OPDF(), vit(1, seed=1), peer)
    assert len(list(heads.buffers())) == 4 * 2
    plain = mpo.fold(copy.deepcopy(peer))
    _, other = made(OPDF(), vit(1, seed=1), plain)
    torch.testing.assert_close(term(heads), term(other))


def test_the_module_imports_neither_torch_nor_tensorly() -> None:
    code = (
        "import sys; from kdbench.methods.opdf import OPDF;"
        "OPDF(shapes=('4,1,3 x 2,1,2',), layer_map=('a <- b',)).plan(('teacher', 'student'));"
        "print({'torch', 'tensorly', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("set()\n", "")


@pytest.mark.parametrize("name", ["digits-opdf", "cifar10-opdf"])
def test_the_suites_are_valid(name: str) -> None:
    suite = load(Path(__file__).parents[2] / "suites" / f"{name}.yaml")
    arms = {"none", "kd", "kd+svd", "kd+mpo", "kd+opdf", "dkd", "dkd+opdf"}
    assert arms <= set(suite.methods)
    assert isinstance(suite.methods["kd+svd"], OPDF)
    assert {knob: getattr(suite.methods["kd+svd"], knob) for knob in ("scale", "align")} == {"scale": 0, "align": False}
    hash(suite.methods["kd+opdf"])
