"""The selective scan: every CPU backend against a plain loop, and what happens where a backend cannot be had."""

from __future__ import annotations

import logging
import shutil
import stat

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kdbench.errors import UserError
from kdbench.models import size
from kdbench.models.mamba import scan, scan_native, scan_torch
from kdbench.models.mamba.scan_inputs import Inputs

NAMES = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")
needs_compiler = pytest.mark.skipif(shutil.which("c++") is None and shutil.which("g++") is None, reason="no compiler")
BACKENDS = ("torch", pytest.param("native", marks=needs_compiler))


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """As at the start of a process, with an empty cache folder; undone afterwards."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.delenv("KDBENCH_SCAN", raising=False)
    forget()
    yield tmp_path
    forget()


def forget() -> None:
    for cached in (scan_native.library, scan_native._outcome, scan._automatic):
        cached.cache_clear()


def inputs(batch: int, channels: int, length: int, states: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    rng = torch.Generator().manual_seed(batch + 10 * channels + 100 * length + states)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=rng, dtype=torch.float64)

    u, delta, z = (normal(batch, channels, length) for _ in range(3))
    B, C = (normal(batch, states, length) for _ in range(2))
    made = [u, delta, -torch.exp(normal(channels, states)), B, C, normal(channels), z, normal(channels) - 1]
    return [x.to(dtype).requires_grad_() for x in made]


def loop(u, delta, A, B, C, D, z, delta_bias) -> np.ndarray:
    """The definition, token by token, channel by channel, state by state."""
    u, delta, A, B, C, D, z, delta_bias = (x.detach().double().numpy() for x in (u, delta, A, B, C, D, z, delta_bias))
    out = np.zeros_like(u)
    for b in range(u.shape[0]):
        for d in range(u.shape[1]):
            h = np.zeros(A.shape[1])
            for t in range(u.shape[2]):
                step = np.log1p(np.exp(delta[b, d, t] + delta_bias[d]))
                h = np.exp(step * A[d]) * h + step * B[b, :, t] * u[b, d, t]
                out[b, d, t] = (C[b, :, t] @ h + D[d] * u[b, d, t]) * z[b, d, t] / (1 + np.exp(-z[b, d, t]))
    return out


def relative(found: Tensor, expected: Tensor) -> float:
    found, expected = found.detach().double(), expected.detach().double()
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-30))


def gradients(backend: str, tensors: list[Tensor], dout: Tensor) -> tuple[Tensor, list[Tensor]]:
    out = scan.selective_scan(*tensors, backend=backend)
    return out, list(torch.autograd.grad(out, tensors, dout.to(out.dtype)))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 3, 7, 4), (1, 20, 49, 16), (3, 17, 5, 5), (2, 8, 65, 33)])
def test_the_answer_is_that_of_the_definition(backend: str, shape: tuple[int, ...]) -> None:
    tensors = inputs(*shape)
    out = scan.selective_scan(*tensors, backend=backend)
    np.testing.assert_allclose(out.detach().numpy(), loop(*tensors), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 3, 7, 4), (1, 20, 49, 16), (3, 17, 5, 5), (2, 8, 65, 33)])
def test_the_graph_of_exported_models_answers_the_same(shape: tuple[int, ...]) -> None:
    tensors = inputs(*shape)
    out = scan_torch.parallel(Inputs(*tensors))
    np.testing.assert_allclose(out.detach().numpy(), loop(*tensors), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_constant_input_gives_a_geometric_series(backend: str) -> None:
    one, length = torch.ones(1, 1, 12), 12
    bias = torch.log(torch.expm1(torch.tensor([0.5])))  # delta = 0.5
    rate = torch.tensor([[-0.8]])
    gate = torch.nn.functional.silu(torch.tensor(1.0))
    out = scan.selective_scan(one, 0 * one, rate, one, one, torch.zeros(1), one, bias, backend=backend)
    decay = np.exp(-0.4)
    series = 0.5 * (1 - decay ** np.arange(1, length + 1)) / (1 - decay)
    np.testing.assert_allclose(out[0, 0].numpy(), series * gate.item(), rtol=1e-6)


def test_gradients_are_those_of_finite_differences() -> None:
    tensors = inputs(2, 3, 5, 4, torch.float64)
    assert torch.autograd.gradcheck(lambda *x: scan.selective_scan(*x, backend="torch"), tensors)


@needs_compiler
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 20, 7, 4), (1, 130, 49, 16), (17, 9, 64, 16), (2, 16, 196, 5)])
def test_native_gradients_are_those_of_double_precision(shape: tuple[int, ...]) -> None:
    dout = torch.randn(shape[:3], generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    exact, expected = gradients("torch", inputs(*shape, torch.float64), dout)
    out, found = gradients("native", inputs(*shape), dout)
    assert relative(out, exact) < 2e-6
    errors = {name: relative(f, e) for name, f, e in zip(NAMES, found, expected, strict=True)}
    assert max(errors.values()) < 5e-6, errors


def test_a_batch_is_taken_in_parts_with_the_same_gradients(monkeypatch) -> None:
    tensors, dout = inputs(5, 4, 9, 3, torch.float64), torch.ones(5, 4, 9)
    _, whole = gradients("torch", tensors, dout)
    monkeypatch.setattr(scan_torch, "STATES_AT_ONCE", 2 * 4 * 3)  # 2, 2 and 1 sequences
    _, parts = gradients("torch", tensors, dout)
    for a, b in zip(whole, parts, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_layouts_in_memory_do_not_matter(backend: str) -> None:
    plain, dout = inputs(3, 6, 10, 4), torch.randn(3, 6, 10, generator=torch.Generator().manual_seed(2))
    by_token = []
    for x in plain:  # as projections answer them: (B, L, wider rows), of which a slice is transposed
        if x.dim() == 3:
            wide = torch.full((x.shape[0], x.shape[2], x.shape[1] + 5), float("nan"))
            wide[..., 2:-3] = x.detach().transpose(1, 2)
            x = wide[..., 2:-3].transpose(1, 2).requires_grad_()
        by_token.append(x)
    out, expected = gradients(backend, plain, dout)
    same, found = gradients(backend, by_token, dout)
    assert torch.equal(out, same)
    assert all(map(torch.equal, expected, found))


@needs_compiler
def test_native_answers_do_not_depend_on_the_number_of_threads() -> None:
    tensors, dout = inputs(8, 128, 64, 16), torch.ones(8, 128, 64)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = gradients("native", tensors, dout)
        torch.set_num_threads(3)
        assert 8 * 128 * 64 * 16 // scan_native.WORK_OF_A_THREAD >= 3
        three = gradients("native", tensors, dout)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(one[0], three[0])
    assert all(map(torch.equal, one[1], three[1]))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("place", range(len(NAMES)))
def test_not_a_number_is_not_hidden(backend: str, place: int) -> None:
    tensors = [x.detach() for x in inputs(1, 2, 3, 2)]
    tensors[place].view(-1)[0] = float("nan")
    assert scan.selective_scan(*tensors, backend=backend).isnan().any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_extreme_steps_saturate(backend: str) -> None:
    tensors = [x.detach() for x in inputs(1, 2, 4, 2)]
    tensors[1] = torch.tensor([-200.0, 200.0, 30.0, -30.0]).expand(1, 2, 4).contiguous()
    out = scan.selective_scan(*tensors, backend=backend)
    assert out.isfinite().all()
    np.testing.assert_allclose(out.numpy(), loop(*(x.double() for x in tensors)), rtol=1e-5, atol=1e-5)


@needs_compiler
def test_loading_the_kernel_leaves_denormal_numbers_alone() -> None:
    assert not scan_native.problem()
    assert (torch.tensor([1e-40]) * 0.5).item() > 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_half_precision_is_computed_in_single(backend: str) -> None:
    half = [x.detach().bfloat16() if i in (0, 1, 3, 4, 6) else x.detach() for i, x in enumerate(inputs(2, 4, 9, 4))]
    out = scan.selective_scan(*half, backend=backend)
    exact = scan.selective_scan(*(x.float() for x in half), backend=backend)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, exact.bfloat16())


@pytest.mark.parametrize("backend", BACKENDS)
def test_torch_knows_the_operator(backend: str) -> None:
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    operator = torch.ops.kdbench.selective_scan.default
    torch.library.opcheck(operator, (*inputs(2, 3, 4, 2), backend), test_utils=tests)


def test_a_second_derivative_is_refused() -> None:
    tensors = inputs(1, 2, 3, 2)
    (first,) = torch.autograd.grad(scan.selective_scan(*tensors, backend="torch").sum(), tensors[0], create_graph=True)
    with pytest.raises(RuntimeError):
        torch.autograd.grad(first.sum(), tensors[0])


@pytest.mark.parametrize("states", [4, 15, 16])
def test_multiply_accumulates_are_counted_on_the_meta_device(states: int) -> None:
    class Scan(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            channels, length = x.shape[2:]
            B = x.new_zeros(1, states, length)
            one = x.new_zeros(channels)
            A = x.new_zeros(channels, states)
            return scan.selective_scan(x[:, 0], x[:, 0], A, B, B, one, x[:, 0], one)

    assert size.count(Scan(), (1, 6, 10)) == (0, 6 * 10 * (9 * states + 4) // 2)


# Which backend


def test_unknown_backends_are_named() -> None:
    with pytest.raises(UserError, match=r"no scan backend 'nativ' \(did you mean 'native'\?\); there are auto, torch"):
        scan.selective_scan(*inputs(1, 1, 1, 1), backend="nativ")


@needs_compiler
def test_native_refuses_double_precision() -> None:
    with pytest.raises(UserError, match="'native' runs on the CPU in single precision, not on double precision"):
        scan.selective_scan(*inputs(1, 1, 1, 1, torch.float64), backend="native")


def test_cuda_kernels_are_refused_where_they_are_not() -> None:
    if not scan.kernels_problem():
        pytest.skip("they are here")
    with pytest.raises(UserError, match="backend 'mamba_ssm' is unavailable: "):
        scan.selective_scan(*inputs(1, 1, 1, 1), backend="mamba_ssm")


@needs_compiler
def test_auto_is_native_on_a_cpu_and_torch_in_double_precision(fresh) -> None:
    assert scan.resolve("auto", "cpu", torch.float32) == "native"
    assert scan.resolve("auto", "cpu", torch.float64) == "torch"


def test_the_environment_names_the_default_and_is_read_once(fresh, monkeypatch) -> None:
    monkeypatch.setenv("KDBENCH_SCAN", "torch")
    assert scan.resolve("auto", "cpu", torch.float32) == "torch"
    monkeypatch.setenv("KDBENCH_SCAN", "nonsense")
    assert scan.resolve("auto", "cpu", torch.float32) == "torch"
    forget()
    with pytest.raises(UserError, match="no scan backend 'nonsense'"):
        scan.resolve("auto", "cpu", torch.float32)


def test_without_a_compiler_auto_is_torch_and_says_so(fresh, monkeypatch, caplog) -> None:
    monkeypatch.setenv("PATH", "")
    with caplog.at_level(logging.WARNING):
        assert scan.resolve("auto", "cpu", torch.float32) == "torch"
    assert "no C++ compiler found: install g++ or clang++, or name one in CXX" in caplog.text
    assert ("scan native", scan_native.problem()) in scan.states()
    with pytest.raises(UserError, match="'native' is unavailable: no C\\+\\+ compiler found"):
        scan.check("native")


def test_a_compiler_that_appears_later_changes_nothing(fresh, monkeypatch) -> None:
    with monkeypatch.context() as without:
        without.setenv("PATH", "")
        assert scan.resolve("auto", "cpu", torch.float32) == "torch"
    assert scan.resolve("auto", "cpu", torch.float32) == "torch"
    assert scan_native.problem().startswith("no C++ compiler")


def test_a_failing_compiler_is_quoted(fresh, monkeypatch) -> None:
    compiler = fresh / "broken"
    compiler.write_text("#!/bin/sh\necho 'scan.cpp:1: error: no such luck' >&2\nexit 1\n")
    compiler.chmod(compiler.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("CXX", str(compiler))
    assert scan_native.problem() == "broken cannot compile the selective scan: scan.cpp:1: error: no such luck"
    assert not list(scan_native.cache_folder().iterdir())  # nothing half made stays


def test_a_compiler_that_is_not_there_is_named(fresh, monkeypatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler -O2")
    assert scan_native.problem() == "CXX names no program (no-such-compiler): unset it or name a C++ compiler"


def test_a_cache_folder_that_cannot_be_written_is_a_sentence(fresh, monkeypatch) -> None:
    (fresh / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(fresh / "file"))
    monkeypatch.setenv("CXX", "true")
    assert "set XDG_CACHE_HOME to a writable folder" in scan_native.problem()


@needs_compiler
def test_the_kernel_is_compiled_once_for_a_source_and_a_damaged_one_again(fresh, monkeypatch) -> None:
    runs: list[list[str]] = []
    run = scan_native._run
    monkeypatch.setattr(scan_native, "_run", lambda command: runs.append(command) or run(command))
    kept = scan_native.cache_folder() / f"selective_scan-{scan_native._key(scan_native.find_compiler())}.so"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"not a library")
    assert scan_native.problem() == ""
    assert len(runs) == 2  # compiled, linked
    assert "-ffast-math" in runs[0]
    assert "-ffast-math" not in runs[1]
    assert list(scan_native.cache_folder().iterdir()) == [kept]
    forget()
    assert scan_native.problem() == ""
    assert len(runs) == 2


@needs_compiler
def test_the_kernel_is_kept_for_its_source_and_cpu(fresh, monkeypatch) -> None:
    compiler = scan_native.find_compiler()
    keys = {scan_native._key(compiler), scan_native._key([*compiler, "-m64"])}
    monkeypatch.setattr(scan_native, "_cpu", lambda: "another CPU")
    keys.add(scan_native._key(compiler))
    source = fresh / "other.cpp"
    source.write_text(scan_native.SOURCE.read_text() + "\n")
    monkeypatch.setattr(scan_native, "SOURCE", source)
    keys.add(scan_native._key(compiler))
    assert len(keys) == 4
