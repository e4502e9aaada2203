"""The contract that every method inherits: each test runs for each file of kdbench/methods/, by discovery."""

from __future__ import annotations

import ast
import copy
import dataclasses
import inspect
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from small_nets import CLASSES, STUDENTS, Problem, batch

from kdbench import plugins
from kdbench.method import Method, Refusal, Wrapper, clashes, knobs
from kdbench.suite.knobs import method_model
from kdbench.targets import Targets

NAMES = plugins.builtin_methods()
CLS: dict[str, type[Method]] = {name: plugins.method_class(name, Path()) for name in NAMES}
CONTROLS = {"none", "label_smoothing", "mixup"}  # no teacher, or over a method without one
ZERO_WHEN_EQUAL = {"kd", "dkd", "at", "sp", "rkd", "chain", "mutual", "born_again", "active", "progressive"}
HEADLESS = set(NAMES) - {"fitnet", "crd", "simkd"}
PACKAGE = Path(plugins.__file__).parent


@pytest.fixture(params=NAMES)
def name(request) -> str:
    return request.param


@pytest.fixture
def method(name: str) -> Method:
    return CLS[name]()


def total(terms: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.stack(list(terms.values())).sum()


def test_every_file_is_discovered() -> None:
    expected = "active at born_again chain crd dist dkd fitnet kd label_smoothing mixup mutual none rkd simkd sp"
    assert set(expected.split()) <= set(NAMES)


# declarations --------------------------------------------------------------------------------------------------------
def test_it_is_a_frozen_hashable_value(method: Method) -> None:
    assert method == type(method)()
    assert hash(method) == hash(type(method)())
    with pytest.raises(dataclasses.FrozenInstanceError):
        method.anything = 1  # type: ignore[attr-defined]


def test_every_field_is_a_knob_whose_default_is_in_its_range(method: Method) -> None:
    found = knobs(method)
    fields = {field.name for field in dataclasses.fields(method)}  # type: ignore[arg-type]
    assert fields - {"over"} == set(found)
    assert ("over" in fields) == isinstance(method, Wrapper)
    method_model(type(method))()  # the schema checks defaults against ranges and types
    for field in found.values():
        spec = field.metadata["knob"]
        assert spec["help"]
        if isinstance(field.default, int | float):
            assert spec["low"] is None or spec["low"] <= field.default
            assert spec["high"] is None or field.default <= spec["high"]
            assert not spec["log"] or spec["low"] > 0


def test_its_docstrings_name_a_source(name: str) -> None:
    first = (inspect.getdoc(CLS[name]) or "").splitlines()[0]
    assert first.endswith(".")
    module = sys.modules[CLS[name].__module__].__doc__ or ""
    assert name == "none" or any(f" {year}" in module for year in range(1990, 2030))
    assert "L = " in module or issubclass(CLS[name], Wrapper)


# Roles that a plan names although the pair lacks them, so that the user is told.
MISSING = {"chain": {"ta"}, "progressive": {"weak1"}}
ROLES = [("teacher", "student"), ("teacher", "student", "ta"), ("teacher", "ta", "ta2", "student", "peer")]


@pytest.mark.parametrize("roles", ROLES, ids="-".join)
def test_its_plan_is_consistent(name: str, method: Method, roles: tuple[str, ...]) -> None:
    plan = method.plan(roles)
    assert set(plan.answer) <= set(plan.stages[-1].learners)
    assert not set(plan.copies) & set(roles)
    assert set(plan.copies.values()) <= set(roles)
    missing = set(plan.roles) - set(roles) - set(plan.copies)
    assert missing == MISSING.get(name, set()) - set(roles)
    taught: set[str] = {"teacher"}
    for stage in plan.stages:
        assert stage.share > 0
        for learner, teachers in stage.learners.items():
            assert learner not in teachers
            assert set(teachers) <= taught | set(stage.learners), "a teacher must be trained before it teaches"
        taught |= set(stage.learners)


def test_a_wrapper_delegates_what_it_does_not_set(method: Method) -> None:
    if not isinstance(method, Wrapper):
        pytest.skip("not a wrapper")
    assert clashes(method) == []
    assert vars(type(method)).keys() & {"plan", "prepare", "deploy", "sample", "batch", "heads", "loss"}
    assert method.needs() == dataclasses.replace(method.over.needs(), probe=method.needs().probe)


# terms ---------------------------------------------------------------------------------------------------------------
def test_terms_are_finite_scalars_with_the_right_names(name: str, method: Method) -> None:
    terms = Problem(method).terms(batch())
    for value in terms.values():
        assert value.shape == ()
        assert value.dtype == torch.float32
        assert value.isfinite()
    inner = method
    while isinstance(inner, Wrapper):
        inner = inner.over
    term = next(n for n, cls in CLS.items() if cls is type(inner))
    expected = {"none": {"ce"}, "label_smoothing": {"ce"}, "simkd": {"simkd"}}.get(term, {"ce", term})
    assert set(terms) - {name} == expected - {name}  # a wrapper may add a term of its own
    assert name in terms or name in CONTROLS or isinstance(method, Wrapper)


def test_the_gradient_reaches_learner_and_heads_and_never_a_teacher(name: str, method: Method) -> None:
    problem = Problem(method)
    for net in problem.teachers.values():
        net.requires_grad_(True)
    terms = problem.terms(batch())
    assert all(value.requires_grad for value in terms.values())
    total(terms).backward()
    reached = {n for n, p in problem.student.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    expected = {n for n, _ in problem.student.named_parameters()}
    assert reached == (expected - {"fc.weight", "fc.bias"} if name == "simkd" else expected)
    for n, p in problem.heads.named_parameters():
        assert p.requires_grad == (p.grad is not None), f"heads: {n} is trainable but no gradient reaches it"
    assert all(p.grad is None for net in problem.teachers.values() for p in net.parameters())


def test_each_term_alone_moves_the_learner(method: Method) -> None:
    for key in Problem(method).terms(batch()):
        problem = Problem(method)
        problem.terms(batch())[key].backward()
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in problem.student.parameters()), key


def test_batch_rng_alone_decides_and_the_global_generator_is_untouched(method: Method) -> None:
    one = Problem(method).terms(batch())
    torch.manual_seed(1234)
    before = torch.get_rng_state()
    problem = Problem(method)
    other = problem.terms(batch())
    assert torch.equal(before, torch.get_rng_state())
    assert {key: value.item() for key, value in one.items()} == {key: value.item() for key, value in other.items()}


def test_the_method_is_not_changed_by_use(method: Method) -> None:
    problem = Problem(method)
    problem.terms(batch())
    assert method == type(method)()


def test_float64_agrees_with_float32(method: Method) -> None:
    narrow = Problem(method).terms(batch())
    problem = Problem(method, dtype=torch.float64)
    given = batch(dtype=torch.float64)
    for key, value in problem.terms(given).items():
        assert value.dtype == torch.float64
        assert value.item() == pytest.approx(narrow[key].item(), rel=2e-3, abs=1e-5)


def test_bfloat16_features_are_compared_in_float32(name: str, method: Method) -> None:
    problem, given = Problem(method), batch()
    learner, teachers = problem.outs(given.x)

    def rounded(out, dtype):
        taps = {key: value.bfloat16().to(dtype) for key, value in out.taps.items()}
        return dataclasses.replace(out, rows=out.rows.bfloat16().to(dtype), taps=taps)

    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        heads = copy.deepcopy(problem.heads)
        said = {role: rounded(out, dtype) for role, out in teachers.items()}
        given.rng.manual_seed(0)
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16):
            found[dtype] = method.loss(rounded(learner, dtype), said, given, heads)
    for key, value in found[torch.bfloat16].items():
        assert value.dtype == torch.float32
        tolerance = 1e-5 if name in HEADLESS | {"crd"} else 0.1  # a convolution in heads is the engine's to round
        assert value.item() == pytest.approx(found[torch.float32][key].item(), rel=tolerance, abs=1e-6)


