from __future__ import annotations

import copy
from itertools import product
from math import prod

import numpy as np
import pytest
import tensorly
import torch
from tensorly.decomposition import tensor_train_matrix
from torch import nn
from torch.nn.utils import parametrize

from kdbench import models
from kdbench.methods import _mpo as mpo
from kdbench.methods._matrices import chosen
from kdbench.methods._mpo_shapes import Shape, automatic, cheapest, near_square, parse


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def matrix(rows: int, columns: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype)


def error(weight: torch.Tensor, shape: Shape, rank: int | None = None) -> float:
    """Relative Frobenius error of decomposition and contraction, computed in float64 from the matrix as it is."""
    back = mpo.contract(mpo.decompose(weight, shape, rank), shape)
    assert back.dtype == weight.dtype
    return float((back.double() - weight.double()).norm() / weight.double().norm())


# shapes --------------------------------------------------------------------------------------------------------------
def test_automatic_shapes_are_the_papers() -> None:
    assert str(automatic(768, 768, 3)) == "32,1,1,1,24 x 32,1,1,1,24"
    assert str(automatic(3072, 768, 1)) == "64,1,48 x 32,1,24"
    tiny = {128: (16, 8), 160: (16, 10), 320: (20, 16), 512: (32, 16), 640: (32, 20), 1280: (40, 32)}
    assert {n: near_square(n) for n in (*tiny, 384, 480, 960)} == tiny | {384: (24, 16), 480: (24, 20), 960: (32, 30)}


