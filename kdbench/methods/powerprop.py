"""Powerpropagation: A sparsity inducing weight reparameterisation.

J. Schwarz, S. M. Jayakumar, R. Pascanu, P. E. Latham, Y. W. Teh. NeurIPS 2021.

    W = phi |phi|^(alpha - 1), phi trained;    L = L_over;    deployed: the largest |W|, a share `density` of them

A large weight moves faster than a small one, so that most stay near zero and can be left out. phi starts as sign(u)
|u|^(1 / alpha), so W as u, the usual initial weights; biases, norms and embeddings are as they were. alpha = 1 is the
wrapped method, to the bit. The largest weights are those of all matrices but the classifier's together; of the
classifier's twice that share stays (the paper's rule), of a model that is one matrix the share itself. Validation and
board are of the pruned student, a full student while `density` is 1.

A weight of zero has no gradient for alpha > 1 and stays there: layers that start at zero want alpha = 1. Weight decay
would act on phi: by default there is none. Default inside: KD.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kdbench.lazy import nn, torch
from kdbench.method import Method, Paper, Prepared, Rates, Wrapper, knob
from kdbench.methods._matrices import matrices
from kdbench.methods.kd import KD

if TYPE_CHECKING:
    from torch import Tensor


def prune(weights: Sequence[Tensor], density: float) -> None:
    """Keep a share of all numbers together, the largest ones, and set the others to zero, in place."""
    sizes = torch.cat([weight.detach().abs().flatten() for weight in weights])
    dropped = len(sizes) - round(density * len(sizes))
    if dropped <= 0:
        return
    order = sizes.argsort(stable=True)
    kept = torch.ones_like(sizes)
    kept[order[:dropped]] = 0
    with torch.no_grad():
        for weight, mask in zip(weights, kept.split([weight.numel() for weight in weights]), strict=True):
            weight.mul_(mask.view(weight.shape))


@dataclass(frozen=True)
class PowerProp(Wrapper):
    """Train powers of the weights, so that most of them may be left out (Schwarz et al. 2021)."""

    family = "weights"
    paper = Paper("Powerpropagation: A sparsity inducing weight reparameterisation", "NeurIPS", 2021, "2110.00296")

    over: Method = KD()
    alpha: float = knob(2.0, "the power; 1: the weights themselves", low=1.0, high=6.0)
    density: float = knob(1.0, "share of the weights that the deployed student keeps", low=0.001, high=1.0, log=True)
    decay: float = knob(0.0, "weight decay of the powers' roots, relative to the recipe's", low=0.0, high=1.0)

    def prepare(self, model: nn.Module, role: str, teachers: Mapping[str, nn.Module]) -> Prepared:
        from kdbench.methods import _parametrised as parametrised

        inner = Prepared.of(self.over.prepare(model, role, teachers))
        found = matrices(inner.model).values()
        roots = {parametrised.register(m.layer, m.name, parametrised.Power(self.alpha)) for m in found}
        names = [name for name, parameter in inner.model.named_parameters() if parameter in roots]
        return Prepared(inner.model, {**inner.groups, **dict.fromkeys(names, Rates(decay=self.decay))})

    def deploy(self, model: nn.Module, heads: nn.Module) -> nn.Module:
        from kdbench.methods import _parametrised as parametrised

        found = parametrised.weights(model, parametrised.Power)
        parametrised.fold(model, parametrised.Power)
        classifier = str(getattr(model, "kd_classifier", ""))
        inside: dict[bool, list[Any]] = {True: [], False: []}
        for path, layer, name in found:
            inside[bool(classifier) and (path + ".").startswith(classifier + ".")].append(getattr(layer, name))
        if inside[False]:
            prune(inside[False], self.density)
        if inside[True]:
            prune(inside[True], min(1.0, 2 * self.density) if inside[False] else self.density)
        return self.over.deploy(model.to(memory_format=torch.channels_last), heads)