def test_the_order_of_a_batch_does_not_matter(name: str, method: Method) -> None:
    if name == "crd":
        pytest.skip("draws other negatives for each position")
    given = batch(dtype=torch.float64)
    order = torch.randperm(8, generator=torch.Generator().manual_seed(5))
    shuffled = dataclasses.replace(
        given, x=given.x[order], targets=Targets(given.labels[order], CLASSES), index_B=given.index_B[order]
    )
    problem = Problem(method, dtype=torch.float64)
    one, other = (method.loss(*problem.outs(b.x), b, problem.heads) for b in (given, shuffled))
    assert {k: v.item() for k, v in one.items()} == pytest.approx({k: v.item() for k, v in other.items()}, rel=1e-9)


def test_a_batch_of_two_works(method: Method) -> None:
    problem = Problem(method)
    terms = problem.terms(batch(2))
    total(terms).backward()
    assert all(value.isfinite() for value in terms.values())
    assert all(p.grad.isfinite().all() for p in problem.student.parameters() if p.grad is not None)


def test_equal_networks_have_no_distillation_term(name: str, method: Method) -> None:
    if name not in ZERO_WHEN_EQUAL:
        pytest.skip("makes no such promise")
    problem = Problem(method, dtype=torch.float64, same=True)
    terms = problem.terms(batch(dtype=torch.float64))
    (distilled,) = (value for key, value in terms.items() if key != "ce")
    assert distilled.item() == pytest.approx(0, abs=1e-5)
    unequal = Problem(method, dtype=torch.float64).terms(batch(dtype=torch.float64))
    assert all(value.item() > 1e-4 for value in unequal.values())


def test_identical_teachers_count_as_one(name: str, method: Method) -> None:
    problem, given = Problem(method), batch()
    if isinstance(method, Wrapper) or not problem.teachers or name not in HEADLESS:
        pytest.skip("no teacher, or heads of its own for each")
    learner, teachers = problem.outs(given.x)
    (out,) = teachers.values()
    one = method.loss(learner, {"t1": out}, given, problem.heads)
    other = method.loss(learner, {"t1": out, "t2": out, "t3": out}, given, problem.heads)
    for key in one:
        assert one[key].item() == pytest.approx(other[key].item(), rel=1e-6)
    with pytest.raises(ValueError, match="needs a teacher"):
        method.loss(learner, {}, given, problem.heads)


