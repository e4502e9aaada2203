"""Active selection: see more often what the student is least sure of.

    w_n = (1 - max_c softmax(z_s,n)_c)^gamma + floor        epoch = N draws with replacement, proportional to w

Least-confidence sampling of D. D. Lewis, W. A. Gale, "A Sequential Algorithm for Training Text Classifiers", SIGIR
1994, as a curriculum for distillation: before every epoch, from the student's logits on the whole unaugmented training
set (counted in the training time). gamma = 0 is uniform; `floor` keeps every example reachable. D. Wang, Y. Li, L.
Wang, B. Gong, "Neural Networks Are More Data-Efficient Teachers", CVPR 2020 (Active Mixup) selects by the same
confidence; its query protocol is not this method. Default inside: KD.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kdbench.batch import Probe
from kdbench.lazy import F
from kdbench.losses import wide
from kdbench.method import Method, Needs, Paper, Wrapper, knob
from kdbench.methods.kd import KD

if TYPE_CHECKING:
    from torch import Tensor


def uncertainty(logits_NC: Tensor, gamma: float, floor: float) -> Tensor:
    """Sampling weights (N,): (1 - highest probability)^gamma + floor."""
    return (1 - F.softmax(wide(logits_NC), dim=1).amax(1)).pow(gamma) + floor


@dataclass(frozen=True)
class Active(Wrapper):
    """Active selection: draw examples by the student's lack of confidence (after Lewis & Gale 1994)."""

    family = "examples"
    paper = Paper("A Sequential Algorithm for Training Text Classifiers", "SIGIR", 1994)

    over: Method = KD()
    gamma: float = knob(1.0, "how strongly uncertainty counts; 0 is uniform", low=0.0, high=4.0)
    floor: float = knob(0.1, "added to every weight", low=0.001, high=1.0, log=True)

    def needs(self) -> Needs:
        return dataclasses.replace(self.over.needs(), probe=True, categorical=True)

    def sample(self, probe: Probe) -> Tensor | None:
        return uncertainty(probe.rows_NC, self.gamma, self.floor)
