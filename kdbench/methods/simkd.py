"""Knowledge Distillation with the Reused Teacher Classifier.

D. Chen, J.-P. Mei, H. Zhang, C. Wang, Y. Feng, C. Chen. CVPR 2022.

    L = w mean (P(F_s) - F_t)^2        deployed student: backbone -> P -> pooling -> the teacher's classifier

F is the last block's map (B, D, H, W), the larger one average-pooled to the smaller; P is 1x1, 3x3, 1x1 convolutions
with BatchNorm and ReLU and D_t / factor channels inside. Neither labels nor logits are used (the released CE 0, KD 0).
The deployed graph holds P and the teacher's classifier, and both are counted. The student's own classifier is never
trained: while training, logits and hence `train/top1` mean nothing; read `val/top1`, which is of the deployed graph.

Deviation: the deployed student pools with its own layer. So between last block and classifier neither network may have
layers with weights, and the student trained this way cannot teach (its own logits are untrained): both are refused.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kdbench.batch import Batch, Out, Profile
from kdbench.lazy import F, nn
from kdbench.losses import pool_to_smaller, wide
from kdbench.method import Method, Needs, Paper, Refusal, knob

if TYPE_CHECKING:
    from torch import Tensor


def simkd_loss(projected_BDHW: Tensor, map_t_BDHW: Tensor) -> Tensor:
    """Mean over all elements of the squared difference, the larger map pooled to the smaller; scalar."""
    projected, target = pool_to_smaller(wide(projected_BDHW), wide(map_t_BDHW))
    return F.mse_loss(projected, target)


def projector(channels_s: int, channels_t: int, factor: int) -> nn.Sequential:
    """Maps (B, channels_s, H, W) -> (B, channels_t, H, W), through channels_t / factor channels."""
    inside = max(channels_t // factor, 1)
    layers: list[nn.Module] = []
    for size_in, size_out, kernel in ((channels_s, inside, 1), (inside, inside, 3), (inside, channels_t, 1)):
        conv = nn.Conv2d(size_in, size_out, kernel, padding=kernel // 2, bias=False)
        layers += [conv, nn.BatchNorm2d(size_out), nn.ReLU()]
    return nn.Sequential(*layers)


def misfits(profile: Profile) -> Iterator[str]:
    """Why a projector cannot stand between this network's last block and its classifier, as ends of a sentence."""
    shape, pooled = profile.blocks[-1], profile.taps["pooled"]
    model: Any = profile.model
    tap, modules = _last_tap(model), [name for name, _ in model.named_modules()]
    if len(shape) != 3 or getattr(tap, "channels_last", False):
        yield f"its last block answers {shape}, which is not a map (D, H, W)"
        return
    if pooled != shape[:1]:
        yield f"its classifier takes {pooled[0]} features and not the {shape[0]} channels of the last block, pooled"
    inside = [n for n, name in enumerate(modules) if tap.side == "output" and (name + ".").startswith(tap.path + ".")]
    first = inside[-1] + 1 if inside else modules.index(tap.path)
    for name in modules[first:]:
        weights = list(model.get_submodule(name).parameters(recurse=False))
        if weights and not (name + ".").startswith(model.kd_classifier + "."):
            yield f"layer '{name}' between its last block and its classifier has weights"
            return


def _last_tap(model: Any) -> Any:
    return [tap for name, tap in model.kd_taps.items() if name.startswith("block")][-1]


@dataclass(frozen=True)
class SimKD(Method):
    """Reuse the teacher's classifier on projected features; another graph is deployed (Chen et al. 2022)."""

    family = "features"
    paper = Paper("Knowledge Distillation with the Reused Teacher Classifier", "CVPR", 2022, "2203.14001")

    weight: float = knob(1.0, "weight of the feature distance, the only term", low=0.01, high=100.0, log=True)
    factor: int = knob(2, "the projector has D_t / factor channels inside", low=1, high=8)

    def needs(self) -> Needs:
        return Needs(learner=("block-1", "pooled"), teacher=("block-1", "pooled"))

    def prepare(self, model: nn.Module, role: str, teachers: Mapping[str, nn.Module]) -> nn.Module:
        for name, teacher in teachers.items():
            if getattr(teacher, "kd_untrained_classifier", False):
                raise Refusal(f"simkd trains no classifier of its own, so {name} cannot teach {role}")
        model.__dict__["kd_untrained_classifier"] = True
        return model

    def heads(self, learner: Profile, teachers: Mapping[str, Profile]) -> nn.Module:
        if len(teachers) != 1:
            raise Refusal(f"simkd reuses the classifier of one teacher; {learner.role} has {len(teachers)}")
        (teacher,) = teachers.values()
        model: Any = teacher.model
        for profile in (learner, teacher):
            for sentence in misfits(profile):
                raise Refusal(f"simkd cannot put a projector into {profile.role}: {sentence}")
        (channels_s, *size_s), (channels_t, *size_t) = learner.blocks[-1], teacher.blocks[-1]
        heads = nn.Module()
        size = [min(s, t) for s, t in zip(size_s, size_t, strict=True)]
        heads.pool = nn.Identity() if size == size_s else nn.AdaptiveAvgPool2d((size[0], size[1]))
        heads.projector = projector(channels_s, channels_t, self.factor)
        heads.classifier = copy.deepcopy(model.get_submodule(model.kd_classifier)).requires_grad_(False)
        return heads

    def loss(self, learner: Out, teachers: Mapping[str, Out], batch: Batch, heads: Any) -> dict[str, Tensor]:
        (teacher,) = teachers.values()
        projected = heads.projector(heads.pool(learner.blocks[-1]))
        return {"simkd": self.weight * simkd_loss(projected, teacher.blocks[-1])}

    def deploy(self, model: Any, heads: Any) -> nn.Module:
        tap = _last_tap(model)
        block, added = model.get_submodule(tap.path), (heads.pool, heads.projector)
        model.set_submodule(tap.path, nn.Sequential(*((block, *added) if tap.side == "output" else (*added, block))))
        model.set_submodule(model.kd_classifier, heads.classifier)
        return model
