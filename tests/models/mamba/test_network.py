"""Mamba image models, against the block of the mamba_ssm package itself (extra `mamba`), which runs here without a GPU.

On a CPU the real block computes everything with its own code but the scan, for which its reference in plain PyTorch
stands in. On CUDA the `gpu` tests compare with its compiled kernels.
"""

from __future__ import annotations

import copy
import importlib.util
import sys
from pathlib import Path
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdbench import models
from kdbench.errors import UserError
from kdbench.models import size as flops
from kdbench.models.mamba import block2, scan
from kdbench.models.mamba.network import Mamba
from kdbench.models.mamba.rms_norm import RMSNorm
from kdbench.models.taps import Tapped
from kdbench.suite.fields import Optimizer
from kdbench.train.recipe import parameter_groups

needs_kernels = pytest.mark.skipif(bool(scan.kernels_problem()), reason=f"needs CUDA: {scan.kernels_problem()}")
MNIST = {"classes": 10, "channels": 1, "size": 28}
native = pytest.param(
    "native", marks=pytest.mark.skipif(bool(scan.scan_native.problem()), reason="no native kernel here")
)


@pytest.fixture(scope="module")
def mamba_ssm():
    """The real package, where kdbench's extra `mamba` is installed."""
    if importlib.util.find_spec("mamba_ssm") is None:
        pytest.skip("the oracle is mamba_ssm's own block: install the extra `mamba`")
    if importlib.util.find_spec("selective_scan_cuda") is None:
        sys.path.append(str(Path(__file__).parents[2] / "stubs"))  # at the end: real kernels win
    return pytest.importorskip("mamba_ssm", reason="mamba_ssm is installed but cannot be imported")


@pytest.fixture
def oracle(mamba_ssm):
    """`mamba_ssm.Mamba` with its reference scan."""
    from mamba_ssm.modules import mamba_simple
    from mamba_ssm.ops.selective_scan_interface import selective_scan_ref

    with mock.patch.object(mamba_simple, "selective_scan_fn", selective_scan_ref):
        yield lambda *args, **kwargs: mamba_simple.Mamba(*args, **kwargs, use_fast_path=False)


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-30))


def results(block: nn.Module, x: Tensor, dy: Tensor) -> dict[str, Tensor]:
    """Output and every gradient."""
    x = x.clone().requires_grad_()
    y = block(x)
    names, parameters = zip(*block.named_parameters(), strict=True)
    dx, *grads = torch.autograd.grad(y, (x, *parameters), dy)
    return {"output": y.detach(), "input": dx, **dict(zip(names, grads, strict=True))}


def compare(oracle, backend: str, d_model: int, d_state: int, length: int, batch: int, tolerance: float, device="cpu"):
    torch.manual_seed(0)
    real = oracle(d_model, d_state=d_state).to(device)
    mine = Mamba(d_model, d_state=d_state, scan_backend=backend).to(device)
    mine.load_state_dict(real.state_dict(), strict=True)
    x, dy = torch.randn(batch, length, d_model, device=device), torch.randn(batch, length, d_model, device=device)
    expected, found = results(real, x, dy), results(mine, x, dy)
    assert found.keys() == expected.keys()
    errors = {name: relative(found[name], expected[name]) for name in expected}
    if length == 1:
        assert not found.pop("A_log").any()  # no state before the first token: A has no effect
        errors.pop("A_log")
    assert max(errors.values()) < tolerance, errors


SIZES = [(d_state, length, batch) for d_state in (4, 16) for length in (1, 49, 64, 65, 196) for batch in (1, 128)]
SMALL = [size for size in SIZES if size[1] * size[2] < 200]


@pytest.mark.parametrize("backend", ["torch", native])
@pytest.mark.parametrize(("d_state", "length", "batch"), SMALL)
def test_the_block_is_that_of_mamba_ssm(oracle, backend: str, d_state: int, length: int, batch: int) -> None:
    compare(oracle, backend, 32, d_state, length, batch, 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["torch", native])
@pytest.mark.parametrize(("d_state", "length", "batch"), [size for size in SIZES if size not in SMALL])
def test_the_block_is_that_of_mamba_ssm_on_batches(oracle, backend: str, d_state: int, length: int, batch: int) -> None:
    compare(oracle, backend, 16, d_state, length, batch, 1e-5)


