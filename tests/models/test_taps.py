from __future__ import annotations

import copy
import functools
import gc
import weakref

import pytest
import torch
from torch import nn

from kdbench import models
from kdbench.method import Refusal
from kdbench.models.taps import Tap, Tapped, profile

X = (4, 1, 8, 8)


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return models.build("cnn", {"widths": [4, 6, 8]}, classes=10, channels=1, size=8)


def by_hand(model: nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
    block1 = model.stages[0](x)
    block2 = model.stages[1](block1)
    block3 = model.stages[2](block2)
    return {"block1": block1, "block2": block2, "block3": block3, "pooled": block3.mean((2, 3))}


def test_features_are_the_models_own_and_in_its_order(model) -> None:
    x, twin = torch.randn(X), copy.deepcopy(model)
    out = Tapped(model, "student", ("pooled", "block*"))(x)
    expected = by_hand(twin, x)
    assert out.role == "student"
    assert list(out.taps) == ["block1", "block2", "block3", "pooled"]
    for name, value in expected.items():
        torch.testing.assert_close(out.taps[name], value)
    torch.testing.assert_close(out.rows, twin.classifier(expected["pooled"]))


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ((), []),
        (("block-1",), ["block3"]),
        (("block-3", "block2"), ["block1", "block2"]),
        (("pooled", "block1", "block1"), ["block1", "pooled"]),
        (("block*", "block-1"), ["block1", "block2", "block3"]),
        (("*",), ["block1", "block2", "block3", "pooled"]),
        (("block[12]",), ["block1", "block2"]),
    ],
)
def test_names(model, names, expected) -> None:
    assert list(Tapped(model, "student", names)(torch.randn(X)).taps) == expected


@pytest.mark.parametrize("name", ["block4", "block-4", "block-0", "blok1", "logits", "block-x"])
def test_an_unknown_tap_is_refused_with_what_there_is(model, name) -> None:
    with pytest.raises(Refusal, match=r"teacher has no tap.*block1, block2, block3, pooled"):
        Tapped(model, "teacher", (name,))


def test_blocks_of_a_model_without_any() -> None:
    flat = models.build("mlp", {"hidden": []}, classes=3, channels=1, size=2)
    with pytest.raises(Refusal, match=r"no tap 'block\*'.*it has pooled"):
        Tapped(flat, "student", ("block*",))
    with pytest.raises(Refusal, match="it has none"):
        Tapped(nn.Linear(2, 2), "student", ("pooled",))


def test_features_are_in_the_graph(model) -> None:
    x, twin = torch.randn(X), copy.deepcopy(model)
    out = Tapped(model, "student", ("block2", "pooled"))(x)
    (out.taps["block2"].square().sum() + out.pooled.sum()).backward()
    expected = by_hand(twin, x)
    (expected["block2"].square().sum() + expected["pooled"].sum()).backward()
    for (name, found), value in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert (found.grad is None) == (value.grad is None), name
        if value.grad is not None:
            torch.testing.assert_close(found.grad, value.grad)


def test_without_gradient_and_repeated(model) -> None:
    tapped = Tapped(model.eval(), "teacher", ("block*",))
    with torch.no_grad():
        outs = [tapped(torch.full(X, float(i))) for i in range(3)]
    assert not any(block.requires_grad for out in outs for block in out.blocks)
    for i, out in enumerate(outs):
        with torch.no_grad():
            torch.testing.assert_close(out.taps["block1"], model.stages[0](torch.full(X, float(i))))


def test_under_autocast_features_have_the_low_precision(model) -> None:
    tapped = Tapped(model, "student", ("block1", "pooled"))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = tapped(torch.randn(X))
    assert low.rows.dtype == torch.bfloat16
    assert low.taps["block1"].dtype == torch.bfloat16
    assert tapped(torch.randn(X)).taps["block1"].dtype == torch.float32


def test_nothing_is_kept_after_the_call(model) -> None:
    tapped = Tapped(model, "student", ("block*", "pooled"))
    out = tapped(torch.randn(X))
    refs = [weakref.ref(value) for value in (*out.taps.values(), out.rows)]
    del out
    gc.collect()
    assert [ref() for ref in refs] == [None] * 5


def test_nothing_is_kept_after_a_failed_call(model) -> None:
    refs = []
    model.stages[0].register_forward_hook(lambda m, i, o: refs.append(weakref.ref(o)))
    tapped = Tapped(model, "student", ("block*",))
    model.stages[1].register_forward_hook(lambda m, i, o: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        tapped(torch.randn(X))
    gc.collect()
    assert [ref() for ref in refs] == [None]


def test_the_model_alone_and_its_copies_are_not_listened_to(model) -> None:
    tapped = Tapped(model, "student", ("block*",))
    deployed = copy.deepcopy(model)
    kept = weakref.ref(model.stages[0](torch.randn(X)))
    also = weakref.ref(deployed.stages[0](torch.randn(X)))
    assert kept() is None
    assert also() is None
    x = torch.randn(X)
    model.stages[0].register_forward_hook(lambda m, i, o: (deployed(torch.zeros(X)), None)[1])
    torch.testing.assert_close(tapped(x).taps["block1"], copy.deepcopy(model.stages[0])(x), rtol=0, atol=0)


def test_two_listeners_do_not_mix(model) -> None:
    first, second = Tapped(model, "a", ("block1",)), Tapped(model, "b", ("block2", "pooled"))
    assert list(first(torch.randn(X)).taps) == ["block1"]
    assert list(second(torch.randn(X)).taps) == ["block2", "pooled"]


def test_close_removes_the_hooks(model) -> None:
    def hooks() -> int:
        return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())

    tapped = Tapped(model, "student", ("block*", "pooled"))
    assert hooks() == 4
    tapped.close()
    tapped.close()
    assert hooks() == 0


