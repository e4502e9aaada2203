"""FitNets, "hints for thin deep nets" (Romero, Ballas, Kahou, Chassang, Gatta & Bengio, ICLR 2015).

    L = CE + w mean (reg(F_s) - F_t)^2

The original trains the regressor and the lower half of the student first and then distils; as in RepDistiller and
mdistiller, hint and labels are trained together here. reg is their convolution with BatchNorm and ReLU.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kdbench.batch import Batch, Out, Profile
from kdbench.lazy import F, nn, torch
from kdbench.losses import as_map, cross_entropy, map_shape
from kdbench.method import Method, Needs, knob

if TYPE_CHECKING:
    from torch import Tensor


def regressor(student: tuple[int, int, int], teacher: tuple[int, int, int]) -> nn.Module:
    """Maps (B, *student) -> (B, *teacher); shapes are (D, H, W).

    Twice as large: a strided 3x3 convolution; half as large: a transposed one; equal: 1x1; any other ratio: average
    pooling to the teacher's size, then 1x1.
    """
    (d_s, h_s, w_s), (d_t, h_t, w_t) = student, teacher
    if (h_s, w_s) == (2 * h_t, 2 * w_t):
        fit: list[nn.Module] = [nn.Conv2d(d_s, d_t, 3, stride=2, padding=1)]
    elif (2 * h_s, 2 * w_s) == (h_t, w_t):
        fit = [nn.ConvTranspose2d(d_s, d_t, 4, stride=2, padding=1)]
    elif (h_s, w_s) == (h_t, w_t):
        fit = [nn.Conv2d(d_s, d_t, 1)]
    else:
        fit = [nn.AdaptiveAvgPool2d((h_t, w_t)), nn.Conv2d(d_s, d_t, 1)]
    return nn.Sequential(*fit, nn.BatchNorm2d(d_t), nn.ReLU(inplace=True))


@dataclass(frozen=True)
class FitNet(Method):
    """Regress the teacher's feature map at one block."""

    block: int = knob(2, "which block is the hint", low=1, high=8)
    weight: float = knob(100.0, "weight of the hint", low=0.1, high=1000.0, log=True)
    ce_weight: float = knob(1.0, "weight of the labels", low=0.0, high=2.0)

    def needs(self) -> Needs:
        return Needs(learner=(f"block{self.block}",), teacher=(f"block{self.block}",))

    def heads(self, learner: Profile, teachers: Mapping[str, Profile]) -> nn.Module:
        shape = map_shape(learner.blocks[0])
        return nn.ModuleDict({role: regressor(shape, map_shape(t.blocks[0])) for role, t in teachers.items()})

    def loss(self, learner: Out, teachers: Mapping[str, Out], batch: Batch, heads: nn.Module) -> dict[str, Tensor]:
        hint = as_map(learner.blocks[0])
        terms = [
            F.mse_loss(heads.get_submodule(role)(hint), as_map(teacher.blocks[0])) for role, teacher in teachers.items()
        ]
        ce = self.ce_weight * cross_entropy(learner.logits_BC, batch.targets_BC)
        return {"ce": ce, "fitnet": self.weight * torch.stack(terms).mean()}
