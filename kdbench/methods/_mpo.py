"""Matrix product operators: exact decomposition of a weight matrix, contraction, and the over-parameterised layer.

Y.-L. Zhan, Z.-F. Gao et al.: Over-parameterized Student Model via Tensor Decomposition Boosted Knowledge Distillation,
NeurIPS 2024. A chosen weight becomes a chain of trainable tensors that contract to it (`register`); after training the
chain is contracted once and forgotten (`fold`). The decomposition is TensorLy's `tensor_train_matrix`, in float64 on
the CPU so that it is the same for every device, with three things of our own:

- ranks are given outright (Eq. 3): TensorLy's "same" and fractions count parameters and lose accuracy;
- tensors of one row and one column are left out of the sweep, since there they are identities: [a, 1, ..., 1, b] takes
  one singular value decomposition however many ones it has;
- the square root of every singular value goes to both sides of its bond (the paper's "Normalization", Alg. S.2), or
  else the last tensor would hold the whole norm. Signs are TensorLy's: the largest entry of a left singular vector is
  positive.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from math import prod
from typing import Any

import tensorly
import torch
from tensorly.decomposition import tensor_train_matrix
from torch import Tensor, nn
from torch.nn.utils import parametrize

from kdbench.methods._mpo_shapes import Shape, Tree, cheapest

FLOOR = 1e-6  # of the largest singular value: smaller ones are balanced as if they were this large


@torch.no_grad()
def decompose(matrix: Tensor, shape: Shape, rank: int | None = None) -> list[Tensor]:
    """Balanced tensors (d_{k-1}, i_k, j_k, d_k) that contract to `matrix` (I, J), exactly unless there is a `rank`.

    Any finite matrix will do, one of zeros included. Type and device are the matrix's; the computation is in float64.

    Raises:
        ValueError: the shape is not the matrix's, or the matrix is not finite.
    """
    exact = _checked(matrix, shape)
    kept = shape.compact
    small = Shape(tuple(shape.rows[k] for k in kept), tuple(shape.columns[k] for k in kept))
    with tensorly.backend_context("pytorch", local_threadsafe=True):
        ranks = list(small.bonds(rank))
        found = tensor_train_matrix(exact.reshape(*small.rows, *small.columns), rank=ranks, svd=svd).factors
    chain = dict(zip(kept, balanced(found), strict=True))
    sizes = shape.tensors(rank)
    tensors = [
        chain[k] if k in chain else torch.eye(size[0], dtype=exact.dtype).reshape(size) for k, size in enumerate(sizes)
    ]
    if rank is not None:
        error, bound = (exact - contract(tensors, shape)).norm(), truncation_bound(exact, shape, rank)
        assert error <= bound + 1e-12 * exact.norm(), f"truncation error {error} above its bound {bound}"
    return [tensor.to(matrix).contiguous() for tensor in tensors]


def svd(matrix: Tensor, n_eigenvecs: int | None = None, **options: Any) -> tuple[Tensor, Tensor, Tensor]:
    """U, the singular values and V^T of a float64 matrix, as TensorLy asks for them; `options` are ignored.

    From the eigenvectors V of the smaller Gram matrix, U = W V / |W V|: half the time of LAPACK's bidiagonalisation.
    U diag(s) V^T is the matrix as exactly as V is orthogonal, while U loses as many digits as the squares of the
    singular values span: where these span six, LAPACK does it.
    """
    tall = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T
    squares, basis = torch.linalg.eigh(tall.T @ tall)
    if squares[0] > 1e-6 * squares[-1]:
        basis = basis.flip(1)
        image = tall @ basis
        values = image.norm(dim=0)
        u, vt = image / values, basis.T
        u, vt = (u, vt) if tall is matrix else (vt.T, u.T)
    else:
        u, values, vt = torch.linalg.svd(matrix, full_matrices=False)
    return u[:, :n_eigenvecs], values[:n_eigenvecs], vt[:n_eigenvecs]


def balanced(chain: Sequence[Tensor]) -> list[Tensor]:
    """A left-orthogonal chain rescaled so that both sides of each bond hold the square roots of its singular values."""
    tensors, scales = list(chain), []
    values = tensors[0].new_ones(1)
    for tensor in reversed(tensors[1:]):
        # Rows of all that is right of a bond are orthogonal; their norms are the singular values there.
        values = (tensor * values).square().sum(dim=(1, 2, 3)).sqrt()
        top = values.max().item()
        scales.append(values.clamp(min=FLOOR * top).sqrt() if top > 0 else torch.ones_like(values))
    for k, scale in enumerate(reversed(scales)):
        tensors[k] = tensors[k] * scale
        tensors[k + 1] = tensors[k + 1] / scale[:, None, None, None]
    return tensors


@torch.no_grad()
def truncation_bound(matrix: Tensor, shape: Shape, rank: int) -> float:
    """sqrt(sum_k eps_k^2) >= ||W - MPO(W)||_F, eps_k the norm of what the k-th unfolding loses (the paper's Theorem 1).

    Bonds beside a tensor of one row and one column have the same unfolding and count once.
    """
    interleaved = _interleaved(_checked(matrix, shape), shape)
    cuts = {prod(shape.modes[:k]): bond for k, bond in enumerate(shape.bonds(rank)[1:-1], start=1)}
    lost = [torch.linalg.svdvals(interleaved.reshape(cut, -1))[bond:].square().sum() for cut, bond in cuts.items()]
    return float(torch.stack(lost).sum().sqrt()) if lost else 0.0


@torch.no_grad()
def with_edges(matrix: Tensor, shape: Shape, edges: Mapping[int, Tensor]) -> list[Tensor]:
    """Tensors that contract to `matrix` (I, J) and whose auxiliary ones are the given `edges`, by position.

    The centre is A_L^-1 W A_R^-1; exact where everything left and right of it is a square basis (`square_edges`).

    Raises:
        ValueError: the shape has no square edges.
        torch.linalg.LinAlgError: the edges are singular, so that the centre does not exist.
    """
    if not shape.square_edges or tuple(edges) != shape.auxiliary:
        raise ValueError(f"'{shape}' does not leave square bases at both edges: enlarge its central factors")
    exact = _checked(matrix, shape)
    given = {k: edge.to("cpu", torch.float64) for k, edge in edges.items()}
    k, bonds = shape.central, shape.bonds()
    centre = _interleaved(exact, shape).reshape(bonds[k], -1)
    if k > 0:
        centre = torch.linalg.solve(_joined([given[m] for m in range(k)]).reshape(bonds[k], bonds[k]), centre)
    if k + 1 < len(shape.rows):
        right = _joined([given[m] for m in range(k + 1, len(shape.rows))]).reshape(bonds[k + 1], bonds[k + 1])
        centre = torch.linalg.solve(right, centre.reshape(-1, bonds[k + 1]), left=False)
    given[k] = centre.reshape(shape.tensors()[k])
    error = (contract([given[m] for m in sorted(given)], shape) - exact).norm()
    if not error <= 1e-9 * exact.norm():
        raise torch.linalg.LinAlgError("the edges are too near to singular")
    return [given[m].to(matrix).contiguous() for m in sorted(given)]


def contract(tensors: Sequence[Tensor], shape: Shape, order: Tree | None = None) -> Tensor:
    """The matrix (I, J) of a chain of tensors (d_{k-1}, i_k, j_k, d_k), or (d_{k-1}, i_k j_k, d_k); differentiable.

    `order` defaults to the cheapest.
    """
    bonds = (*(tensor.shape[0] for tensor in tensors), 1)
    tree = cheapest(shape.modes, bonds)[1] if order is None else order
    n = len(shape.rows)
    interleaved = _along(tree, tensors).reshape([size for k in range(n) for size in (shape.rows[k], shape.columns[k])])
    return interleaved.permute(*range(0, 2 * n, 2), *range(1, 2 * n, 2)).reshape(shape.matrix)


def _along(tree: Tree, tensors: Sequence[Tensor]) -> Tensor:
    if isinstance(tree, int):
        return tensors[tree]
    left, right = _along(tree[0], tensors), _along(tree[1], tensors)
    product = left.reshape(-1, left.shape[-1]) @ right.reshape(right.shape[0], -1)
    return product.reshape(left.shape[0], -1, right.shape[-1])


def _joined(tensors: Sequence[Tensor]) -> Tensor:
    joined = tensors[0]
    for tensor in tensors[1:]:
        joined = torch.tensordot(joined, tensor, dims=([-1], [0]))
    return joined


def _interleaved(matrix: Tensor, shape: Shape) -> Tensor:
    """(I, J) -> (i_1, j_1, i_2, j_2, ..., i_n, j_n)."""
    n = len(shape.rows)
    return matrix.reshape(*shape.rows, *shape.columns).permute([axis for k in range(n) for axis in (k, n + k)])


def _checked(matrix: Tensor, shape: Shape) -> Tensor:
    """The matrix in float64 on the CPU."""
    if tuple(matrix.shape) != shape.matrix:
        raise ValueError(f"shape '{shape}' is of a {shape.matrix} matrix, not of a {tuple(matrix.shape)} one")
    if not matrix.isfinite().all():
        raise ValueError("a matrix with values that are not finite cannot be decomposed")
    return matrix.detach().to("cpu", torch.float64)


# the over-parameterised layer ----------------------------------------------------------------------------------------
class MPO(nn.Module):
    """Parametrisation of a weight (out, ...) by the tensors of its (out, rest) matrix.

    Tensors are kept as (d_{k-1}, i_k j_k, d_k): four axes would be taken for a convolution's weight and laid out
    channels-last by `Module.to(memory_format=...)`.

    A weight that is used several times in a step is contracted once: the result is kept until a backward pass has
    gone through it, or a tensor was changed or replaced. So two losses that share a step's weight need one backward
    pass (or `retain_graph`), as with any tensor that is used twice. While gradients are off, only frozen tensors'
    weight is kept. Contraction is in the tensors' own type under autocast.
    """

    def __init__(
        self,
        weight_shape: Sequence[int],
        shape: Shape,
        rank: int | None = None,
        edges: Mapping[int, Tensor] | None = None,
        layout: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.weight_shape, self.shape, self.rank, self.edges = tuple(weight_shape), shape, rank, edges
        self.layout = tuple(layout)  # names of the layer's parameters, in their order before the surgery
        self.order = cheapest(shape.modes, shape.bonds(rank))[1]
        self._kept: tuple[tuple[Tensor, ...], tuple[Any, ...], Tensor] | None = None

    def forward(self, *tensors: Tensor) -> Tensor:
        keep = _may_keep(tensors)
        state = _state(tensors) if keep else ()
        if keep and self._kept is not None:
            kept, before, weight = self._kept
            if before == state and all(one is other for one, other in zip(kept, tensors, strict=True)):
                return weight
        with torch.autocast(tensors[0].device.type, enabled=False):
            weight = contract(tensors, self.shape, self.order).reshape(self.weight_shape)
        if keep:
            self._kept = (tensors, state, weight)
            if weight.requires_grad:
                weight.register_hook(self._forget)
        return weight

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, ...]:
        matrix = weight.reshape(self.shape.matrix)
        if self.edges is None:
            tensors = decompose(matrix, self.shape, self.rank)
        else:
            tensors = with_edges(matrix, self.shape, self.edges)
        return tuple(tensor.flatten(1, 2) for tensor in tensors)

    def extra_repr(self) -> str:
        return f"{self.shape}, rank {self.rank}" if self.rank else str(self.shape)

    def _forget(self, gradient: Tensor) -> None:
        self._kept = None  # its graph is used up

    def __getstate__(self) -> dict[str, Any]:  # what is kept hangs on a graph and cannot be copied
        return {**self.__dict__, "_kept": None}


def _may_keep(tensors: Sequence[Tensor]) -> bool:
    if torch.compiler.is_compiling() or not all(isinstance(tensor, nn.Parameter) for tensor in tensors):
        return False  # under a transform (torch.func, torch.compile) tensors have no history to compare
    if any(tensor.is_inference() for tensor in tensors):
        return False
    return torch.is_grad_enabled() or not any(tensor.requires_grad for tensor in tensors)


def _state(tensors: Sequence[Tensor]) -> tuple[Any, ...]:
    """Changes with every in-place operation on a tensor, and with a new storage behind it."""
    modes = (torch.is_inference_mode_enabled(), *(tensor.requires_grad for tensor in tensors))
    return (*modes, *((tensor._version, tensor.data_ptr()) for tensor in tensors))


def register(
    layer: nn.Module,
    name: str,
    shape: Shape,
    rank: int | None = None,
    edges: Mapping[int, Tensor] | None = None,
) -> tuple[nn.Parameter, ...]:
    """Replace the parameter `name` of a layer by the tensors of its decomposition, and return them in order.

    With `edges` the auxiliary tensors are those (see `with_edges`). Raises what `decompose` and `with_edges` raise.
    """
    weight = getattr(layer, name)
    parametrization = MPO(weight.shape, shape, rank, edges, tuple(layer._parameters))
    parametrize.register_parametrization(layer, name, parametrization)
    parametrization._kept = None
    tensors = tensors_of(layer, name)
    assert tensors is not None
    return tensors


def tensors_of(layer: nn.Module, name: str) -> tuple[nn.Parameter, ...] | None:
    """The live tensors (d_{k-1}, i_k j_k, d_k) behind a layer's parameter, or None where it is an ordinary one."""
    if not _is_ours(layer, name):
        return None
    held: Any = layer.parametrizations[name]  # type: ignore[index]
    return tuple(getattr(held, f"original{k}") for k in range(held.ntensors))


class Heads(nn.Module):
    """The wrapped method's heads, and `compared`, which lists the tensors of both sides (not copied with the heads)."""

    def __init__(self, over: nn.Module) -> None:
        super().__init__()
        self.over = over
        self.compared: Callable[[], tuple[list[list[Tensor]], list[list[Tensor]]]] | None = None


def fold(model: nn.Module) -> nn.Module:
    """Contract every chain of a model to the dense weight it stands for and forget it, in place; returns the model.

    Classes, parameters and the keys of the state dict, in their order, are those from before `register`.
    """
    for layer in list(model.modules()):
        for name in list(_ours(layer)):
            _fold(layer, name)
    return model


def _fold(layer: nn.Module, name: str) -> None:
    tensors = tensors_of(layer, name)
    parametrization: Any = layer.parametrizations[name][0]  # type: ignore[index]
    assert tensors is not None
    with torch.no_grad():
        weight = parametrization(*tensors).detach().clone()
    # torch gives a deep copy the very class of the original, and removing the weight's property from it would take
    # the weight of the model that is still being trained.
    shared = type(layer)
    layer.__class__ = type(shared.__name__, shared.__bases__, dict(vars(shared)))
    parametrize.remove_parametrizations(layer, name)
    delattr(layer, name)  # torch leaves a buffer where the tensors were frozen
    layer.register_parameter(name, nn.Parameter(weight, requires_grad=tensors[0].requires_grad))
    for key in parametrization.layout:
        if key in layer._parameters:
            layer._parameters[key] = layer._parameters.pop(key)


def _ours(layer: nn.Module) -> Iterator[str]:
    if parametrize.is_parametrized(layer):
        yield from (name for name in layer.parametrizations if _is_ours(layer, name))  # type: ignore[union-attr]


def _is_ours(layer: nn.Module, name: str) -> bool:
    if not parametrize.is_parametrized(layer, name):
        return False
    held: Any = layer.parametrizations[name]  # type: ignore[index]
    return len(held) == 1 and isinstance(held[0], MPO)
