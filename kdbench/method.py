"""The interface of a method: nine members, all with a default but `loss`; and `review`, for records.

A method is a frozen value. Its fields are its knobs; everything that changes while training lives in `nn.Module`s.
The engine owns the only training loop and names no method. See docs/adr/0001-method-interface.md.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from kdbench.batch import Batch, Chosen, Out, Pool, Probe, Profile, Review
from kdbench.lazy import nn

if TYPE_CHECKING:
    from torch import Tensor


class Refusal(Exception):
    """A method cannot work on this problem; the sentence becomes the result (`skipped`)."""


def knob(
    default: Any,
    help: str = "",
    *,
    low: float | None = None,
    high: float | None = None,
    log: bool = False,
    choices: Sequence[Any] | None = None,
    since: int = 1,
) -> Any:
    """Declare a knob: at once the YAML schema, the search space of `tune` and the leaderboard's footnote.

    `low` and `high` bound what is *searched and accepted*, both inclusive; `log` searches on a logarithmic scale;
    `choices` lists the allowed values. A knob that joins a method which has results already is given `since=2` and a
    default that changes nothing: it then counts only where it differs from that, and those results stay current.
    """
    listed = tuple(choices) if choices else None
    metadata = {"help": help, "low": low, "high": high, "log": log, "choices": listed, "since": since}
    if isinstance(default, list | dict | set):
        raise TypeError("a knob's default must be immutable: use a tuple")
    return dataclasses.field(default=default, metadata={"knob": metadata})


@dataclass(frozen=True)
class Survey:
    """A quantity of a frozen role for each training example, made once: `batch.surveys[name]`.

    `make(model, x)` answers (B, ...) for unaugmented inputs `x`, the model in eval mode, with gradients enabled (its
    parameters have none); `finish` changes the values (N, ...) of all examples (clusters them). An `image` survey is
    (B, D, H, W) like the pixels and takes their crop and flip, with 0 outside. Raise `revision` when `make` changes.
    """

    name: str
    role: str
    make: Callable[[nn.Module, Tensor], Tensor]
    image: bool = False
    finish: Callable[[Tensor], Tensor] | None = None
    revision: int = 1


@dataclass(frozen=True)
class Needs:
    """What the engine must provide.

    `learner` and `teacher` name taps: "pooled", "block2", "block-1" (the last), or the glob "block*". `views` counts
    augmented views of each batch. `hard_labels`: one-hot targets; a wrapper that mixes labels is then refused.
    `probe`: the learner's logits on the whole training set before every epoch, for `sample`. `draws`: so many further
    answers of each frozen teacher with its dropout on, `Out.draws`. `survey`: see `Survey`.

    Of the task: `categorical`, rows are logits over classes; `mixable`, inputs are real numbers and may be added;
    `on_policy`, the learner's own samples. A suite whose task lacks one of them is refused when it is loaded.
    """

    learner: tuple[str, ...] = ()
    teacher: tuple[str, ...] = ()
    views: int = 1
    hard_labels: bool = False
    probe: bool = False
    draws: int = 0
    survey: tuple[Survey, ...] = ()
    categorical: bool = False
    mixable: bool = False
    on_policy: bool = False


@dataclass(frozen=True)
class Rates:
    """Learning rate and weight decay of some parameters, as factors of the recipe's."""

    lr: float = 1.0
    decay: float = 1.0


@dataclass(frozen=True)
class Prepared:
    """A module and the rates of its parameters: what `prepare` and `heads` may answer instead of the module alone.

    `groups` maps a pattern of parameters' names (`adapters.*`) to their rates; of several that match, the last counts.
    """

    model: nn.Module
    groups: Mapping[str, Rates] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, made: nn.Module | Prepared) -> Prepared:
        """The same of either answer."""
        return made if isinstance(made, Prepared) else cls(made)

    def within(self, path: str) -> dict[str, Rates]:
        """The groups as they are called where the module is the submodule `path` of another."""
        return {f"{path}.{pattern}": rates for pattern, rates in self.groups.items()}

    def rates(self) -> dict[nn.Parameter, Rates]:
        """By parameter, of those that are in a group. Raises Refusal where a pattern matches none."""
        named, found = dict(self.model.named_parameters()), {}
        for pattern, rates in self.groups.items():
            matching = [parameter for name, parameter in named.items() if fnmatchcase(name, pattern)]
            if not matching:
                raise Refusal(f"no parameter is called '{pattern}', for which the method sets a rate")
            found.update(dict.fromkeys(matching, rates))
        return found


