"""SimKD, "Knowledge distillation with the reused teacher classifier" (Chen, Mei, Zhang, Wang, Feng & Chen, CVPR 2022).

    L = w mean (proj(F_s) - F_t)^2;   deployed: student's body, proj, the student's pooling, the teacher's classifier

F are the last block's maps, average-pooled to the smaller size of the two. proj is the official bottleneck
1x1 -> 3x3 -> 1x1 of width D_t / factor with BatchNorm and ReLU. Labels are not used; the deployed graph is larger than
the student, and is counted so.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kdbench.batch import Batch, Out, Profile
from kdbench.lazy import F, nn, torch
from kdbench.method import Method, Needs, Refusal, knob

if TYPE_CHECKING:
    from torch import Tensor


def projector(d_s: int, d_t: int, factor: int) -> nn.Module:
    """(B, d_s, H, W) -> (B, d_t, H, W)."""
    middle = max(1, d_t // factor)

    def layer(d_in: int, d_out: int, size: int) -> list[nn.Module]:
        conv = nn.Conv2d(d_in, d_out, size, padding=size // 2, bias=False)
        return [conv, nn.BatchNorm2d(d_out), nn.ReLU(inplace=True)]

    return nn.Sequential(*layer(d_s, middle, 1), *layer(middle, middle, 3), *layer(middle, d_t, 1))


@dataclass(frozen=True)
class SimKD(Method):
    """Imitate the teacher's last features and reuse its classifier."""

    factor: int = knob(2, "by which the projector's bottleneck is narrower than the teacher", low=1, high=8)
    weight: float = knob(1.0, "weight of the features", low=0.01, high=100.0, log=True)

    def needs(self) -> Needs:
        return Needs(learner=("block-1",), teacher=("block-1", "pooled"))

    def heads(self, learner: Profile, teachers: Mapping[str, Profile]) -> nn.Module:
        if len(teachers) != 1:
            raise Refusal(f"simkd reuses the classifier of one teacher, not of {len(teachers)}")
        (teacher,) = teachers.values()
        shape_s, shape_t = learner.blocks[-1], teacher.blocks[-1]
        for side, shape in ((learner, shape_s), (teacher, shape_t)):
            if len(shape) != 3:
                raise Refusal(f"simkd needs a feature map, but the {side.role}'s last block answers {shape}")
        classifier = teacher.model.get_submodule(str(teacher.model.kd_classifier))
        if not isinstance(classifier, nn.Linear) or classifier.in_features != shape_t[0]:
            raise Refusal(f"simkd needs a linear classifier on the {teacher.role}'s last block, pooled; it has another")
        kept = nn.Linear(classifier.in_features, classifier.out_features, bias=classifier.bias is not None)
        kept.load_state_dict(classifier.state_dict())
        heads = nn.ModuleDict({"projector": projector(shape_s[0], shape_t[0], self.factor), "classifier": kept})
        heads["classifier"].requires_grad_(False)
        smaller = (min(shape_s[1], shape_t[1]), min(shape_s[2], shape_t[2]))
        heads["resize"] = nn.AdaptiveAvgPool2d(smaller) if smaller != tuple(shape_s[1:]) else nn.Identity()
        self._try(learner, heads)
        return heads

    def _try(self, learner: Profile, heads: nn.Module) -> None:
        """A network with layers of its own between last block and classifier cannot take wider features there."""
        twin = self.deploy(copy.deepcopy(learner.model), copy.deepcopy(heads)).eval()
        try:
            with torch.no_grad():
                twin(torch.zeros(2, *learner.input_shape, device=next(learner.model.parameters()).device))
        except RuntimeError as error:
            raise Refusal(
                f"simkd cannot put the teacher's features behind the {learner.role}'s last block: "
                f"what follows it is made for the student's width"
            ) from error

    def deploy(self, model: nn.Module, heads: nn.Module) -> nn.Module:
        taps: Any = model.kd_taps
        body = [tap for name, tap in taps.items() if name.startswith("block")][-1]
        bridge = nn.Sequential(
            model.get_submodule(body.path), heads.get_submodule("resize"), heads.get_submodule("projector")
        )
        model.set_submodule(body.path, bridge)
        model.set_submodule(str(model.kd_classifier), heads.get_submodule("classifier"))
        return model

    def loss(self, learner: Out, teachers: Mapping[str, Out], batch: Batch, heads: nn.Module) -> dict[str, Tensor]:
        (teacher,) = teachers.values()
        feature_s = heads.get_submodule("projector")(heads.get_submodule("resize")(learner.blocks[-1]))
        feature_t = F.adaptive_avg_pool2d(teacher.blocks[-1], feature_s.shape[2:])
        return {"simkd": self.weight * F.mse_loss(feature_s, feature_t)}
