"""What flows through a training step: `Batch` in, `Out` from each model; `Probe` and `Profile` beside them.

Shape legend, used as suffixes in the whole code base:
    B batch   R rows of decisions   C classes   N training examples   D features   H, W height, width   L tokens
    K negatives, neighbours
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from kdbench.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor, nn

    from kdbench.targets import Targets
    from kdbench.tasks import Task


@dataclass(frozen=True)
class Batch:
    """One training batch, already on the device.

    `x` is opaque to losses: a tensor such as images (B, channels, H, W), or a dict of tensors. `targets` say what is
    right for each of the `task`'s R rows. `index_B` is the position in the training set, or in what `choose` made.
    `views` are further augmentations of the same examples, as many as `Needs.views - 1`. `rng` is reseeded every epoch
    from (seed, stage, epoch) alone; whatever a method draws comes from it.
    """

    x: Any
    targets: Targets
    index_B: Tensor
    task: Task
    epoch: int  # 0-based, within the stage
    epochs: int  # of the stage
    rng: torch.Generator
    stage: int = 0
    views: tuple[Any, ...] = ()
    number: int = 0  # of the batch within its epoch, 0-based
    surveys: Mapping[str, Tensor] = field(default_factory=dict)  # of `Needs.survey`, each (B, ...)

    @property
    def labels(self) -> Tensor:
        """The class of each row with the largest share, int64 (R,): the label itself where nothing was mixed."""
        return self.targets.labels


def call(model: Callable[..., Any], x: Any) -> Any:
    """What a model answers on its inputs: a tensor, or a dict of tensors, which are given by name."""
    return model(**x) if isinstance(x, Mapping) else model(x)


@dataclass(frozen=True)
class Out:
    """What one role's model said about a batch: rows of decisions, and features by tap name in the model's order.

    `rows` are logits (R, C) or numbers (R, D), as the task makes them of the model's answer.
    """

    role: str
    rows: Tensor
    taps: dict[str, Tensor] = field(default_factory=dict)
    views: tuple[Out, ...] = ()
    draws: Tensor | None = None  # (draws, R, C): of a frozen teacher whose dropout is on, where `Needs.draws` is set

    @property
    def blocks(self) -> list[Tensor]:
        """The tapped block features, first block first: maps (B, D, H, W) or tokens (B, L, D)."""
        return [value for name, value in self.taps.items() if name.startswith("block")]

    @property
    def pooled(self) -> Tensor:
        """The input of the classifier, (B, D). Declared in `Needs` as "pooled"."""
        return self.taps["pooled"]

    def detach(self) -> Out:
        return replace(
            self,
            rows=self.rows.detach(),
            taps={name: value.detach() for name, value in self.taps.items()},
            views=tuple(view.detach() for view in self.views),
        )


@dataclass(frozen=True)
class Profile:
    """What a method may look at when it builds its heads: a role's model and the shapes of what it needs.

    `taps` holds shapes without the batch dimension, keyed and ordered as in `Out.taps`. `model.kd_classifier` names
    the final classifier's submodule.
    """

    role: str
    model: nn.Module
    classes: int  # columns of the rows: C or D
    taps: dict[str, tuple[int, ...]]
    examples: int  # training examples N: the length of a memory indexed by `Batch.index_B`
    input_shape: tuple[int, ...] = ()  # (channels, H, W)
    rows_NC: Tensor | None = None  # on the unaugmented training set; of teachers, where `Needs.probe` is set
    answers: int = 1  # roles that answer together, in the whole plan

    @property
    def blocks(self) -> list[tuple[int, ...]]:
        return [shape for name, shape in self.taps.items() if name.startswith("block")]


@dataclass(frozen=True)
class Probe:
    """A learner's view of the whole training set, unaugmented; made when `Needs.probe` is set.

    `sample` is given one before an epoch, `review` one after a stage's last. `heads` may be read, not changed.
    """

    rows_NC: Tensor
    labels_N: Tensor
    epoch: int
    epochs: int
    role: str = "student"
    heads: nn.Module | None = None


@dataclass(frozen=True)
class Chosen:
    """Mixtures on which a stage is trained: `share` of the `first` example and the rest of the `other`, each (M,)."""

    first_M: Tensor
    other_M: Tensor
    share_M: Tensor

    def __len__(self) -> int:
        return len(self.first_M)

    def __add__(self, more: Chosen) -> Chosen:
        parts = zip(self.parts, more.parts, strict=True)
        return Chosen(*(torch.cat([one, other]) for one, other in parts))

    @property
    def parts(self) -> tuple[Tensor, Tensor, Tensor]:
        return (self.first_M, self.other_M, self.share_M)

    @classmethod
    def whole(cls, index_M: Tensor) -> Chosen:
        """Examples as they are."""
        return cls(index_M, index_M, torch.ones(len(index_M), device=index_M.device))


@dataclass(frozen=True)
class Pool:
    """What `choose` may look at before a stage. `ask` answers rows (M, C) of a role that has learned before it."""

    stage: int
    examples: int  # training examples N: `Chosen` counts from 0 to N - 1
    ask: Callable[[str, Chosen], Tensor]
    rng: torch.Generator  # seeded from (seed, stage) alone
    chosen: Chosen | None = None  # for the stage before


@dataclass(frozen=True)
class Review:
    """What a method found out about a learner whose stage is over."""

    values: Mapping[str, float] = field(default_factory=dict)  # curves `train/<role>/<name>`, at the last epoch
    notes: tuple[str, ...] = ()  # sentences for the result