@dataclass(frozen=True)
class Paper:
    """Where a method comes from; `venue` is without the year, `arxiv` the identifier there ("1503.02531")."""

    title: str
    venue: str
    year: int
    arxiv: str = ""


@dataclass(frozen=True)
class Stage:
    """A small directed graph, `{learner: (teachers...)}`, trained for `share` times the recipe's epochs."""

    learners: Mapping[str, tuple[str, ...]]
    share: float = 1.0


@dataclass(frozen=True)
class Plan:
    """Who learns from whom, in which stages, and whose logits, summed or averaged (`combine`), are the answer.

    `copies` names roles that the pair does not declare and that take another role's model spec (a peer, a generation):
    `{"peer": "student"}`. They have initial weights of their own.
    """

    stages: tuple[Stage, ...]
    answer: tuple[str, ...] = ("student",)
    copies: Mapping[str, str] = dataclasses.field(default_factory=dict)
    combine: Literal["sum", "mean"] = "sum"

    @property
    def learners(self) -> tuple[str, ...]:
        """Every role that is trained in some stage, in order of first appearance."""
        return tuple(dict.fromkeys(role for stage in self.stages for role in stage.learners))

    @property
    def roles(self) -> tuple[str, ...]:
        """Every role the plan mentions."""
        teachers = (t for stage in self.stages for ts in stage.learners.values() for t in ts)
        return tuple(dict.fromkeys([*self.learners, *teachers, *self.answer]))

    @property
    def frozen(self) -> tuple[str, ...]:
        """Roles that teach and are never trained by this plan: they come from `teachers.py`."""
        return tuple(role for role in self.roles if role not in self.learners)


class Method(ABC):
    """Base of all methods. Subclasses are frozen dataclasses in `kdbench/methods/<name>.py`."""

    revision: ClassVar[int] = 1  # raise it when the mathematics change: old results then count as stale
    family: ClassVar[str] = ""  # what it is listed under: "logits", "features", or a word of your own
    paper: ClassVar[Paper | None] = None  # what it is listed with
    registered: ClassVar[str] = ""  # the name that suites use, set by `plugins`, which also knows it: `plugins.name_of`

    # declare ---------------------------------------------------------------------------------------------------------
    def needs(self) -> Needs:
        """Which taps, views, labels and probes? Default: logits only."""
        return Needs()

    def plan(self, roles: tuple[str, ...]) -> Plan:
        """Who learns from whom? `roles` are the pair's, in the suite's order. Default: `student <- teacher`.

        A plan may name roles that the pair lacks: they are reported to the user with file and line.
        """
        return Plan(stages=(Stage({"student": ("teacher",)}),))

    # model -----------------------------------------------------------------------------------------------------------
    def prepare(self, model: nn.Module, role: str, teachers: Mapping[str, nn.Module]) -> nn.Module | Prepared:
        """Surgery on a learner before training (over-parameterise). `teachers` are its stage's teachers."""
        return model

    def deploy(self, model: nn.Module, heads: nn.Module) -> nn.Module:
        """What is evaluated, counted, saved and exported. Receives a copy: it may be changed in place."""
        return model

    # data ------------------------------------------------------------------------------------------------------------
    def choose(self, pool: Pool) -> Chosen | None:
        """What a stage is trained on, in place of the training set: mixtures of its examples. Default: all of it.

        Frozen roles are then asked once about each mixture, unaugmented: those are the queries that a record counts.
        """
        return None

    def sample(self, probe: Probe) -> Tensor | None:
        """Sampling weights (N,) >= 0 for the next epoch, or None for every example once. Needs `Needs.probe`."""
        return None

    def batch(self, batch: Batch) -> Batch:
        """Change a batch (mixup, overlay) before any model sees it; draw from `batch.rng`."""
        return batch

    # signal ----------------------------------------------------------------------------------------------------------
    def heads(self, learner: Profile, teachers: Mapping[str, Profile]) -> nn.Module | Prepared:
        """Extra modules and memory (buffers), trained with the learner and kept out of the deployed student."""
        return nn.Module()

    @abstractmethod
    def loss(self, learner: Out, teachers: Mapping[str, Out], batch: Batch, heads: nn.Module) -> dict[str, Tensor]:
        """Named terms, already weighted; the engine sums them. What teachers say is detached."""

    # records ---------------------------------------------------------------------------------------------------------
    def review(self, probe: Probe) -> Review:
        """Numbers and sentences for the record about a learner whose stage is over. Needs `Needs.probe`."""
        return Review()