class Odd(nn.Module):
    """Answers in ways that need care: tuples, maps with channels last, layers that are never reached."""

    class Two(nn.Module):
        def forward(self, x):
            return x.reshape(-1, 2), x

    def __init__(self) -> None:
        super().__init__()
        self.two, self.unused, self.conv = self.Two(), nn.Linear(2, 2), nn.Conv2d(6, 3, 1)
        self.kd_taps = {"block1": Tap("two"), "block2": Tap("unused"), "block3": Tap("two", "input", True)}
        self.kd_classifier = "conv"

    def forward(self, x):
        y = self.two(x)[1]
        return self.conv(y.permute(0, 3, 1, 2).mean((2, 3), keepdim=True)).flatten(1)


def test_tuples_channels_last_and_maps_before_the_classifier() -> None:
    x = torch.randn(2, 4, 5, 6)
    out = Tapped(Odd(), "student", ("block1", "block3", "pooled"))(x)
    assert torch.equal(out.taps["block1"], x)  # the member with one row for each image
    assert torch.equal(out.taps["block3"], x.permute(0, 3, 1, 2))
    torch.testing.assert_close(out.pooled, x.mean((1, 2)))


def test_a_tap_that_is_not_reached() -> None:
    with pytest.raises(Refusal, match=r"'block2' \(unused\) is not reached"):
        Tapped(Odd(), "student", ("block2",))(torch.randn(2, 4, 5, 6))


def test_no_pooled_feature_where_the_classifier_sees_a_map() -> None:
    model = nn.Sequential(nn.Conv2d(1, 3, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model.__dict__.update(kd_taps={}, kd_classifier="0")
    with pytest.raises(Refusal, match=r"\(2, 1, 4, 4\): there is no pooled feature"):
        Tapped(model, "student", ("pooled",))(torch.randn(2, 1, 4, 4))


def test_an_answer_that_is_no_tensor() -> None:
    with pytest.raises(Refusal, match="teacher answers a tuple"):
        Tapped(Odd.Two(), "teacher", ())(torch.randn(2, 2))


@pytest.mark.parametrize("wrapped", [False, True])
def test_compiled(model, monkeypatch, wrapped) -> None:
    quick = functools.partial(torch.compile, backend="aot_eager", fullgraph=True)
    monkeypatch.setattr(torch, "compile", quick)
    x, twin = torch.randn(X), copy.deepcopy(model)
    tapped = Tapped(quick(model) if wrapped else model, "student", ("block*", "pooled"), compile=not wrapped)
    for _ in range(2):
        out = tapped(x)
    expected = Tapped(twin, "student", ("block*", "pooled"))(x)
    for name, value in expected.taps.items():
        torch.testing.assert_close(out.taps[name], value)
    (out.taps["block2"].sum() + out.rows.sum()).backward()
    (expected.taps["block2"].sum() + expected.rows.sum()).backward()
    torch.testing.assert_close(model.stages[0][0].weight.grad, twin.stages[0][0].weight.grad)
    refs = [weakref.ref(value) for value in out.taps.values()]
    del out
    gc.collect()
    assert [ref() for ref in refs] == [None] * 4


# profile -------------------------------------------------------------------------------------------------------------
FACTS = {"classes": 10, "examples": 123, "input_shape": (1, 8, 8)}


def test_profile_tells_shapes(model) -> None:
    found = profile(model, "teacher", ("pooled", "block-1", "block1"), **FACTS)
    assert found.taps == {"block1": (4, 8, 8), "block3": (8, 2, 2), "pooled": (8,)}
    assert found.blocks == [(4, 8, 8), (8, 2, 2)]
    assert (found.role, found.classes, found.examples) == ("teacher", 10, 123)
    assert found.model is model


@pytest.mark.parametrize("shape", [(2, 10, 1, 1), (2, 11), (10,), (1, 10)])
def test_profile_refuses_answers_that_are_not_logits_of_the_classes(shape) -> None:
    class Answers(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.zeros(shape)

    with pytest.raises(Refusal, match=r"the student \(Answers\) answers .* instead of \(2, 10\)"):
        profile(Answers(), "student", (), classes=10, examples=1, input_shape=(1, 8, 8))


class Noisy(nn.Module):
    """Draws random numbers in eval mode as well."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.kd_taps, self.kd_classifier = inner, {}, "inner.classifier"

    def forward(self, x):
        return self.inner(x + torch.randn_like(x))


def test_profile_leaves_no_trace(model) -> None:
    noisy = Noisy(model).train()
    model.stages[1].eval()
    state, modes = copy.deepcopy(noisy.state_dict()), [m.training for m in noisy.modules()]
    torch.manual_seed(3)
    random = torch.get_rng_state()
    profile(noisy, "student", ("pooled",), **FACTS)
    assert torch.equal(torch.get_rng_state(), random)
    assert [m.training for m in noisy.modules()] == modes
    assert True in modes
    assert False in modes
    for name, value in noisy.state_dict().items():
        assert torch.equal(value, state[name]), name
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in noisy.modules())
    assert all(p.grad is None for p in noisy.parameters())


def test_profile_restores_the_model_after_an_error(model) -> None:
    with pytest.raises(RuntimeError, match="expected input"):
        profile(model, "student", ("block*",), classes=10, examples=1, input_shape=(3, 8, 8))
    assert all(m.training for m in model.modules())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_profile_leaves_no_trace_on_cuda(model) -> None:
    noisy = Noisy(model).cuda()
    random = torch.cuda.get_rng_state()
    profile(noisy, "student", ("pooled",), **FACTS)
    assert torch.equal(torch.cuda.get_rng_state(), random)