def test_near_square_factors_against_all_factors() -> None:
    for n in range(1, 200):
        best = min(((a, n // a) for a in range(1, n + 1) if n % a == 0 and a * a >= n), key=lambda f: f[0] - f[1])
        assert near_square(n) == best


def test_two_primes_keep_a_bond() -> None:
    assert automatic(7, 5, 1) == Shape((7, 1, 1), (1, 1, 5))
    assert automatic(7, 5, 1).bonds() == (1, 5, 5, 1)  # the plain singular value decomposition


@pytest.mark.parametrize(
    "shape", [parse("4,8,6 x 2,6,4"), parse("[32,1,1,24] x [64,1,1,48]"), parse("3,1,2,5 x 2,2,1,7")]
)
def test_bonds_and_added_parameters_by_loops(shape: Shape) -> None:
    n = len(shape.rows)
    bonds = [1] * (n + 1)
    for k in range(1, n):
        left = right = 1
        for m in range(n):
            if m < k:
                left *= shape.rows[m] * shape.columns[m]
            else:
                right *= shape.rows[m] * shape.columns[m]
        bonds[k] = min(left, right)
    assert list(shape.bonds()) == bonds
    size = sum(shape.rows[k] * shape.columns[k] * bonds[k] * bonds[k + 1] for k in range(n))
    assert shape.added() == size - prod(shape.rows) * prod(shape.columns)
    assert list(shape.bonds(5)) == [min(bond, 5) for bond in bonds]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("32,24", "'32,24' is not a shape: write rows x columns, for example '32,1,24 x 64,1,48'"),
        ("4,4 x 4", "'4,4 x 4' does not split rows and columns into equally many whole numbers above 0"),
        ("4,0 x 4,4", "'4,0 x 4,4' does not split rows and columns into equally many whole numbers above 0"),
    ],
)
def test_bad_shapes_are_told(text: str, said: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse(text)
    assert str(caught.value) == said


def test_the_papers_totals_of_bert() -> None:
    per_layer = 4 * (768 * 768 + 768) + 3072 * 768 + 3072 + 768 * 3072 + 768 + 2 * 2 * 768
    others = (30522 + 512 + 2) * 768 + 2 * 768 + 768 * 768 + 768 + 2 * 768 + 2  # embeddings, pooler, classifier
    shapes = [(768, 768)] * 4 + [(3072, 768), (768, 3072)]

    def millions(layers: int, ones: int | None) -> float:
        added = 0 if ones is None else layers * sum(automatic(*shape, ones).added() for shape in shapes)
        return round((others + layers * per_layer + added) / 1e6, 1)

    assert [millions(6, ones) for ones in (None, 0, 1, 3, 4, 8)] == [67.0, 90.8, 114.7, 162.5, 186.4, 281.9]
    assert [millions(4, ones) for ones in (None, 0, 1, 3)] == [52.8, 68.7, 84.6, 116.5]


def test_the_papers_totals_of_tiny_vit() -> None:
    with torch.device("meta"):
        model = models.build("tiny_vit_5m_224", {}, classes=1000, channels=3, size=224)
    plain = sum(p.numel() for p in model.parameters())
    body = chosen(model, (), "student")
    assert {path.rpartition(".")[2] for path in body} == {"qkv", "proj", "fc1", "fc2"}
    totals = [plain + sum(automatic(*m.shape, ones).added() for m in body.values()) for ones in (0, 1)]
    assert [round(total / 1e6, 2) for total in (plain, *totals)] == [5.39, 7.92, 10.45]


def test_the_order_of_contraction_is_the_cheapest_of_all() -> None:
    def costs(modes: tuple[int, ...], bonds: tuple[int, ...]) -> list[int]:
        if len(modes) == 1:
            return [0]
        found = []
        for k in range(len(modes) - 1):  # contract two neighbours first, then all orders of the rest
            here = bonds[k] * modes[k] * bonds[k + 1] * modes[k + 1] * bonds[k + 2]
            rest = (*modes[:k], modes[k] * modes[k + 1], *modes[k + 2 :])
            found += [here + more for more in costs(rest, (*bonds[: k + 1], *bonds[k + 2 :]))]
        return found

    for modes, bonds in (((1024, 1, 1, 576), (1, 576, 576, 576, 1)), ((6, 2, 5, 3), (1, 6, 7, 3, 1)), ((4,), (1, 1))):
        assert cheapest(modes, bonds)[0] == min(costs(modes, bonds))
    assert cheapest((1024, 1, 576), (1, 576, 576, 1))[1] == (0, (1, 2))


# decomposition -------------------------------------------------------------------------------------------------------
def opdf_tensors(weight: np.ndarray, shape: Shape) -> list[np.ndarray]:
    """Algorithm S.2 and the gauge of the released code: SVD sweep, environments by QR, SVD of L R at every bond."""
    n = len(shape.rows)
    x = weight.reshape(*shape.rows, *shape.columns).transpose([axis for k in range(n) for axis in (k, n + k)])
    bonds, tensors = shape.bonds(), []
    for k in range(n - 1):
        u, values, vt = np.linalg.svd(x.reshape(bonds[k] * shape.rows[k] * shape.columns[k], -1), full_matrices=False)
        tensors.append(u.reshape(bonds[k], shape.rows[k], shape.columns[k], -1))
        x = values[:, None] * vt
    tensors.append(x.reshape(bonds[n - 1], shape.rows[-1], shape.columns[-1], 1))
    left, right = [np.ones((1, 1))], [np.ones((1, 1))]
    for k in range(n - 1):
        left.append(np.linalg.qr(np.tensordot(left[-1], tensors[k], 1).reshape(-1, bonds[k + 1]))[1])
        t = np.tensordot(tensors[n - 1 - k], right[-1], 1).reshape(bonds[n - 1 - k], -1)
        right.append(np.linalg.qr(t.T)[1].T)
    for k in range(1, n):
        u, values, vt = np.linalg.svd(left[k] @ right[n - k])
        p = right[n - k] @ vt.T / np.sqrt(values)
        q = (u / np.sqrt(values)).T @ left[k]
        tensors[k - 1] = np.tensordot(tensors[k - 1], p, 1)
        tensors[k] = np.tensordot(q, tensors[k], 1)
    return tensors


@pytest.mark.parametrize("text", ["4,3 x 5,2", "4,1,1,3 x 5,1,1,2", "3,4,2 x 2,3,4", "2,1,3,2 x 3,2,1,2"])
def test_tensors_are_opdfs_up_to_signs(text: str) -> None:
    shape = parse(text)
    weight = matrix(*shape.matrix)
    for ours, theirs in zip(mpo.decompose(weight, shape), opdf_tensors(weight.numpy(), shape), strict=True):
        assert ours.shape == theirs.shape
        np.testing.assert_allclose(ours.abs().numpy(), np.abs(theirs), atol=1e-9)


def test_contraction_is_the_sum_over_bonds() -> None:
    shape = parse("2,3,2 x 3,1,2")
    tensors = [torch.randn(size, dtype=torch.float64) for size in shape.tensors()]
    expected = np.einsum("aipb,bjqc,ckrd->ijkpqr", *(t.numpy() for t in tensors)).reshape(12, 6)
    for order in (None, ((0, 1), 2), (0, (1, 2))):
        np.testing.assert_allclose(mpo.contract(tensors, shape, order).numpy(), expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("ones", [1, 2, 4])
def test_one_decomposition_is_the_whole_sweep_where_the_middle_is_ones(ones: int) -> None:
    shape = automatic(24, 36, ones)
    weight = matrix(24, 36)
    with tensorly.backend_context("pytorch"):
        sweep = tensor_train_matrix(weight.reshape(*shape.rows, *shape.columns), rank=list(shape.bonds())).factors
    for quick, slow in zip(mpo.decompose(weight, shape), mpo.balanced(sweep), strict=True):
        torch.testing.assert_close(quick, slow, rtol=0, atol=1e-11)


def test_one_singular_value_decomposition_per_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    swept = []
    real = mpo.tensor_train_matrix
    monkeypatch.setattr(mpo, "tensor_train_matrix", lambda x, rank, svd: swept.append(rank[:]) or real(x, rank=rank))
    mpo.decompose(matrix(24, 36), automatic(24, 36, 5))
    assert swept == [[1, 24, 1]]  # TensorLy takes one decomposition for each inner bond


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-6), (torch.float64, 1e-13)])
@pytest.mark.parametrize("text", ["32,1,24 x 32,1,24", "8,1,1,1,6 x 16,1,1,1,12", "4,8,6 x 2,6,4", "16,10 x 4,3"])
def test_reconstruction(text: str, dtype: torch.dtype, limit: float) -> None:
    shape = parse(text)
    assert error(0.02 * matrix(*shape.matrix, dtype), shape) < limit