@dataclass(frozen=True)
class Wrapper(Method):
    """A method over another: delegates all members; a subclass overrides one or two.

    Subclasses give `over` a default, so that the wrapper can stand alone in YAML. `extends` names members that a
    subclass sets by calling those of `over`: what a wrapper inside makes of them still counts.
    """

    extends: ClassVar[tuple[str, ...]] = ()

    over: Method

    def needs(self) -> Needs:
        return self.over.needs()

    def plan(self, roles: tuple[str, ...]) -> Plan:
        return self.over.plan(roles)

    def prepare(self, model: nn.Module, role: str, teachers: Mapping[str, nn.Module]) -> nn.Module | Prepared:
        return self.over.prepare(model, role, teachers)

    def deploy(self, model: nn.Module, heads: nn.Module) -> nn.Module:
        return self.over.deploy(model, heads)

    def choose(self, pool: Pool) -> Chosen | None:
        return self.over.choose(pool)

    def sample(self, probe: Probe) -> Tensor | None:
        return self.over.sample(probe)

    def batch(self, batch: Batch) -> Batch:
        return self.over.batch(batch)

    def heads(self, learner: Profile, teachers: Mapping[str, Profile]) -> nn.Module | Prepared:
        return self.over.heads(learner, teachers)

    def loss(self, learner: Out, teachers: Mapping[str, Out], batch: Batch, heads: nn.Module) -> dict[str, Tensor]:
        return self.over.loss(learner, teachers, batch, heads)

    def review(self, probe: Probe) -> Review:
        return self.over.review(probe)


def chain(method: Method) -> list[tuple[str, Method]]:
    """The method and those that it wraps, from the outside in, each with the prefix of its knobs: "", "over.", ..."""
    links = [("", method)]
    while isinstance(method, Wrapper):
        method = method.over
        links.append((f"{links[-1][0]}over.", method))
    return links


EXCLUSIVE = ("plan", "choose", "sample", "loss")  # one that a wrapper replaces, no wrapper inside of it may set


def clashes(method: Method) -> list[str]:
    """Members of `EXCLUSIVE` that a wrapper sets although one around it replaces them, as sentences."""
    replaced: dict[str, str] = {}
    sentences = []
    while isinstance(method, Wrapper):
        kind = type(method)
        for member in EXCLUSIVE:
            if getattr(kind, member) is getattr(Wrapper, member):
                continue
            if member in replaced:
                sentences.append(f"{replaced[member]} and {kind.__name__} both set `{member}`; only one wrapper may")
            elif member not in kind.extends:
                replaced[member] = kind.__name__
        method = method.over
    return sentences


def changes(method: Method, member: str) -> bool:
    """Whether the method, or one that it wraps, has a `member` of its own instead of the default."""
    found = getattr(type(method), member)
    if found is getattr(Wrapper, member) and isinstance(method, Wrapper):
        return changes(method.over, member)
    return found is not getattr(Method, member)


def knobs(method: Method | type[Method]) -> dict[str, dataclasses.Field[Any]]:
    """The knob fields of a method, in order of declaration (without `over`)."""
    return {f.name: f for f in dataclasses.fields(method) if "knob" in f.metadata}  # type: ignore[arg-type]


def knob_values(method: Method) -> dict[str, Any]:
    """Every knob of the method, and with the prefix `over.` those of what it wraps, with its value."""
    return {prefix + name: getattr(link, name) for prefix, link in chain(method) for name in knobs(link)}
