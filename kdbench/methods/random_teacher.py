"""Random Teachers are Good Teachers: an untrained teacher, as a control.

F. Sarnthein, G. Bachmann, S. Anagnostidis, T. Hofmann. ICML 2023.

    student <- a copy of the teacher's model whose layers were initialised anew        L = L_over

What a gain over `none` owes to the teacher's knowledge, and not to soft targets as such, is the difference to this
control (protocol, rule 5); the paper shows that even a random teacher helps. The copy answers in eval mode, on the
pixels that the student sees, is drawn anew for each seed, and never learns. Its layers are initialised by their own
`reset_parameters`, PyTorch's defaults, not by what the architecture's authors draw; a model with weights outside of
layers that can do so is refused. The trained teacher runs as well, unused. Default inside: KD with its own defaults.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from kdbench.batch import Batch, Out, Profile
from kdbench.lazy import nn, torch
from kdbench.losses import wide
from kdbench.method import Method, Needs, Paper, Prepared, Refusal, Wrapper
from kdbench.methods.kd import KD

if TYPE_CHECKING:
    from torch import Tensor


def untrained(model: nn.Module) -> nn.Module:
    """A frozen copy with fresh weights and statistics.

    Raises:
        Refusal: a layer with weights or memories of its own cannot be initialised anew.
    """
    first = next(model.parameters())
    model = copy.deepcopy(model).to("cpu", torch.float32)  # the same draw for every device and type
    for name, layer in model.named_modules():
        own = [*layer.parameters(recurse=False), *layer.buffers(recurse=False)]
        reset: Any = getattr(layer, "reset_parameters", None)
        if callable(reset):
            reset()
        elif own:
            where = f"layer '{name}'" if name else "the model itself"
            raise Refusal(
                f"random_teacher cannot initialise the teacher anew: {where} ({type(layer).__name__}) has no way"
            )
    return model.to(first.device, first.dtype).requires_grad_(False)


@dataclass(frozen=True)
class RandomTeacher(Wrapper):
    """An untrained teacher, for whatever logit method it wraps (control; Sarnthein et al. 2023)."""

    family = "controls"
    paper = Paper("Random Teachers are Good Teachers", "ICML", 2023, "2302.12091")

    extends: ClassVar[tuple[str, ...]] = ("loss",)

    over: Method = KD()

    def needs(self) -> Needs:
        needs = self.over.needs()
        if needs.teacher:
            raise Refusal("random_teacher has logits alone, but the method inside needs features of its teacher")
        return needs

    def heads(self, learner: Profile, teachers: Mapping[str, Profile]) -> Prepared:
        heads, fresh = nn.Module(), {role: untrained(profile.model) for role, profile in teachers.items()}
        said = {role: dataclasses.replace(teachers[role], model=model) for role, model in fresh.items()}
        heads.untrained = nn.ModuleList(fresh.values())
        inner = Prepared.of(self.over.heads(learner, said))
        heads.over = inner.model
        return Prepared(heads, inner.within("over"))

    def loss(self, learner: Out, teachers: Mapping[str, Out], batch: Batch, heads: Any) -> dict[str, Tensor]:
        pairs = zip(teachers.items(), heads.untrained, strict=True)
        said = {role: self._said(out, model.eval(), batch) for (role, out), model in pairs}
        return self.over.loss(learner, said, batch, heads.over)

    def _said(self, out: Out, model: nn.Module, batch: Batch) -> Out:
        with torch.no_grad():
            rows, *views = (batch.task.rows(wide(model(x)), batch) for x in (batch.x, *batch.views))
        return Out(out.role, rows, views=tuple(Out(out.role, view) for view in views))

    def deploy(self, model: nn.Module, heads: Any) -> nn.Module:
        return self.over.deploy(model, heads.over)