@pytest.mark.parametrize("size", [(9, 5), (5, 9), (6, 6)])
@pytest.mark.parametrize("smallest", [1.0, 1e-2, 1e-4, 1e-12, 0.0])  # by the Gram matrix, and by LAPACK
def test_singular_value_decomposition(size: tuple[int, int], smallest: float) -> None:
    u, values, vt = torch.linalg.svd(matrix(*size), full_matrices=False)
    values[-1] = smallest * values[0] if smallest < 1 else values[-1]
    made = u * values @ vt
    lapack = torch.linalg.svd(made, full_matrices=False)
    for ours, theirs in zip(mpo.svd(made, 4), (lapack[0][:, :4], lapack[1][:4], lapack[2][:4]), strict=True):
        torch.testing.assert_close(ours.abs(), theirs.abs(), rtol=0, atol=1e-9)
    u, values, vt = mpo.svd(made)
    torch.testing.assert_close(u * values @ vt, made, rtol=0, atol=1e-13)
    torch.testing.assert_close(u.T @ u, torch.eye(len(values), dtype=torch.float64), rtol=0, atol=1e-9)


def test_both_sides_of_a_bond_have_the_same_norm() -> None:
    one, middle, other = mpo.decompose(matrix(24, 36), automatic(24, 36, 1))
    torch.testing.assert_close(one.norm(), other.norm())
    torch.testing.assert_close(middle[:, 0, 0], torch.eye(24, dtype=torch.float64), rtol=0, atol=0)


def test_signs_are_fixed() -> None:
    """Two decompositions of nearly the same matrix nearly agree: numpy's signs are arbitrary, TensorLy's are not."""
    weight, shape = matrix(24, 36), automatic(24, 36, 1)
    near = weight + 1e-9 * matrix(24, 36, seed=1)
    for one, other in zip(mpo.decompose(weight, shape), mpo.decompose(near, shape), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [(1, 12), (1, 7), (12, 1), (7, 5), (13, 12), (1, 1), (31, 31)])
