"""Efficient Compression of Overparameterized Deep Models through Low-Dimensional Learning Dynamics.

S. M. Kwon, Z. Zhang, D. Song, L. Balzano, Q. Qu. AISTATS 2024.

    classifier(v) -> classifier(U M V v),    V (r, D), M (r, r), U (D, r);    L = L_over

Three linear factors before the classifier, all trained: in a deep linear network of full width the weights move in such
a subspace alone, so that the narrow one learns as the wide one does, in less time. U and V = U' are random orthonormal,
M is the identity, each times `scale`; the outer two learn at 5 times the rate (the released `dlr`). r = 0 is twice the
number of classes. The deployed student has one plain classifier, the product. Default inside: KD.

Deviations: the paper takes U and V from the singular vectors of a surrogate of the solution, which classification does
not have, and the released scale is 0.01; the scale is ours. A classifier that is not one linear layer is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kdbench.lazy import nn, torch
from kdbench.method import Method, Paper, Prepared, Rates, Refusal, Wrapper, knob
from kdbench.methods.kd import KD

if TYPE_CHECKING:
    from torch import Tensor


def factors(width: int, rank: int, scale: float, like: Tensor) -> list[nn.Linear]:
    """Layers V, M and U, whose product is the projection on a random subspace times scale^3."""
    basis_DR, _ = torch.linalg.qr(torch.randn(width, rank, dtype=torch.float64))
    made = []
    for weight in (basis_DR.T, torch.eye(rank, dtype=torch.float64), basis_DR):
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device=like.device, dtype=like.dtype)
        with torch.no_grad():
            layer.weight.copy_(scale * weight)
        made.append(layer)
    return made


def product(layers: nn.Sequential) -> nn.Linear:
    """One linear layer for V, M, U and the classifier."""
    inner, middle, outer, classifier = (layer for layer in layers if isinstance(layer, nn.Linear))
    with torch.no_grad():
        classifier.weight.copy_(classifier.weight @ outer.weight @ middle.weight @ inner.weight)
    return classifier


@dataclass(frozen=True)
class LowRank(Wrapper):
    """Three narrow linear factors before the classifier while the student learns (Kwon et al. 2024)."""

    family = "weights"
    paper = Paper(
        "Efficient Compression of Overparameterized Deep Models through Low-Dimensional Learning Dynamics",
        "AISTATS",
        2024,
        "2311.05061",
    )

    over: Method = KD()
    rank: int = knob(0, "r, at most the features' width; 0: twice the number of classes", low=0)
    scale: float = knob(1.0, "of each factor at first", low=0.01, high=2.0, log=True)
    outer_lr: float = knob(5.0, "learning rate of U and V, relative to the recipe's", low=0.1, high=20.0, log=True)

    def prepare(self, model: nn.Module, role: str, teachers: Mapping[str, nn.Module]) -> Prepared:
        inner = Prepared.of(self.over.prepare(model, role, teachers))
        model, path = inner.model, str(inner.model.kd_classifier)
        classifier = model.get_submodule(path)
        if not isinstance(classifier, nn.Linear):
            raise Refusal(
                f"low_rank puts factors before a linear classifier, and that of {role} is {type(classifier).__name__}"
            )
        width = classifier.in_features
        layers = factors(width, min(self.rank or 2 * classifier.out_features, width), self.scale, classifier.weight)
        model.set_submodule(path, nn.Sequential(*layers, classifier))
        outer = (f"{path}.{place}.weight" for place in (0, 2))
        return Prepared(model, {**inner.groups, **dict.fromkeys(outer, Rates(lr=self.outer_lr))})

    def deploy(self, model: Any, heads: nn.Module) -> nn.Module:
        found = model.get_submodule(model.kd_classifier)
        model.set_submodule(model.kd_classifier, product(found))
        return self.over.deploy(model, heads)
