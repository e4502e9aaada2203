"""Shapes of a matrix product operator (MPO, or TT-matrix): bonds, sizes and the cheapest order of contraction.

A matrix (I, J) with I = prod_k i_k and J = prod_k j_k is a chain of n tensors (d_{k-1}, i_k, j_k, d_k), d_0 = d_n = 1.
Equation numbers are those of OPDF (Zhan et al., NeurIPS 2024; see _mpo.py). No torch here: `kdbench check` reads
shapes too.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from math import isqrt, prod

Tree = int | tuple["Tree", "Tree"]  # a tensor's position in the chain, or two neighbours to contract


@dataclass(frozen=True)
class Shape:
    """How the two dimensions of a matrix are split among n tensors; written `32,1,24 x 64,1,48`.

    Raises:
        ValueError: with a sentence, where rows and columns are not split into equally many whole numbers.
    """

    rows: tuple[int, ...]
    columns: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.rows or len(self.rows) != len(self.columns) or min((*self.rows, *self.columns)) < 1:
            raise ValueError(f"'{self}' does not split rows and columns into equally many whole numbers above 0")

    def __str__(self) -> str:
        return " x ".join(",".join(map(str, part)) for part in (self.rows, self.columns))

    @property
    def matrix(self) -> tuple[int, int]:
        """(I, J)."""
        return prod(self.rows), prod(self.columns)

    @property
    def modes(self) -> tuple[int, ...]:
        """i_k j_k of each tensor."""
        return tuple(i * j for i, j in zip(self.rows, self.columns, strict=True))

    @property
    def central(self) -> int:
        """Position of the central tensor, from 0; of an even number the left one of the middle."""
        return (len(self.rows) - 1) // 2

    @property
    def auxiliary(self) -> tuple[int, ...]:
        """Positions of all tensors but the central one."""
        return tuple(k for k in range(len(self.rows)) if k != self.central)

    @property
    def compact(self) -> tuple[int, ...]:
        """Positions of the tensors with more than one row or column; one position at least."""
        return tuple(k for k, mode in enumerate(self.modes) if mode > 1) or (0,)

    @property
    def square_edges(self) -> bool:
        """Whether all that is left of the central tensor is a square basis, and all that is right of it."""
        bonds, k = self.bonds(), self.central
        return bonds[k] == prod(self.modes[:k]) and bonds[k + 1] == prod(self.modes[k + 1 :])

    def bonds(self, rank: int | None = None) -> tuple[int, ...]:
        """d_0, ..., d_n: min(prod_{m<=k} i_m j_m, prod_{m>k} i_m j_m) (Eq. 3), no more than `rank` where given."""
        inner = (min(prod(self.modes[:k]), prod(self.modes[k:])) for k in range(1, len(self.modes)))
        return (1, *(bond if rank is None else min(bond, rank) for bond in inner), 1)

    def tensors(self, rank: int | None = None) -> tuple[tuple[int, int, int, int], ...]:
        """(d_{k-1}, i_k, j_k, d_k) of each tensor."""
        bonds = self.bonds(rank)
        return tuple(zip(bonds[:-1], self.rows, self.columns, bonds[1:], strict=True))

    def added(self, rank: int | None = None) -> int:
        """N_add = sum_k i_k j_k d_{k-1} d_k - I J, the parameters more than the matrix has (Eq. 4)."""
        return sum(map(prod, self.tensors(rank))) - prod(self.modes)


def near_square(number: int) -> tuple[int, int]:
    """Two factors as near as possible, the larger first: 768 -> (32, 24), a prime -> (itself, 1)."""
    small = next(n for n in range(isqrt(number), 0, -1) if number % n == 0)
    return number // small, small


def automatic(rows: int, columns: int, ones: int) -> Shape:
    """Two near-square factors of each dimension with `ones` ones between, [a, 1, ..., 1, b] x [c, 1, ..., 1, d].

    These are the paper's shapes (its Tables S.3 to S.5). Where both second factors are 1 (two primes) the columns are
    turned round, since the bond would be 1 and the chain no more than the matrix times a number.
    """
    (a, b), (c, d) = near_square(rows), near_square(columns)
    if b == d == 1:
        c, d = d, c
    return Shape((a, *[1] * ones, b), (c, *[1] * ones, d))


def centred(rows: int, columns: int, edge: int = 4) -> Shape:
    """[e, x, e] x [f, y, f] with e, f <= `edge` as large as may be: square bases at the edges, a large centre."""
    (e, x), (f, y) = (
        next((n, size // n**2) for n in range(edge, 0, -1) if size % n**2 == 0) for size in (rows, columns)
    )
    return Shape((e, x, e), (f, y, f))


def parse(text: str) -> Shape:
    """`32,1,24 x 64,1,48`, as the paper writes it also with brackets: `[32,1,24] x [64,1,48]`.

    Raises:
        ValueError: with a sentence.
    """
    part = r"\s*\[?\s*(\d+(?:\s*,\s*\d+)*)\s*\]?\s*"
    found = re.fullmatch(f"{part}x{part}", text)
    if not found:
        raise ValueError(f"'{text}' is not a shape: write rows x columns, for example '32,1,24 x 64,1,48'")
    rows, columns = (tuple(int(number) for number in numbers.split(",")) for numbers in found.groups())
    return Shape(rows, columns)


@cache
def cheapest(modes: tuple[int, ...], bonds: tuple[int, ...]) -> tuple[int, Tree]:
    """(multiplications, order) of the cheapest contraction of a chain: the matrix-chain problem, solved exactly.

    Tensors a..b and b..c, (d_a, M, d_b) and (d_b, M', d_c), cost d_a M d_b M' d_c.
    """

    @cache
    def best(start: int, stop: int) -> tuple[int, Tree]:
        if stop - start == 1:
            return 0, start
        size = bonds[start] * prod(modes[start:stop]) * bonds[stop]
        options = []
        for cut in range(start + 1, stop):
            (left, one), (right, other) = best(start, cut), best(cut, stop)
            options.append((left + right + size * bonds[cut], (one, other)))
        return min(options, key=lambda option: option[0])

    return best(0, len(modes))