@pytest.mark.parametrize("ones", [0, 1, 3])
def test_odd_sizes(size: tuple[int, int], ones: int) -> None:
    shape = automatic(*size, ones)
    tensors = mpo.decompose(matrix(*size), shape)
    assert tuple(tuple(t.shape) for t in tensors) == shape.tensors()
    assert error(matrix(*size), shape) < 1e-13


@pytest.mark.parametrize("fill", [0.0, 0.3, -2.0])
@pytest.mark.parametrize("text", ["4,1,3 x 3,1,2", "4,2,3 x 3,2,2", "4,3 x 3,2"])
def test_zero_and_constant_matrices(fill: float, text: str) -> None:
    shape = parse(text)
    weight = torch.full(shape.matrix, fill)
    tensors = mpo.decompose(weight, shape)
    assert all(t.isfinite().all() for t in tensors)
    torch.testing.assert_close(mpo.contract(tensors, shape), weight, rtol=1e-6, atol=0)


def test_what_cannot_be_decomposed_is_told() -> None:
    with pytest.raises(ValueError, match=r"shape '4,3 x 3,2' is of a \(12, 6\) matrix, not of a \(6, 12\) one"):
        mpo.decompose(matrix(6, 12), parse("4,3 x 3,2"))
    with pytest.raises(ValueError, match="not finite"):
        mpo.decompose(torch.full((12, 6), float("nan")), parse("4,3 x 3,2"))


@pytest.mark.parametrize("text", ["6,1,4 x 6,1,6", "4,3,2 x 3,4,3"])
@pytest.mark.parametrize("rank", [1, 3, 8])
def test_truncation_keeps_its_bound(text: str, rank: int) -> None:
    shape = parse(text)
    weight = matrix(*shape.matrix)
    tensors = mpo.decompose(weight, shape, rank)
    assert tuple(tuple(t.shape) for t in tensors) == shape.tensors(rank)
    off = float((mpo.contract(tensors, shape) - weight).norm())
    bound = mpo.truncation_bound(weight, shape, rank)
    n, lost = len(shape.rows), {}  # the bound again, from unfoldings made with numpy
    x = weight.numpy().reshape(*shape.rows, *shape.columns).transpose([a for k in range(n) for a in (k, n + k)])
    for k, bond in enumerate(shape.bonds(rank)[1:-1], start=1):
        cut = prod(shape.modes[:k])
        lost[cut] = (np.linalg.svd(x.reshape(cut, -1), compute_uv=False)[bond:] ** 2).sum()
    assert bound == pytest.approx(sum(lost.values()) ** 0.5)
    assert 0 < off <= bound * (1 + 1e-12)
    if len(lost) == 1:  # one bond: the best approximation, whose error is the bound (Eckart and Young)
        assert off == pytest.approx(bound)


def test_edges_can_be_prescribed() -> None:
    shape = parse("2,6,2 x 3,4,2")
    weight = matrix(*shape.matrix)
    edges = {0: torch.randn(1, 2, 3, 6), 2: torch.randn(4, 2, 2, 1)}
    tensors = mpo.with_edges(weight, shape, edges)
    assert torch.equal(tensors[0], edges[0].double())
    assert torch.equal(tensors[2], edges[2].double())
    torch.testing.assert_close(mpo.contract(tensors, shape), weight, rtol=0, atol=1e-9)
    with pytest.raises(torch.linalg.LinAlgError):
        mpo.with_edges(weight, shape, {0: torch.zeros(1, 2, 3, 6), 2: edges[2]})
    with pytest.raises(ValueError, match="does not leave square bases"):
        mpo.with_edges(weight, parse("6,1,4 x 6,1,4"), edges)


def test_gradients_through_the_contraction() -> None:
    shape = parse("2,1,2 x 3,2,1")
    layer = mpo.MPO(shape.matrix, shape)
    tensors = [t.flatten(1, 2).requires_grad_() for t in mpo.decompose(matrix(*shape.matrix), shape)]
    assert torch.autograd.gradcheck(layer, tensors)


