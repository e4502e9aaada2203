"""A second token and a second head for a vision transformer, as submodules in the place of its own."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


class Append(nn.Module):
    """One more token behind the others: (B, L, D) -> (B, L + 1, D)."""

    def __init__(self, like: Tensor) -> None:
        super().__init__()
        self.token = nn.Parameter(0.02 * torch.randn(like.shape).to(like))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.token.to(x.dtype).expand(len(x), -1, -1)], 1)


class Beside(nn.Module):
    """The last token beside each of the others: (B, L + 1, D) -> (B, L, 2D), so that pooling takes both along."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x[:, :-1], x[:, -1:].expand(-1, x.shape[1] - 1, -1)], 2)


class TwoHeads(nn.Module):
    """The mean of two classifiers, of the first and of the second half of the features (B, 2D)."""

    def __init__(self, head: nn.Linear) -> None:
        super().__init__()
        self.first, self.second = head, copy.deepcopy(head)
        with torch.no_grad():
            self.second.weight.copy_(0.02 * torch.randn(head.weight.shape))
            self.second.bias.zero_()

    def both(self, features: Tensor) -> tuple[Tensor, Tensor]:
        first, second = features.chunk(2, dim=1)
        return self.first(first), self.second(second)

    def forward(self, features: Tensor) -> Tensor:
        first, second = self.both(features)
        return (first + second) / 2