def test_the_same_seed_gives_the_initial_values_of_mamba_ssm(oracle) -> None:
    torch.manual_seed(3)
    real = oracle(40, d_state=5, d_conv=3, expand=3)
    torch.manual_seed(3)
    mine = Mamba(40, d_state=5, d_conv=3, expand=3)
    real.load_state_dict(mine.state_dict(), strict=True)  # the other way round
    torch.manual_seed(3)
    fresh = oracle(40, d_state=5, d_conv=3, expand=3).state_dict()
    assert fresh.keys() == mine.state_dict().keys()
    assert all(torch.equal(value, fresh[name]) for name, value in mine.state_dict().items())
    for name, parameter in real.named_parameters():
        for mark in ("_no_weight_decay", "_no_reinit"):
            assert getattr(mine.get_parameter(name), mark, False) == getattr(parameter, mark, False)


@pytest.mark.gpu
@needs_kernels
@pytest.mark.parametrize(("d_state", "length", "batch"), SIZES)
def test_the_block_is_that_of_mamba_ssm_on_cuda(mamba_ssm, d_state: int, length: int, batch: int) -> None:
    """Looser: the kernels compute with fast mathematics."""
    from mamba_ssm.modules.mamba_simple import Mamba as Real

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    for backend, tolerance in {"mamba_ssm": 1e-3, "torch": 2e-3}.items():
        compare(Real, backend, 64, d_state, length, batch, tolerance, "cuda")


@pytest.mark.gpu
@needs_kernels
@pytest.mark.parametrize("options", [{"backend": "mamba_ssm"}, {"block": "mamba2"}, {"bidirectional": True}])
def test_models_train_on_cuda(options: dict) -> None:
    torch.manual_seed(0)
    model = models.build("mamba", {"depth": 2, "dim": 64, **options}, **MNIST).cuda()
    with torch.autocast("cuda", dtype=torch.bfloat16):
        first, last = fit(model, "cuda")
    assert last < 0.5 * first
    assert scan.backend_in_use(model) == "mamba_ssm"


def fit(model: nn.Module, device: str = "cpu", steps: int = 40) -> tuple[float, float]:
    """First and last loss on a batch of 20 random images."""
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(20, 1, 28, 28, generator=rng).to(device)
    y = torch.arange(20, device=device) % 10
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(steps):
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses[0], losses[-1]


@pytest.mark.parametrize("options", [{}, {"bidirectional": True}])
def test_a_model_fits_a_batch(options: dict) -> None:
    torch.manual_seed(0)
    first, last = fit(models.build("mamba", {"depth": 2, "dim": 16, **options}, **MNIST))
    assert last < 0.5 * first


# Structure


def test_a_token_sees_itself_and_those_before() -> None:
    torch.manual_seed(0)
    block = Mamba(8, d_state=4)
    x = torch.randn(1, 9, 8, requires_grad=True)
    seen = torch.stack([torch.autograd.grad(block(x)[0, t].sum(), x)[0][0].abs().sum(1) for t in range(9)]) > 0
    assert torch.equal(seen, torch.ones(9, 9, dtype=torch.bool).tril())


def test_both_directions_are_summed() -> None:
    torch.manual_seed(0)
    both, one = Mamba(8, d_state=4, bidirectional=True), Mamba(8, d_state=4)
    x = torch.randn(2, 9, 8)
    shared = {name: both.state_dict()[name] for name in one.state_dict()}
    one.load_state_dict(shared)
    forth = one(x)
    backwards = {name: both.state_dict().get(second(name), value) for name, value in shared.items()}
    assert sum(not torch.equal(backwards[name], shared[name]) for name in shared) == 5  # drawn anew: conv, x_proj, dt
    one.load_state_dict(backwards)
    torch.testing.assert_close(both(x), forth + one(x.flip(1)).flip(1))


def second(name: str) -> str:
    """The name of the second direction's parameter: `conv1d.weight` -> `conv1d_b.weight`, `A_log` -> `A_b_log`."""
    module, dot, rest = name.partition(".")
    return "A_b_log" if name == "A_log" else f"{module}_b{dot}{rest}"


def test_taps_are_tokens_of_each_block_and_the_pooled_feature() -> None:
    torch.manual_seed(0)
    model = models.build("mamba", {"depth": 3, "dim": 12, "patch": 7}, **MNIST)
    assert list(model.kd_taps) == ["block1", "block2", "block3", "pooled"]
    out = Tapped(model, "student", ("block*", "pooled"))(torch.randn(2, 1, 28, 28))
    assert {name: tuple(x.shape) for name, x in out.taps.items()} == {
        **{f"block{i}": (2, 16, 12) for i in (1, 2, 3)},
        "pooled": (2, 12),
    }
    torch.testing.assert_close(out.taps["pooled"], model.norm(out.taps["block3"]).mean(1))
    torch.testing.assert_close(out.rows, model.classifier(out.taps["pooled"]))