# the layer -----------------------------------------------------------------------------------------------------------
def linear(seed: int = 0, **options: object) -> nn.Linear:
    torch.manual_seed(seed)
    layer = nn.Linear(12, 8, **options)
    mpo.register(layer, "weight", automatic(8, 12, 1))
    return layer


@pytest.fixture
def contractions(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    calls: list[int] = []
    real = mpo.contract
    monkeypatch.setattr(mpo, "contract", lambda *args: calls.append(1) or real(*args))
    return calls


def test_a_weight_used_twice_in_a_step_is_contracted_once(contractions: list[int]) -> None:
    layer = linear()
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9)
    plain = copy.deepcopy([p.detach().clone().requires_grad_() for p in mpo.tensors_of(layer, "weight")])
    bias, shape = layer.bias.detach().clone().requires_grad_(), automatic(8, 12, 1)
    reference = torch.optim.SGD([*plain, bias], lr=0.1, momentum=0.9)
    contractions.clear()
    x = torch.randn(5, 12)
    for _ in range(3):
        (layer(x).square().sum() + layer(2 * x).sin().sum()).backward()
        one, other = (nn.functional.linear(v, mpo.contract(plain, shape, (0, (1, 2))), bias) for v in (x, 2 * x))
        (one.square().sum() + other.sin().sum()).backward()
        for ours, theirs in zip(mpo.tensors_of(layer, "weight"), plain, strict=True):
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-5)
        for each in (optimizer, reference):
            for group in each.param_groups:
                nn.utils.clip_grad_norm_(group["params"], 1.0)
            each.step()
            each.zero_grad()
    assert len(contractions) == 3 + 2 * 3  # ours, and the reference's


def test_what_is_kept_never_goes_stale() -> None:
    layer, x = linear(), torch.randn(5, 12)
    tensors = mpo.tensors_of(layer, "weight")

    def dense() -> torch.Tensor:
        return nn.functional.linear(x, mpo.contract([t.detach() for t in tensors], automatic(8, 12, 1)), layer.bias)

    def check() -> None:
        torch.testing.assert_close(layer(x), dense(), rtol=0, atol=1e-6)

    before = layer(x)  # no backward pass follows
    with torch.no_grad():
        tensors[1].mul_(2.0)
        check()
    check()
    layer.load_state_dict(linear(seed=1).state_dict())
    check()
    layer(x).sum().backward()
    for tensor in tensors:
        tensor.data.mul_(0.5)  # leaves no trace in the version; the backward pass has dropped what was kept
    check()
    layer(x).sum().backward()  # not through the graph of the forward pass before it
    with torch.inference_mode():
        check()
    layer.requires_grad_(False)
    with torch.inference_mode():
        check()
    check()
    tensors[0].data = tensors[0].data * 3.0
    check()
    assert not torch.allclose(before, layer(x))


def test_a_frozen_weight_is_contracted_once_for_all(contractions: list[int]) -> None:
    layer = linear().requires_grad_(False)
    contractions.clear()
    for _ in range(3):
        with torch.no_grad():
            layer(torch.randn(2, 12))
    assert len(contractions) == 1


def test_contraction_stays_float32_under_autocast() -> None:
    layer = linear()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        weight, out = layer.weight, layer(torch.randn(3, 12))
    expected = mpo.contract(mpo.tensors_of(layer, "weight"), automatic(8, 12, 1))
    assert (weight.dtype, out.dtype) == (torch.float32, torch.bfloat16)
    torch.testing.assert_close(weight, expected, rtol=0, atol=0)


