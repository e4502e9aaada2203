"""Active selection by the student's confidence, over any method.

    w_i ~ (1 - max_c p_s(c | x_i))^gamma + floor

Before every epoch the student looks at the whole training set, unaugmented; N examples are then drawn with replacement,
uncertain ones more often. In the spirit of uncertainty sampling (Lewis & Gale, SIGIR 1994) and of the confidence
criterion of Active Mixup (Wang et al., CVPR 2020), without its black-box protocol and its pool of mixed images.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from kdbench.batch import Probe
from kdbench.lazy import F
from kdbench.method import Method, Needs, Wrapper, knob
from kdbench.methods.kd import KD

if TYPE_CHECKING:
    from torch import Tensor


def uncertainty_weights(logits_NC: Tensor, gamma: float, floor: float) -> Tensor:
    """(1 - confidence)^gamma + floor of each example, (N,)."""
    confidence_N = F.softmax(logits_NC, dim=1).amax(dim=1)
    return (1 - confidence_N).clamp(min=0).pow(gamma) + floor


@dataclass(frozen=True)
class Active(Wrapper):
    """Spend the steps where the student is unsure."""

    over: Method = KD()
    gamma: float = knob(1.0, "how strongly confidence counts; 0 draws uniformly", low=0.0, high=4.0)
    floor: float = knob(0.1, "weight of a fully confident example", low=0.001, high=1.0, log=True)

    def needs(self) -> Needs:
        return replace(self.over.needs(), probe=True)

    def sample(self, probe: Probe) -> Tensor:
        return uncertainty_weights(probe.logits_NC, self.gamma, self.floor)
