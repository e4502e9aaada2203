"""What every method promises the engine, as tests to inherit.

    class TestMine(kdbench.testing.MethodContract):
        method = Mine()

What holds for some methods only is found out from the method: whether it has heads with parameters, draws random
numbers, wraps another, needs features that some networks lack (then it refuses those, with a sentence).
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from kdbench.batch import Out
from kdbench.method import Method, Prepared, Refusal, Wrapper, changes
from kdbench.testing import watch
from kdbench.testing.contract import Contract, explained
from kdbench.testing.declarations import Declarations, names_of, supervised_names
from kdbench.testing.nets import CLASSES, STUDENTS
from kdbench.testing.problem import EPOCHS, EXAMPLES, Numbers, Problem, accepted, total, values

DRAW = "every draw comes from `batch.rng`, in a fixed dtype (float32), whatever the features' precision is"


class MethodContract(Declarations):
    """The contract of methods: `method = Mine()`, or `cases = {"mild": Mine(0.1), "strong": Mine(2.0)}`."""

    # terms -----------------------------------------------------------------------------------------------------------
    def test_terms_are_finite_scalars_with_the_right_names(self, method: Method) -> None:
        """The distillation term is named like the method, further ones `method_...`; `ce` is the task's own."""
        problem = Problem(method)
        for epoch in (0, EPOCHS - 1):
            terms = problem.terms(problem.batch(epoch=epoch))
            assert terms
            for name, value in terms.items():
                assert value.shape == (), f"{name} is no scalar"
                assert value.dtype == torch.float32
                assert value.isfinite(), f"{name} is {value.item()} in epoch {epoch}"
            if names := names_of(method):
                own = {term for term in terms for name in names if term == name or term.startswith(f"{name}_")}
                assert set(terms) - own <= supervised_names(problem), f"call terms like the method: {names}"
                assert own or not problem.teachers, "a teacher, and no term of the method's own"

    def test_each_term_moves_the_learner(self, method: Method) -> None:
        moved: dict[str, bool] = {}
        for epoch in (0, EPOCHS - 1):
            problem = Problem(method)
            terms = problem.terms(problem.batch(epoch=epoch))
            assert all(value.requires_grad for value in terms.values())
            learning = [*problem.student.parameters(), *problem.heads.parameters()]
            learning = [p for p in learning if p.requires_grad]
            for name, value in terms.items():
                found = torch.autograd.grad(value, learning, retain_graph=True, allow_unused=True)
                moved[name] = moved.get(name, False) or any(g is not None and bool(g.abs().sum() > 0) for g in found)
        assert all(moved.values()), f"terms without any gradient: {[name for name, ok in moved.items() if not ok]}"

    def test_the_gradient_reaches_what_is_deployed_and_its_heads_and_never_a_teacher(self, method: Method) -> None:
        problem, reached = Problem(method), set()
        learning = [p for p in (*problem.student.parameters(), *problem.heads.parameters()) if p.requires_grad]
        for net in problem.teachers.values():
            net.requires_grad_(True)
        for step in range(2):  # what begins at zero may hide its neighbour from the first gradient
            total(problem.terms(problem.batch(seed=step, epoch=EPOCHS // 2))).backward()
            for name, p in problem.heads.named_parameters():
                assert p.requires_grad == (p.grad is not None), f"heads: no gradient reaches {name}"
            for p in learning:
                if p.grad is not None and p.grad.abs().sum() > 0:
                    reached.add(id(p))
                    with torch.no_grad():
                        p.sub_(1e-3 * p.grad / p.grad.norm())
                p.grad = None
        assert all(p.grad is None for net in problem.teachers.values() for p in net.parameters()), "a teacher learns"
        unmoved = {id(p): n for n, p in problem.student.named_parameters() if p.requires_grad and id(p) not in reached}
        assert len(unmoved) < len(list(problem.student.parameters())), "no gradient reaches the learner"
        with torch.no_grad():
            deployed = method.deploy(problem.student, problem.heads)
        lost = [unmoved[id(p)] for p in deployed.parameters() if id(p) in unmoved]
        assert not lost, f"deployed, although no gradient ever reaches it: {lost}"

    def test_batch_rng_alone_decides_and_the_global_generator_is_untouched(self, method: Method) -> None:
        one = values(_terms(method))
        problem, state = Problem(method), torch.get_rng_state()
        torch.manual_seed(1234)
        before = torch.get_rng_state()
        other = values(problem.terms(problem.batch()))
        assert torch.equal(before, torch.get_rng_state()), DRAW
        torch.set_rng_state(state)
        assert one == other, DRAW

    def test_it_is_not_changed_by_use(self, method: Method) -> None:
        before, hashed = dataclasses.replace(method), hash(method)  # type: ignore[type-var]
        _terms(method)
        assert (method, hash(method)) == (before, hashed)

    def test_float64_agrees_with_float32(self, method: Method) -> None:
        narrow = _terms(method)
        for name, value in _terms(method, dtype=torch.float64).items():
            assert value.dtype == torch.float64, name
            assert value.item() == pytest.approx(narrow[name].item(), rel=2e-3, abs=1e-5), f"{name}; {DRAW}"

    def test_bfloat16_features_are_compared_in_float32(self, method: Method) -> None:
        """Under autocast; layers in heads, learning or frozen, compute as the engine says: terms may differ a bit."""
        problem = Problem(method)
        layers = any(True for _ in problem.heads.parameters())
        found = rounded_terms(problem)
        for name, value in found[torch.bfloat16].items():
            assert value.dtype == torch.float32, f"{name}: use losses.wide"
            expected = pytest.approx(found[torch.float32][name].item(), rel=0.1 if layers else 1e-5, abs=1e-6)
            assert value.item() == expected, f"{name}: use losses.wide and losses.full_precision"

    def test_the_order_of_a_batch_does_not_matter(self, method: Method) -> None:
        """Unless it draws: then positions may matter, but still no example is tied to its neighbour."""
        one, other = (Problem(method, accepted(method), dtype=torch.float64) for _ in range(2))
        given = one.batch()
        order = torch.randperm(len(given.index_B), generator=torch.Generator().manual_seed(5))
        shuffled = dataclasses.replace(
            one.batch(),
            x=given.x[order],
            targets=given.task.targets(given.labels[order]),
            index_B=given.index_B[order],
            views=tuple(view[order] for view in given.views),
            surveys={name: values[order] for name, values in given.surveys.items()},
        )
        state = given.rng.get_state()
        expected = values(one.loss(*one.outs(given.x, given.views), given))
        if not torch.equal(given.rng.get_state(), state):
            pytest.skip("its loss draws")
        found = values(other.loss(*other.outs(shuffled.x, shuffled.views), shuffled))
        assert found == pytest.approx(expected, rel=1e-9, abs=1e-12)

    def test_a_batch_of_two_works(self, method: Method) -> None:
        problem = Problem(method)
        terms = problem.terms(problem.batch(2))
        total(terms).backward()
        assert all(value.isfinite() for value in terms.values())
        assert all(p.grad.isfinite().all() for p in problem.student.parameters() if p.grad is not None)

    def test_several_teachers_work_or_are_refused(self, method: Method) -> None:
        """Identical ones count as one, where no heads of its own make them differ."""
        problem = Problem(method)
        if isinstance(method, Wrapper) or not problem.teachers:
            pytest.skip("not its decision")
        (role, found), *_ = problem.profiles().items()
        names = [role, "teacher8", "teacher9"]
        try:
            profiles = {name: dataclasses.replace(found, role=name) for name in names}
            heads = Prepared.of(method.heads(problem.profile, profiles)).model
        except Refusal as refused:
            explained(refused)
            return
        given = problem.batch()
        learner, teachers = problem.outs(given.x, given.views)
        several = method.loss(learner, dict.fromkeys(names, teachers[role]), given, heads)
        assert all(value.isfinite() for value in several.values())
        if not heads.state_dict() and len(problem.teachers) == 1:
            given.rng.manual_seed(1)
            one = values(method.loss(learner, {role: teachers[role]}, problem.batch(), problem.heads))
            assert values(several) == pytest.approx(one, rel=1e-6), "terms are means over teachers: losses.mean_of"

    def test_it_works_on_numbers_unless_it_needs_classes(self, method: Method) -> None:
        if getattr(method.needs(), "categorical", True):
            pytest.skip("needs classes")
        problem = Problem(method, accepted(method), task=Numbers(CLASSES))
        terms = problem.terms(problem.batch())
        total(terms).backward()
        assert all(value.isfinite() for value in terms.values())

    # data ------------------------------------------------------------------------------------------------------------
    def test_sampling_weights_are_finite_and_not_all_zero(self, method: Method) -> None:
        if not changes(method, "sample"):
            pytest.skip("sees every example once")
        if not method.needs().probe:
            extends = isinstance(method, Wrapper) and "sample" in method.extends
            assert extends, "`sample` is asked only where `Needs.probe` is set"
            pytest.skip("does not sample with these knobs")
        weights_N = method.sample(Problem(method).probe())
        if weights_N is not None:
            assert weights_N.shape == (EXAMPLES,)
            assert weights_N.isfinite().all()
            assert (weights_N >= 0).all()
            assert weights_N.sum() > 0

    def test_what_it_chooses_is_of_the_training_set_and_the_same_again(self, method: Method) -> None:
        if not changes(method, "choose"):
            pytest.skip("is trained on the training set")
        problem, before = Problem(method), None
        for stage in range(len(problem.plan.stages)):
            chosen, again = (method.choose(problem.pool(stage, before)) for _ in range(2))
            if chosen is None or again is None:
                assert chosen is again
                continue
            assert all(torch.equal(*pair) for pair in zip(chosen.parts, again.parts, strict=True)), DRAW
            assert len(chosen) > 0
            assert all(part.shape == (len(chosen),) for part in chosen.parts)
            for index_M in (chosen.first_M, chosen.other_M):
                assert index_M.dtype == torch.int64
                assert 0 <= index_M.min() <= index_M.max() < EXAMPLES
            assert 0 <= chosen.share_M.min() <= chosen.share_M.max() <= 1
            before = chosen

    def test_a_changed_batch_is_a_batch(self, method: Method) -> None:
        problem = Problem(method)
        given = problem.batch()
        kept = copy.deepcopy(given.x)
        changed = method.batch(given)
        assert torch.equal(given.x, kept), "a batch is not changed in place: the engine may use it again"
        assert changed.x.shape[1:] == given.x.shape[1:]
        assert changed.x.dtype == given.x.dtype
        assert len(changed.views) == len(given.views)
        if problem.needs.hard_labels:
            assert changed.targets.hard
        if given.task.kind == "categorical":
            dense = changed.targets.dense()
            assert torch.allclose(dense.sum(1), torch.ones(len(dense)), atol=1e-5), "shares sum to one"

    # heads and deployment --------------------------------------------------------------------------------------------
    @pytest.mark.parametrize("student", STUDENTS)
    def test_any_features_work_or_are_refused_with_a_sentence(self, method: Method, student: str) -> None:
        try:
            problem = Problem(method, student)
        except Refusal as refused:
            needs = method.needs()
            assert needs.learner or needs.teacher or changes(method, "prepare"), "without features all networks do"
            explained(refused)
            return
        terms = problem.terms(problem.batch())
        total(terms).backward()
        assert all(value.isfinite() for value in terms.values())

    def test_heads_survive_their_state_dict(self, method: Method) -> None:
        first, second = Problem(method), Problem(method)
        first.terms(first.batch(seed=7))  # memories and running statistics move
        with torch.no_grad():
            for p in first.heads.parameters():
                p.add_(0.1)
        second.heads.load_state_dict(copy.deepcopy(first.heads.state_dict()))
        assert values(first.terms(first.batch())) == values(second.terms(second.batch())), (
            "what changes while training is a parameter or a buffer of `heads`"
        )

    def test_heads_share_no_weights_with_the_models(self, method: Method) -> None:
        problem = Problem(method)
        nets = [problem.student, *problem.teachers.values()]
        owned = {p.data_ptr() for net in nets for p in (*net.parameters(), *net.buffers()) if p.numel()}
        held = (*problem.heads.parameters(), *problem.heads.buffers())
        assert not owned & {p.data_ptr() for p in held if p.numel()}

    def test_what_is_deployed_answers_rows_and_can_be_read_back(self, method: Method) -> None:
        problem, fresh = Problem(method), Problem(method)
        given = problem.batch()
        with torch.no_grad():
            for p in (*problem.student.parameters(), *problem.heads.parameters()):
                p.mul_(1.1)  # trained, in a way
        before = problem.student.eval()(given.x)
        deployed, empty = (_deployed(one) for one in (problem, fresh))
        rows = deployed(given.x)
        assert rows.shape == (8, CLASSES)
        assert rows.isfinite().all()
        assert torch.equal(problem.student(given.x), before), "`deploy` is given copies, and changes nothing else"
        empty.load_state_dict(deployed.state_dict())
        torch.testing.assert_close(empty(given.x), rows)

    # speed -----------------------------------------------------------------------------------------------------------
    def test_nothing_is_read_from_the_device(self, method: Method) -> None:
        problem = Problem(method)
        given = problem.batch()
        outs = problem.outs(given.x, given.views)
        with watch.nothing_is_read():
            method.batch(given)
            problem.loss(*outs, given)

    def test_its_source_reads_nothing_from_the_device(self, method: Method) -> None:
        source = inspect.getsourcefile(type(method))
        if source is None or not Path(source).is_file():
            pytest.skip("no source")
        read = watch.read_in_class(Path(source).read_text(encoding="utf-8"), type(method).__name__)
        assert not read, f"these wait for the device: {', '.join(sorted(read))}"


class VanishesWhenEqual(Contract):
    """A promise that some methods make: between equal networks nothing is left to distil. `method`, or `cases`."""

    subject = "method"
    method: Method

    def test_equal_networks_have_no_distillation_term(self, method: Method) -> None:
        problem, unequal = (Problem(method, dtype=torch.float64, same=same) for same in (True, False))
        names = supervised_names(problem)
        for name, value in problem.terms(problem.batch()).items():
            assert name in names or value.item() == pytest.approx(0, abs=1e-5)
        assert all(value.item() > 1e-4 for value in unequal.terms(unequal.batch()).values())


def rounded_terms(problem: Problem) -> dict[torch.dtype, dict[str, Tensor]]:
    """The terms of features rounded to bfloat16: given as float32, and given as bfloat16 under autocast."""
    given = problem.batch()
    learner, teachers = problem.outs(given.x, given.views)
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        heads = copy.deepcopy(problem.heads)
        said = {role: _rounded(out, dtype) for role, out in teachers.items()}
        again = dataclasses.replace(given, rng=torch.Generator().manual_seed(0))
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16):
            found[dtype] = problem.method.loss(_rounded(learner, dtype), said, again, heads)
    return found


def _rounded(out: Out, dtype: torch.dtype) -> Out:
    taps = {name: value.bfloat16().to(dtype) for name, value in out.taps.items()}
    views = tuple(_rounded(view, dtype) for view in out.views)
    return dataclasses.replace(out, rows=out.rows.bfloat16().to(dtype), taps=taps, views=views)


def _terms(method: Method, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    problem = Problem(method, accepted(method), dtype=dtype)
    return problem.terms(problem.batch())


def _deployed(problem: Problem) -> nn.Module:
    deploy = problem.method.deploy
    return deploy(copy.deepcopy(problem.student), copy.deepcopy(problem.heads)).eval()
