"""Logit Standardization in Knowledge Distillation.

S. Sun, W. Ren, J. Li, R. Wang, X. Cao. CVPR 2024.

    z' = (z - mean_c z) / (std_c z + 1e-7)        L = CE(y, softmax(z_s)) + L_over(z_s', z_t')

Logits (B, C) of learner and teachers are standardised row by row (unbiased deviation) before the wrapped term, so that
it compares their order and shape, not their scale; a term is unchanged when logits go to a z + b, a > 0. The wrapped
method's term `ce` is of the logits as they are. Views are standardised alike. Default inside: KD with T = 2 and weights
0.1 / 9, the released values (T 2 to 4 and weights 1 to 18 by pair): standardised logits are small, so their terms want
larger weights. One class alone cannot be standardised.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from kdbench.batch import Batch, Out, Profile
from kdbench.losses import wide
from kdbench.method import Method, Needs, Paper, Prepared, Refusal, Wrapper
from kdbench.methods.kd import KD

if TYPE_CHECKING:
    from torch import Tensor, nn

EPS = 1e-7  # the released code's


def standardised(rows_RC: Tensor) -> Tensor:
    """Each row less its mean, over its unbiased standard deviation."""
    rows_RC = wide(rows_RC)
    return (rows_RC - rows_RC.mean(1, keepdim=True)) / (rows_RC.std(1, keepdim=True) + EPS)


def changed(out: Out, change: Callable[[Tensor], Tensor]) -> Out:
    """The answer with other rows, in its views too."""
    return dataclasses.replace(out, rows=change(out.rows), views=tuple(changed(view, change) for view in out.views))


def through(
    change: Callable[[Tensor], Tensor],
    over: Method,
    learner: Out,
    teachers: Mapping[str, Out],
    batch: Batch,
    heads: nn.Module,
) -> dict[str, Tensor]:
    """Terms of `over` on changed rows, but its cross-entropy, the term `ce`, on those that were given.

    `over` is asked twice where it has one: cheap for terms of logits, which is what such a change is for.
    """
    terms = over.loss(changed(learner, change), {t: changed(out, change) for t, out in teachers.items()}, batch, heads)
    return {**terms, "ce": over.loss(learner, teachers, batch, heads)["ce"]} if "ce" in terms else terms


@dataclass(frozen=True)
class LS(Wrapper):
    """Logit standardisation, for whatever logit method it wraps (Sun et al. 2024)."""

    family = "logits"
    paper = Paper("Logit Standardization in Knowledge Distillation", "CVPR", 2024, "2403.01427")

    extends: ClassVar[tuple[str, ...]] = ("loss",)

    over: Method = KD(temperature=2.0, ce_weight=0.1, kd_weight=9.0)

    def needs(self) -> Needs:
        return dataclasses.replace(self.over.needs(), categorical=True)

    def heads(self, learner: Profile, teachers: Mapping[str, Profile]) -> nn.Module | Prepared:
        if learner.classes < 2:
            raise Refusal("ls standardises logits over classes and needs two or more; this data set has one")
        return self.over.heads(learner, teachers)

    def loss(self, learner: Out, teachers: Mapping[str, Out], batch: Batch, heads: nn.Module) -> dict[str, Tensor]:
        return through(standardised, self.over, learner, teachers, batch, heads)
