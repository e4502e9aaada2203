"""What is right for each row, compactly: classes with their shares, or numbers; never dense for a whole split."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from kdbench.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Targets:
    """Targets of R rows.

    Categorical: `values` holds classes, int64 (R,), and `classes` says how many there are. Where examples were mixed,
    `values` has the class of the first part and `share` its part in it, and `others` the further classes with theirs:
    each share is a number or (R,), and all of them sum to 1. `smoothing` is spread evenly over all classes.

    Real: `values` holds numbers, float (R, D), and `classes` is 0.

    `where` says which of a model's answers the rows are, as positions (R,) in the answer's flattened order; None: all.
    `weight` (R,) is 0 for rows that do not count (padding that could not be left out without waiting for the device).
    """

    values: Tensor
    classes: int = 0
    share: Tensor | None = None
    others: tuple[tuple[Tensor, Tensor], ...] = ()
    smoothing: float = 0.0
    where: Tensor | None = None
    weight: Tensor | None = None

    @property
    def hard(self) -> bool:
        """Whether every row has one class alone (nothing is read from the device)."""
        return bool(self.classes) and self.share is None and self.smoothing == 0

    @property
    def labels(self) -> Tensor:
        """The class with the largest share, int64 (R,); of numbers, the numbers themselves."""
        if self.share is None:
            return self.values
        parts = [(self.values, self.share), *self.others]
        classes_RM = torch.stack([values for values, _ in parts], dim=1)
        shares_RM = torch.stack([share.expand_as(self.values) for _, share in parts], dim=1)
        return classes_RM.gather(1, shares_RM.argmax(1, keepdim=True)).squeeze(1)

    def dense(self, dtype: torch.dtype | None = None) -> Tensor:
        """Probabilities (R, C) for those who want them, of one batch at a time; of numbers, the numbers."""
        if not self.classes:
            return self.values if dtype is None else self.values.to(dtype)
        dtype = dtype or torch.get_default_dtype()
        out = self._one_hot(self.values, self.share, dtype)
        for values, share in self.others:
            out = out + self._one_hot(values, share, dtype)
        return (1 - self.smoothing) * out + self.smoothing / self.classes if self.smoothing else out

    def _one_hot(self, values: Tensor, share: Tensor | None, dtype: torch.dtype) -> Tensor:
        one = torch.zeros((len(values), self.classes), dtype=dtype, device=values.device)
        one.scatter_(1, values[:, None], 1.0)
        return one if share is None else share.to(dtype).reshape(-1, 1) * one

    def head(self, rows: int) -> Targets:
        """Of the first rows alone, where `where` is not set."""

        def first(part: Tensor) -> Tensor:
            return part[:rows] if part.ndim else part

        return replace(
            self,
            values=self.values[:rows],
            share=None if self.share is None else first(self.share),
            others=tuple((values[:rows], first(share)) for values, share in self.others),
            weight=None if self.weight is None else self.weight[:rows],
        )

    def smoothed(self, epsilon: float) -> Targets:
        """Mixed with the uniform distribution: (1 - epsilon) y + epsilon / C, over what was smoothed before."""
        return replace(self, smoothing=1 - (1 - self.smoothing) * (1 - epsilon) if self.smoothing else epsilon)

    def mixed(self, other: Tensor, share: Tensor) -> Targets:
        """`share` of these and 1 - `share` of those of examples `other` (B,): as labels of mixed inputs.

        Where an example has several rows, they follow it. Of mixed numbers both parts must be known.

        Args:
            share: of the first part, a number or (B,).
        """
        if (each := len(self.values) // max(1, len(other))) > 1:
            other = (other[:, None] * each + torch.arange(each, device=other.device)).flatten()
            share = share.repeat_interleave(each) if share.ndim else share
        if not self.classes:
            weight = None if self.weight is None else self.weight * self.weight[other]
            kept = share.to(self.values.dtype)
            kept = kept.reshape(-1, *[1] * (self.values.ndim - 1)) if kept.ndim else kept
            return replace(self, values=kept * self.values + (1 - kept) * self.values[other], weight=weight)
        parts = [(self.values, self.share), *self.others]
        kept_parts = [(values, share if own is None else own * share) for values, own in parts]
        other_parts = [
            (values[other], 1 - share if own is None else (own[other] if own.ndim else own) * (1 - share))
            for values, own in parts
        ]
        (values, first), *rest = [*kept_parts, *other_parts]
        return replace(self, values=values, share=first, others=tuple(rest))