def test_torch_compile_and_functional_calls_see_the_tensors() -> None:
    layer, x = linear(), torch.randn(4, 12)
    layer(x)  # something is kept
    changed = {name: value * 1.5 for name, value in layer.named_parameters()}
    got = torch.func.functional_call(layer, changed, (x,))
    tensors = [changed[f"parametrizations.weight.original{k}"] for k in range(3)]
    expected = nn.functional.linear(x, mpo.contract(tensors, automatic(8, 12, 1)), changed["bias"])
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)

    def loss(parameters: dict[str, torch.Tensor]) -> torch.Tensor:
        return torch.func.functional_call(layer, parameters, (x,)).sum()

    gradient = torch.func.grad(loss)({name: value.detach() for name, value in layer.named_parameters()})
    layer(x).sum().backward()
    for name, value in layer.named_parameters():
        torch.testing.assert_close(gradient[name], value.grad, rtol=0, atol=1e-5)
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), layer(x), rtol=0, atol=1e-6)


def test_folding_a_copy_leaves_the_original_alone() -> None:
    """torch shares the injected class between copies: `remove_parametrizations` on one would break the other."""
    layer, x = linear(), torch.randn(4, 12)
    before = layer(x)  # kept, on a graph: neither may hinder the copy
    copied = mpo.fold(copy.deepcopy(layer))
    assert (type(copied), list(copied.state_dict())) == (nn.Linear, ["weight", "bias"])
    torch.testing.assert_close(copied(x), before, rtol=0, atol=1e-6)
    torch.testing.assert_close(layer(x), before, rtol=0, atol=0)
    again = mpo.fold(copy.deepcopy(layer))
    assert torch.equal(again.weight, copied.weight)
    assert not parametrize.is_parametrized(again)


@pytest.mark.parametrize("trained", [True, False])
def test_a_folded_weight_is_a_parameter_also_of_a_frozen_model(trained: bool) -> None:
    layer = linear().requires_grad_(trained)
    with torch.no_grad():
        mpo.fold(layer)
    assert isinstance(layer.weight, nn.Parameter)
    assert (layer.weight.requires_grad, layer.weight.is_leaf) == (trained, True)


@pytest.mark.parametrize("made", [nn.Conv2d(6, 8, 3, bias=False), nn.Conv1d(6, 8, 3), nn.Conv2d(6, 9, 1, groups=3)])
def test_convolutions_are_matrices(made: nn.Module) -> None:
    layer = copy.deepcopy(made)
    size = layer.weight.shape[0], prod(layer.weight.shape[1:])
    mpo.register(layer, "weight", automatic(*size, 1))
    x = torch.randn(2, 6, *[7] * (layer.weight.dim() - 2))
    torch.testing.assert_close(layer(x), made(x), rtol=0, atol=1e-5)
    layer.to(memory_format=torch.channels_last) if layer.weight.dim() == 4 else None
    assert all(t.is_contiguous() for t in mpo.tensors_of(layer, "weight"))
    mpo.fold(layer)
    assert list(layer.state_dict()) == list(made.state_dict())
    torch.testing.assert_close(layer.weight, made.weight, rtol=0, atol=1e-6)


def test_assigning_a_weight_decomposes_it() -> None:
    layer, weight = linear(), matrix(8, 12, torch.float32, seed=3)
    layer.weight = weight
    torch.testing.assert_close(layer.weight, weight, rtol=0, atol=1e-6)


def test_attention_with_a_joint_projection() -> None:
    torch.manual_seed(0)
    made = nn.MultiheadAttention(8, 2, batch_first=True)
    layer, x = copy.deepcopy(made), torch.randn(2, 5, 8)
    mpo.register(layer, "in_proj_weight", automatic(24, 8, 1))
    torch.testing.assert_close(layer(x, x, x)[0], made(x, x, x)[0], rtol=0, atol=1e-5)
    mpo.fold(layer)
    assert list(layer.state_dict()) == list(made.state_dict())
    torch.testing.assert_close(layer(x, x, x)[0], made(x, x, x)[0], rtol=0, atol=1e-5)


def test_the_number_of_parameters_is_eq_4s() -> None:
    for rows, columns, ones in product((8, 9), (12, 7), (0, 1, 3)):
        layer = nn.Linear(columns, rows)
        plain = sum(p.numel() for p in layer.parameters())
        tensors = mpo.register(layer, "weight", automatic(rows, columns, ones))
        assert sum(p.numel() for p in layer.parameters()) == plain + automatic(rows, columns, ones).added()
        assert len(tensors) == ones + 2