def test_patches_are_read_row_by_row() -> None:
    """Tokens are the patches in the order of reading, each projected by the same matrix."""
    torch.manual_seed(0)
    model = models.build("mamba", {"depth": 1, "dim": 6, "patch": 2}, classes=3, channels=2, size=4)
    x = torch.randn(1, 2, 4, 4)
    tokens: list[Tensor] = []
    model.blocks.register_forward_pre_hook(lambda _, inputs: tokens.append(inputs[0]))
    model(x)
    weight, bias = model.patch_embed.weight.flatten(1), model.patch_embed.bias
    patches = [x[0, :, i : i + 2, j : j + 2].flatten() for i in (0, 2) for j in (0, 2)]
    expected = torch.stack(patches) @ weight.T + bias + model.positions
    torch.testing.assert_close(tokens[0][0], expected)


def test_copies_keep_their_exemption_from_weight_decay() -> None:
    with torch.device("meta"):
        model = models.build("mamba", {"depth": 2, "dim": 16, "bidirectional": True}, **MNIST)
    exempt = {
        name for name, _ in model.named_parameters() if name.rpartition(".")[2] in ("A_log", "A_b_log", "D", "D_b")
    }
    assert len(exempt) == 8
    for each in (model, copy.deepcopy(model)):
        groups = parameter_groups([each], Optimizer(name="adamw", lr=1e-3, weight_decay=0.1))
        free = {id(p) for group in groups if group["weight_decay"] == 0 for p in group["params"]}
        assert {name for name, p in each.named_parameters() if id(p) in free} == exempt


# Size and work