# features, heads, deployment -----------------------------------------------------------------------------------------
FITS = {  # what else than a map each method accepts; every method accepts maps of any width, size and number
    "at": {"tokens", "tokens with a class token"},
    "simkd": set(),
    "fitnet": {"tokens", "tokens with a class token", "vectors"},
}
FITS["opdf"] = set()  # aligns weights of equal shapes: only the maps' students have some
NO_MAPS = {"tokens", "tokens with a class token", "tokens of no square", "vectors"}


@pytest.mark.parametrize("student", STUDENTS)
def test_unlike_features_work_or_are_refused_with_a_sentence(name: str, method: Method, student: str) -> None:
    if student in NO_MAPS - FITS.get(name, NO_MAPS):
        with pytest.raises(Refusal) as refused:
            Problem(method, student)
        assert len(str(refused.value).split()) > 5
        return
    terms = Problem(method, student).terms(batch())
    total(terms).backward()
    assert all(value.isfinite() for value in terms.values())


def test_heads_survive_their_state_dict(method: Method) -> None:
    first, second = Problem(method), Problem(method)
    first.terms(batch(seed=7))  # memories and running statistics move
    with torch.no_grad():
        for p in first.heads.parameters():
            p.add_(0.1)
    second.heads.load_state_dict(copy.deepcopy(first.heads.state_dict()))
    one, other = first.terms(batch()), second.terms(batch())
    assert {k: v.item() for k, v in one.items()} == {k: v.item() for k, v in other.items()}


def test_heads_share_no_weights_with_the_models(method: Method) -> None:
    problem = Problem(method)
    nets = [problem.student, *problem.teachers.values()]
    owned = {p.data_ptr() for net in nets for p in (*net.parameters(), *net.buffers())}
    assert not owned & {p.data_ptr() for p in (*problem.heads.parameters(), *problem.heads.buffers())}


def test_what_is_deployed_answers_logits(method: Method) -> None:
    problem, given = Problem(method), batch()
    before = problem.student.eval()(given.x)
    deployed = method.deploy(copy.deepcopy(problem.student), copy.deepcopy(problem.heads)).eval()
    assert deployed(given.x).shape == (8, CLASSES)
    assert torch.equal(problem.student(given.x), before)


# speed and imports ---------------------------------------------------------------------------------------------------
HOST_READS = ("item", "tolist", "numpy", "cpu", "__bool__", "__float__", "__int__", "__index__")


def test_nothing_is_read_from_the_device(method: Method, monkeypatch) -> None:
    problem, given = Problem(method), batch()
    outs = problem.outs(given.x)
    for member in HOST_READS:

        def refuse(self, *args, _member=member, **kwargs):
            raise AssertionError(f"Tensor.{_member} waits for the device")

        monkeypatch.setattr(torch.Tensor, member, refuse)
    method.batch(given)
    method.loss(*outs, given, problem.heads)


def sources() -> list[Path]:
    return [PACKAGE / "losses.py", *(PACKAGE / "methods" / f"{name}.py" for name in NAMES)]


@pytest.mark.parametrize("path", sources(), ids=lambda p: p.stem)
def test_its_source_reads_nothing_from_the_device(path: Path) -> None:
    """Also on branches that no test enters; boolean masks and `nonzero` would wait as well."""
    forbidden = {"item", "tolist", "numpy", "cpu", "nonzero", "unique", "one_hot", "masked_select"}
    tree = ast.parse(path.read_text())
    assert not {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)} & forbidden


@pytest.mark.parametrize("path", sources(), ids=lambda p: p.stem)
def test_its_imports_point_one_way(path: Path) -> None:
    """Methods know the vocabulary and each other; a method with mathematics beyond one file brings a module along."""
    allowed = {f"kdbench.{module}" for module in ("batch", "errors", "lazy", "losses", "method", "targets")}
    tree = ast.parse(path.read_text())
    typing_only = {
        node for block in ast.walk(tree) if isinstance(block, ast.If) for item in block.body for node in ast.walk(item)
    }
    for node in ast.walk(tree):
        if node in typing_only:
            continue
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0
            assert node.module
            for module in (
                [f"kdbench.{alias.name}" for alias in node.names] if node.module == "kdbench" else [node.module]
            ):
                assert module in allowed or module.startswith("kdbench.methods") or not module.startswith("kdbench")
                assert not module.startswith("torch")
        elif isinstance(node, ast.Import):
            assert not any(alias.name.startswith(("torch", "kdbench")) for alias in node.names)


def test_importing_every_method_does_not_import_torch() -> None:
    code = (
        "import importlib, sys, kdbench.losses\n"
        f"for name in {NAMES!r}: importlib.import_module('kdbench.methods.' + name)\n"
        "from kdbench import plugins; from pathlib import Path\n"
        f"made = [plugins.method_class(name, Path())() for name in {NAMES!r}]\n"
        "[(m.needs(), m.plan(('teacher', 'student')), hash(m)) for m in made]\n"
        "assert 'torch' not in sys.modules, 'torch was imported'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
