"""Enhancing Scalability of Pre-trained Language Models via Efficient Parameter Sharing (MPOBERT).

P. Liu, Z.-F. Gao, Y. Chen, W. X. Zhao, J.-R. Wen. Findings of EMNLP 2023.

    W_l = contraction of A_l(1), C, A_l(2);    the central tensor C is one for all layers l;    L = L_over

Matrices of one shape are decomposed into matrix product operators; the central tensor, which holds most parameters, is
the first layer's for all of them, the auxiliary ones are each layer's own. So the student has fewer parameters while it
learns and when deployed: `fold: true` deploys plain weights, as many as before, instead. `edge` bounds the factors of
the outer tensors, [e, x, e] of a dimension (the paper's are 4); `rank` all bonds (0: full, nothing is truncated).

Only the first layer starts as it was. The paper shares the tensor at len // 2 and starts from a trained ALBERT.
Chains are OPDF's (`_mpo.py`), where a chain of the paper's five tensors has three. Default inside: KD.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kdbench.lazy import nn, torch
from kdbench.method import Method, Paper, Prepared, Refusal, Wrapper, knob
from kdbench.methods._matrices import Matrix, chosen, shown
from kdbench.methods._mpo_shapes import centred
from kdbench.methods.kd import KD


def alike(found: Mapping[str, Matrix]) -> list[list[Matrix]]:
    """Matrices of one shape and kind of layer, where there are two or more."""
    groups: dict[Any, list[Matrix]] = {}
    for matrix in found.values():
        groups.setdefault((type(matrix.layer), tuple(matrix.weight.shape)), []).append(matrix)
    return [group for group in groups.values() if len(group) > 1]


@dataclass(frozen=True)
class MPOShare(Wrapper):
    """Layers share the central tensor of their decomposed weights (Liu et al. 2023)."""

    family = "weights"
    paper = Paper(
        "Enhancing Scalability of Pre-trained Language Models via Efficient Parameter Sharing",
        "Findings of EMNLP",
        2023,
        "2303.16753",
    )

    over: Method = KD()
    layers: tuple[str, ...] = knob(
        (), "patterns of paths, `blocks.*.attn.qkv`; none: all but embeddings and classifier"
    )
    edge: int = knob(4, "outer factors of each dimension at most", low=2, high=64)
    rank: int = knob(0, "of all bonds at most; 0: full", low=0)
    fold: bool = knob(False, "deploy plain weights, as many as before, instead of the shared tensors")

    def prepare(self, model: nn.Module, role: str, teachers: Mapping[str, nn.Module]) -> Prepared:
        from kdbench.methods import _mpo as mpo

        inner = Prepared.of(self.over.prepare(model, role, teachers))
        model = inner.model
        found = chosen(model, self.layers, role)
        groups = alike(found)
        if not groups:
            has = ", ".join(dict.fromkeys(shown(matrix.shape) for matrix in found.values()))
            raise Refusal(f"mpo_share needs layers of one shape in the {role}, and its matrices all differ: {has}")
        for group in groups:
            shape = centred(*group[0].shape, self.edge)
            shared: Any = None
            for matrix in group:
                try:
                    tensors = mpo.register(matrix.layer, matrix.name, shape, self.rank or None)
                except ValueError as error:
                    raise Refusal(f"a {shown(matrix.shape)} of the {role} cannot be decomposed: {error}") from error
                held: Any = matrix.layer.parametrizations[matrix.name]  # type: ignore[index]
                shared = tensors[shape.central] if shared is None else shared
                setattr(held, f"original{shape.central}", shared)
        return Prepared(model, inner.groups)

    def deploy(self, model: nn.Module, heads: nn.Module) -> nn.Module:
        from kdbench.methods import _mpo as mpo

        if self.fold:
            model = mpo.fold(model).to(memory_format=torch.channels_last)
        return self.over.deploy(model, heads)