def formula(depth: int, dim: int, length: int, patch_values: int, classes: int, states: int = 16) -> float:
    """Mamba-PKD specification, A.4.2."""
    inner, rank = 2 * dim, -(-dim // 16)
    block = 2 * dim * inner + 4 * inner + inner * (rank + 2 * states) + rank * inner
    block += 4.5 * inner * states + 2 * inner + inner * dim + 2.5 * dim
    return depth * length * block + length * patch_values * dim + dim * classes


LADDER = [(1, 10), (2, 12), (2, 20), (2, 26), (3, 28), (3, 36), (4, 38), (8, 64)]


@pytest.mark.parametrize(("depth", "dim"), LADDER)
def test_multiply_accumulates_are_those_of_the_formula(depth: int, dim: int) -> None:
    with torch.device("meta"):
        model = models.build("mamba", {"depth": depth, "dim": dim}, **MNIST)
    assert flops.count(model, (1, 28, 28))[1] == formula(depth, dim, 49, 16, 10)


def test_sizes_are_those_of_the_paper_s_reproduction() -> None:
    def count(depth: int, dim: int, channels: int, size: int) -> tuple[int, int]:
        with torch.device("meta"):
            model = models.build("mamba", {"depth": depth, "dim": dim}, classes=10, channels=channels, size=size)
        return flops.count(model, (channels, size, size))

    assert count(1, 10, 1, 28)[0] == 2_530
    assert count(8, 64, 1, 28) == (266_570, 15_668_096)
    assert count(8, 192, 3, 32) == (2_037_514, 140_429_184)
    shares = [round(100 * count(depth, dim, 1, 28)[1] / 15_668_096, 1) for depth, dim in LADDER[:-1]]
    assert shares == [0.9, 2.3, 4.5, 6.4, 10.6, 15.4, 22.2]


def test_work_does_not_depend_on_where_the_model_is() -> None:
    model = models.build("mamba", {"depth": 2, "dim": 12, "d_state": 4}, **MNIST)
    assert flops.count(model, (1, 28, 28))[1] == formula(2, 12, 49, 16, 10, states=4)


# Backends and options


def test_a_saved_model_predicts_the_same_on_another_backend() -> None:
    torch.manual_seed(0)
    saved = models.build("mamba", {"depth": 4, "dim": 32, "backend": "torch"}, **MNIST)
    x = torch.randn(8, 1, 28, 28)
    backends = ["auto", *([] if scan.scan_native.problem() else ["native"])]
    for backend in backends:
        model = models.build("mamba", {"depth": 4, "dim": 32, "backend": backend}, **MNIST)
        model.load_state_dict(saved.state_dict())
        torch.testing.assert_close(model(x), saved(x), rtol=1e-5, atol=1e-5)
    assert scan.backend_in_use(saved) == "torch"
    assert scan.backend_in_use(models.build("mlp", {}, **MNIST)) is None


def test_double_precision_runs_with_auto() -> None:
    torch.manual_seed(0)
    single = models.build("mamba", {"depth": 1, "dim": 8}, **MNIST)
    double = copy.deepcopy(single).double()
    x = torch.randn(2, 1, 28, 28)
    out = double(x.double())
    assert out.dtype == torch.float64
    torch.testing.assert_close(out.float(), single(x), rtol=1e-5, atol=1e-5)
    assert scan.backend_in_use(double) == "torch"


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"patch": 5}, "option 'patch' must divide the size of the images: 5 does not divide 28"),
        ({"depth": 0}, "option 'depth' must be a whole number above 0, not 0"),
        ({"dim": 8.5}, "option 'dim' must be a whole number above 0, not 8.5"),
        ({"backend": "cuda"}, "there is no scan backend 'cuda'; there are auto, torch, native, mamba_ssm"),
        ({"bidirectional": "yes"}, "option 'bidirectional' must be true or false, not 'yes'"),
        ({"block": "mamba3"}, "option 'block' must be one of mamba, mamba2, not 'mamba3'"),
        ({"block": "mamba2", "bidirectional": True}, "option 'bidirectional' is for block 'mamba' only"),
        ({"block": "mamba2", "backend": "torch"}, "block 'mamba2' runs with backend mamba_ssm only, not with 'torch'"),
        ({"block": "mamba2", "dim": 10}, "option 'headdim' must divide expand * dim: 64 does not divide 20"),
    ],
)
def test_wrong_options_are_sentences(options: dict, sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        models.build("mamba", options, **MNIST)
    assert sentence in str(caught.value)


def test_mamba2_is_refused_without_cuda() -> None:
    if not scan.kernels_problem():
        pytest.skip("it runs here")
    with pytest.raises(UserError, match="Mamba-2 blocks run on CUDA with mamba_ssm's kernels only: "):
        models.build("mamba", {"block": "mamba2"}, **MNIST)


def test_mamba2_is_counted_on_the_meta_device_and_refused_on_a_cpu(mamba_ssm, monkeypatch) -> None:
    monkeypatch.setattr(scan, "kernels_problem", lambda: "")
    model = models.build("mamba", {"block": "mamba2", "depth": 2, "dim": 32, "d_state": 8, "headdim": 16}, **MNIST)
    with pytest.raises(UserError, match="Mamba-2 blocks run on CUDA only; use `--device cuda`"):
        model(torch.zeros(1, 1, 28, 28))
    inner, states, heads = 64, 8, 4
    block = 32 * (2 * inner + 2 * states + heads) + 4 * (inner + 2 * states) + 4.5 * inner * states + 2 * inner
    assert flops.count(model, (1, 28, 28))[1] == 2 * 49 * (block + inner * 32 + 2.5 * 32) + 49 * 16 * 32 + 320
    assert isinstance(model.blocks[0].mixer, block2.Mamba2)
    assert all(p._no_weight_decay for n, p in copy.deepcopy(model).named_parameters() if n.endswith(("A_log", ".D")))


# RMSNorm


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rms_norm_is_that_of_torch(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    mine, theirs = RMSNorm(24).to(dtype), nn.RMSNorm(24, eps=1e-5).to(dtype)
    theirs.load_state_dict({"weight": torch.randn(24, dtype=dtype)})
    mine.load_state_dict(theirs.state_dict(), strict=True)
    x, dy = torch.randn(3, 5, 24, dtype=dtype), torch.randn(3, 5, 24, dtype=dtype)
    expected, found = results(theirs, x, dy), results(mine, x, dy)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name])


def test_rms_norm_gradients_are_those_of_finite_differences() -> None:
    x, weight = torch.randn(2, 3, 5, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    inputs = (x.requires_grad_(), weight.requires_grad_())
    assert torch.autograd.gradcheck(lambda x, w: torch.ops.kdbench.rms_norm(x, w, 0.1)[0], inputs)


def test_torch_knows_rms_norm() -> None:
    x = torch.randn(2, 3, 5, requires_grad=True)
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    weight = torch.randn(5, requires_grad=True)
    torch.library.opcheck(torch.ops.kdbench.rms_norm.default, (x, weight, 1e-5), test_utils=tests)


@pytest.mark.slow
@pytest.mark.skipif(bool(scan.scan_native.problem()), reason="torch.compile needs a compiler on a CPU")
def test_a_model_compiles_as_one_graph() -> None:
    torch.manual_seed(0)
    model = models.build("mamba", {"depth": 1, "dim": 8, "d_state": 4}, **MNIST)
    x = torch.randn(2, 1, 28, 28)
    compiled = torch.compile(model, fullgraph=True)
    torch.testing.assert_close(compiled(x), model(x), rtol=1e-5, atol=1e-5)
    expected = torch.autograd.grad(model(x).sum(), list(model.parameters()))
    found = torch.autograd.grad(compiled(x).sum(), list(model.parameters()))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
