"""What stages are trained on where the method chooses it, and how many questions that asked of frozen roles."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from kdbench.batch import Chosen, Pool
from kdbench.data.batches import Source
from kdbench.data.mixtures import Mixtures
from kdbench.method import Method, Refusal, changes
from kdbench.streams import derive


@dataclass
class Choices:
    """Made again on a resume: a choice is a function of the seed, the stage and the models that learned before it."""

    method: Method
    train: Source
    seed: int
    ask: Callable[[str, Source], Tensor]  # role, source -> rows; Refusal where the role has not learned
    made: list[Chosen] = field(default_factory=list)

    def source(self, stage: int) -> Source:
        """What the next stage is trained on.

        Raises:
            Refusal: the method chooses and needs what is known of training examples alone, or chooses none.
        """
        if not changes(self.method, "choose"):
            return self.train
        needs, name = self.method.needs(), type(self.method).__name__
        if needs.probe or needs.survey or needs.teacher or needs.draws or needs.views > 1:
            raise Refusal(f"{name} chooses mixtures of examples, about which teachers give one answer and nothing else")
        device = self.train.device
        rng = torch.Generator(device).manual_seed(derive(self.seed, "choose", stage))
        pool = Pool(stage, len(self.train), self._asked, rng, self.made[-1] if self.made else None)
        chosen = self.method.choose(pool)
        if chosen is None:
            return self.train
        if not len(chosen):
            raise Refusal(f"{name} chooses nothing to train on in stage {stage + 1}")
        self.made.append(chosen)
        return Mixtures(self.train, chosen)

    def _asked(self, role: str, chosen: Chosen) -> Tensor:
        return self.ask(role, Mixtures(self.train, chosen))

    @property
    def queries(self) -> int | None:
        """Different mixtures about which frozen roles were asked so far; None where the method does not choose."""
        if not self.made:
            return None
        rows = torch.cat([torch.stack([part.double() for part in chosen.parts], 1) for chosen in self.made])
        return len(torch.unique(rows, dim=0))
