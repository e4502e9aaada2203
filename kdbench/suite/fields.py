"""The suite file, field by field (pydantic, no torch). `suite.load` reads it; `kdbench schema` prints it.

Scalars are strict: "10" is not 10, and true is not 1. Everything is frozen. Lists become tuples.

A field that is added to `Data`, `Recipe`, `Model` or what they hold is `Annotated[..., Since(2)]`, with a default that
changes nothing: then it empties no board.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Optional

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    create_model,
    model_validator,
)

from kdbench.births import Outside, Since

Int = Annotated[int, Field(strict=True)]
Float = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Bool = Annotated[bool, Field(strict=True)]
Str = Annotated[str, Field(strict=True)]
Name = Annotated[str, Field(strict=True, pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+-]*$", max_length=80)]


class Spec(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def _ascending(values: tuple[float, float]) -> tuple[float, float]:
    if values[0] > values[1]:
        raise ValueError(f"from {values[0]:g} to {values[1]:g}: the smaller number comes first")
    return values


class Data(Spec):
    """Which examples, and how the training set is cut."""

    name: Str
    """Data set: digits, mnist, fashion_mnist, cifar10, cifar100, folder (a tree of image files), diabetes,
    digits_lower_half, or a Python file's function (`./mine.py:load`)."""
    fraction: Annotated[Float, Field(gt=0, le=1)] = 1.0
    """Share of the training split to use, stratified by class (few-shot subsets)."""
    val: Annotated[Int, Field(ge=1)] | None = None
    """Examples cut from the training set for validation; default: the data set's own (CIFAR and MNIST 5000)."""
    split_seed: Annotated[Int, Field(ge=0)] = 0
    """Seed of the train/validation cut and of `fraction`; the same for every seed of the suite."""
    options: dict[str, Any] = {}
    """Further arguments of the data set: `{path: imagenet, size: 224}` of `folder`, or those of a Python file's."""


Ascending = Annotated[tuple[Annotated[Float, Field(gt=0)], Annotated[Float, Field(gt=0)]], AfterValidator(_ascending)]


class ResizedCrop(Spec):
    """Windows of random size and shape, resampled to the images' size."""

    scale: Ascending = (0.08, 1.0)
    """Share of the image's area, from the smallest to the largest."""
    ratio: Ascending = (0.75, 4 / 3)
    """Width over height, from the smallest to the largest."""

    @model_validator(mode="after")
    def _share(self) -> ResizedCrop:
        if self.scale[1] > 1:
            raise ValueError(f"scale is a share of the image's area: at most 1, not {self.scale[1]:g}")
        return self


class RandAugment(Spec):
    """n random image operations of strength m (0 to 30)."""

    n: Annotated[Int, Field(ge=1, le=16)] = 2
    m: Annotated[Int, Field(ge=0, le=30)] = 9


class CutMix(Spec):
    """A window of each image comes from another; labels are mixed by its area."""

    alpha: Annotated[Float, Field(gt=0, le=16)] = 1.0
    """Of Beta(alpha, alpha), from which the window's area is drawn."""
    probability: Annotated[Float, Field(gt=0, le=1)] = 1.0
    """Share of the examples that are mixed."""


class Augment(Spec):
    """Training augmentation, as batched tensor code on the device."""

    crop: Annotated[Int, Field(ge=0, le=64)] = 0
    """Random crop after zero padding by this many pixels (CIFAR: 4)."""
    flip: Bool = False
    """Random horizontal flip with probability 1/2."""
    random_resized_crop: Annotated[ResizedCrop | None, Since(2)] = None
    """ImageNet's crop: `{}` takes the usual 8 to 100% of the area and ratios of 3/4 to 4/3."""
    rand_augment: Annotated[RandAugment | None, Since(2)] = None
    """RandAugment: `{n: 2, m: 9}`."""
    cutmix: Annotated[CutMix | None, Since(2)] = None
    """CutMix, for every method and for teachers trained here; methods that need hard labels are refused."""

    @model_validator(mode="after")
    def _one_crop(self) -> Augment:
        if self.crop and self.random_resized_crop is not None:
            raise ValueError("choose one of `crop` and `random_resized_crop`")
        return self


SECOND_ORDER = ("adahessian",)  # of timm's optimisers; `kdbench.train.recipe` takes a step with each other one


class Optimizer(Spec):
    """sgd and adamw are torch's; every other name is timm's (`timm.optim.list_optimizers()`)."""

    name: Str = "sgd"
    lr: Annotated[Float, Field(gt=0)] = 0.05
    momentum: Annotated[Float, Field(ge=0, lt=1)] = 0.9
    """Momentum of sgd (and of timm's optimisers that take it); ignored by adamw."""
    nesterov: Bool = False
    weight_decay: Annotated[Float, Field(ge=0)] = 5e-4
    decay: Literal["all", "matrices"] = "all"
    """"matrices" exempts biases and norms (tensors of fewer than two dimensions) from weight decay."""
    options: dict[str, Any] = {}
    """Further arguments of the optimiser: `{betas: [0.9, 0.98]}`."""

    @model_validator(mode="after")
    def _works(self) -> Optimizer:
        if self.name.lower().removeprefix("lookahead_") in SECOND_ORDER:
            raise ValueError(f"'{self.name}' needs second derivatives, which this loop does not make: choose another")
        if self.name == "sgd" and self.nesterov and not self.momentum:
            raise ValueError("nesterov needs momentum: give more than 0, or remove `nesterov`")
        betas = self.options.get("betas", (0.9, 0.999))
        numbers = list(betas) if isinstance(betas, list | tuple) else []
        if len(numbers) < 2 or not all(type(beta) in (int, float) and 0 <= beta < 1 for beta in numbers):
            raise ValueError("betas are a list of numbers from 0 to below 1, for example [0.9, 0.999]")
        return self


class Schedule(Spec):
    """Learning rate over a stage, as a factor of `optimizer.lr`."""

    name: Literal["cosine", "multistep", "constant"] = "cosine"
    warmup_epochs: Annotated[Float, Field(ge=0)] = 0.0
    """Linear warm-up from 0."""
    warmup_steps: Annotated[Annotated[Int, Field(ge=0)], Since(2)] = 0
    """The same, of a recipe that counts `steps`."""
    milestones: tuple[Annotated[Int, Field(ge=1)], ...] = ()
    """Epochs (or steps, of a recipe that counts those) at which multistep multiplies the rate by `gamma`."""
    gamma: Annotated[Float, Field(gt=0, le=1)] = 0.1
    min_factor: Annotated[Float, Field(ge=0, le=1)] = 0.0
    """Where cosine ends, as a factor of the initial rate."""

    @property
    def warmup(self) -> float:
        """In the recipe's unit of time."""
        return self.warmup_epochs or self.warmup_steps

    @model_validator(mode="after")
    def _milestones(self) -> Schedule:
        if self.name == "multistep" and not self.milestones:
            raise ValueError("multistep needs milestones, for example [150, 180, 210]")
        if self.name != "multistep" and self.milestones:
            raise ValueError(f"milestones belong to multistep; this schedule is {self.name}")
        if list(self.milestones) != sorted(set(self.milestones)):
            raise ValueError("milestones must increase")
        return self


class Recipe(Spec):
    """How every method of a suite is trained."""

    epochs: Annotated[Int, Field(ge=1)] | None = None
    """How long a stage of share 1 is; or give `steps`."""
    steps: Annotated[Annotated[Int, Field(ge=1)] | None, Since(2)] = None
    """Optimiser steps instead of epochs, where an epoch is long or sets of different sizes are compared."""
    batch_size: Annotated[Int, Field(ge=2)] = 128
    """The last, smaller batch of an epoch is dropped, as is usual; sets smaller than a batch are one batch."""
    accumulate: Annotated[Annotated[Int, Field(ge=1)], Since(2)] = 1
    """Batches of one optimiser step, whose gradients are averaged: for machines that cannot hold a larger batch."""
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    augment: Augment = Augment()
    clip_norm: Annotated[Float, Field(gt=0)] | None = None
    """Clip each learner's gradient to this norm."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: fp32 on CPU, bf16 autocast on CUDA; what was used is recorded."""
    compile: Annotated[Bool, Outside("changes no weight")] = False
    """torch.compile every model (not part of a job's identity)."""
    validate_every: Annotated[Int, Field(ge=1), Outside("changes no weight")] = 1
    """Epochs between validations of the learners; with `steps`, steps (1: an epoch). The end is validated too."""
    checkpoint_every: Annotated[Annotated[Int, Field(ge=1)] | None, Outside("changes no weight")] = None
    """Steps between checkpoints, where an epoch is long. Default: after an epoch, at most every five seconds."""
    teacher_logits: Annotated[Literal["live", "stored"], Since(2)] = "live"
    """stored: roles that teach without learning say once what they say of each training image, where that is exact:
    without augmentation, for methods that see logits only and leave batches as they are. Other methods run live."""

    @property
    def unit(self) -> Literal["epoch", "step"]:
        """In which time is counted: by the schedule too."""
        return "epoch" if self.steps is None else "step"

    @property
    def length(self) -> int:
        """Epochs, or steps where the recipe counts those."""
        return self.steps or self.epochs or 0

    @model_validator(mode="after")
    def _within(self) -> Recipe:
        if self.epochs is None and self.steps is None:
            raise ValueError("needs `epochs`, or `steps`")
        if self.epochs is not None and self.steps is not None:
            raise ValueError("choose one of `epochs` and `steps`")
        schedule, unit = self.schedule, self.unit
        wrong = "warmup_epochs" if unit == "step" and schedule.warmup_epochs else ""
        wrong = "warmup_steps" if unit == "epoch" and schedule.warmup_steps else wrong
        if wrong:
            raise ValueError(f"schedule.{wrong} does not go with `{unit}s`: give schedule.warmup_{unit}s")
        late = [m for m in schedule.milestones if m >= self.length]
        if late:
            raise ValueError(f"milestone {late[0]} is not before the last {unit} ({self.length})")
        if schedule.warmup >= self.length:
            raise ValueError(f"warm-up of {schedule.warmup:g} {unit}s leaves none of {self.length}")
        return self


def optional(model: type[BaseModel]) -> type[Spec]:
    """The same fields, all optional and without cross-checks: an override, merged by `patched`."""
    fields: dict[str, Any] = {}
    for name, info in model.model_fields.items():
        kind = info.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            kind = optional(kind)
        elif info.metadata:
            kind = Annotated[kind, *info.metadata]  # type: ignore[assignment]
        fields[name] = (Optional[kind], Field(None))  # noqa: UP045 (runtime value)
    return create_model(f"{model.__name__}Override", __base__=Spec, __doc__=model.__doc__, **fields)


RecipeOverride = optional(Recipe)


def patched(recipe: Recipe, override: BaseModel | None) -> Recipe:
    """`recipe` with the fields that `override` sets; a changed schedule or optimiser name starts from defaults."""
    if override is None:
        return recipe
    values, given = recipe.model_dump(), override.model_dump(exclude_unset=True)
    for one, other in (("epochs", "steps"), ("steps", "epochs")):  # who counts in one unit no longer does in the other
        if given.get(one) is not None and given.get(other) is None:
            values[other] = None
    for name, value in given.items():
        if isinstance(value, dict) and isinstance(values.get(name), dict):
            renamed = "name" in value and value["name"] != values[name].get("name")
            values[name] = value if renamed else {**values[name], **value}
        else:
            values[name] = value
    return Recipe.model_validate(values)


def _bool_or_map(value: Any) -> str:
    return "<map>" if isinstance(value, dict | BaseModel) else "<bool>"


Train = Annotated[
    Annotated[Bool, Tag("<bool>")] | Annotated[RecipeOverride, Tag("<map>")],  # type: ignore[valid-type]
    Discriminator(_bool_or_map),  # one error, of the form that was meant; `wording` drops the tags
]


FROZEN = Outside("of frozen roles, for which `job.freeze` adds what counts")


def _named(value: Any) -> Any:
    if isinstance(value, dict) and "answers" in value:
        return {"model": "answers", **value}
    return {"model": value} if isinstance(value, str) else value


def _from_alone(schema: dict[str, Any]) -> None:
    schema.pop("required")
    schema["anyOf"] = [{"required": ["model"]}, {"required": ["from"]}, {"required": ["answers"]}]


class Model(Spec):
    """A network, and where its weights come from if it teaches without being trained by the method."""

    model_config = ConfigDict(extra="forbid", frozen=True, json_schema_extra=_from_alone)

    model: Str
    """Name: kdbench's own (`kdbench show models`), any timm model, or a Python file's function (`./net.py:build`)."""
    options: dict[str, Any] = {}
    """Keyword arguments of the model."""
    input_size: Annotated[Annotated[Int, Field(ge=1)] | None, Since(2)] = None
    """Side of the images that this model works on: it resizes those that every role sees. Default: as they are."""
    train: Annotated[Train, FROZEN] = True
    """true: trained here with the pair's recipe; or a map that overrides fields of it."""
    weights: Annotated[Str | None, FROZEN] = None
    """Read the weights from this file (.pt or .safetensors; relative to the suite file)."""
    pretrained: Annotated[Bool, FROZEN] = False
    """Take timm's pretrained weights."""
    seed: Annotated[Int, Field(ge=0), FROZEN] = 0
    """Seed of a frozen role that is trained here: one checkpoint for all methods and seeds."""
    answers: Annotated[Str | None, FROZEN] = None
    """A file of what it says of each training example (.npz, .safetensors) in the place of a network: an API's."""
    init: Annotated[Str | None, Field(alias="from"), Outside("a name: the weights of that role count")] = None
    """Start from the trained weights of this role of the pair, which must teach without learning; its network too."""
    layers: Annotated[tuple[Annotated[Int, Field(ge=0)], ...] | None, Since(2)] = None
    """Of the role that it starts from, keep these blocks, counted from 0: `{from: teacher, layers: [0, 2, 4]}`."""
    gate: Annotated[Float | dict[Str, Float] | None, Outside("stops a job, changes none")] = None
    """What a frozen role must reach on validation, or the pair is stopped with a sentence: a number for the task's
    headline (top-1 in percent), or by metric, `{top1: 90, nll: 0.5}`. Errors must not be above it."""
    min_top1: Annotated[Annotated[Float, Field(ge=0, le=100)] | None, Outside("stops a job, changes none")] = None
    """The old name of `gate: {top1: ...}`."""

    @model_validator(mode="after")
    def _one_source(self) -> Model:
        if self.weights is not None and self.pretrained:
            raise ValueError("choose one source of weights: `weights` or `pretrained`")
        if (self.weights is not None or self.pretrained) and isinstance(self.train, BaseModel):
            raise ValueError("`train` overrides have no effect beside `weights` or `pretrained`: remove one")
        if self.init is not None and (self.weights is not None or self.pretrained or self.train is not True):
            raise ValueError("weights come `from` another role: remove `weights`, `pretrained` and `train`")
        other = self.weights is not None or self.pretrained or self.init is not None or self.train is not True
        if self.answers is not None and (self.model != "answers" or self.options or other or self.input_size):
            raise ValueError("a file of `answers` is no network: remove everything else of this role")
        for name in ("gate", "min_top1"):
            if self.answers is not None and getattr(self, name) is not None:
                raise ValueError(f"`answers` are of training examples alone: there is no validation for `{name}`")
        if self.layers is not None and self.init is None:
            raise ValueError("`layers` are those of the role that it starts from: give `from`")
        if self.layers is not None and (not self.layers or list(self.layers) != sorted(set(self.layers))):
            raise ValueError("layers must increase, for example [0, 2, 4]")
        if self.gate is not None and self.min_top1 is not None:
            raise ValueError("`min_top1` is the old name of `gate`: remove it")
        return self

    @property
    def gate_field(self) -> str:
        """The name that the suite gives its gate."""
        return "gate" if self.min_top1 is None else "min_top1"

    def gates(self, headline: str) -> dict[str, float]:
        """Metric -> what it must reach on validation; a bare number is of the task's headline."""
        if self.min_top1 is not None:
            return {"top1": self.min_top1}
        return {} if self.gate is None else dict(self.gate) if isinstance(self.gate, dict) else {headline: self.gate}


Role = Annotated[Model, BeforeValidator(_named, json_schema_input_type=Str | Model)]


def _number(value: Any) -> Any:
    return {"top1": value} if isinstance(value, int | float) and not isinstance(value, bool) else value


class Reported(Spec):
    """A number that a paper reports, with its protocol."""

    top1: Float | None = None
    """Percent; may be left out beside `prefixes`, where the paper says nothing of the whole answer."""
    protocol: Str | None = None
    """How it was chosen: "last epoch", "best test epoch", "mean of 5"."""
    source: Str | None = None
    macs_percent: Annotated[Float, Field(gt=0)] | None = None
    """MACs of what was measured, in percent of the teacher's."""
    prefixes: dict[Annotated[int, Field(ge=1)], Annotated[Float, Field(ge=0, le=100)]] = {}
    """Of a method that answers with several roles: percent by the number of roles, `{1: 72, 2: 93}`."""

    @model_validator(mode="after")
    def _something(self) -> Reported:
        if self.top1 is None and not self.prefixes:
            raise ValueError("needs `top1`")
        return self


Claim = Annotated[Reported, BeforeValidator(_number, json_schema_input_type=Float | Reported)]


class Rung(Spec):
    """One student of a ladder: what differs from the pair's `student`, `{depth: 1, dim: 16}`."""

    model_config = ConfigDict(extra="allow", frozen=True)

    model: Str | None = None
    """Another model than the student's; the other keys are then all of its options."""

    def role(self, student: Model) -> Model:
        """The rung as a role: its options over the student's, where the model is the same."""
        options, name = dict(self.model_extra or {}), self.model or student.model
        if name == student.model:
            options = {**student.options, **options}
        return Model(model=name, options=options, input_size=student.input_size)


class Pair(Spec):
    """Roles and their models; any further key is a role that a method asks for (`ta`, `peer`, `weak1`)."""

    model_config = ConfigDict(extra="allow", frozen=True)
    __pydantic_extra__: dict[str, Role]

    teacher: Role
    student: Role
    recipe: RecipeOverride | None = None  # type: ignore[valid-type]
    """Overrides of the suite's recipe for this pair, the same for all its methods."""
    reported: dict[Name, Claim] = {}
    """Numbers from papers: `{teacher: 72.34, none: 69.06, kd: 70.66}` by method label, or `teacher`."""
    ladder: Annotated[tuple[Rung, ...], Field(min_length=1)] = ()
    """Students of growing size, the roles `weak1`, `weak2`, ...: `[{depth: 1, dim: 16}, {depth: 2, dim: 16}]`."""
    note: Str = ""
    """A sentence for the board: "claims reproduced, architecture ours"."""

    @model_validator(mode="before")
    @classmethod
    def _derived(cls, given: Any) -> Any:
        """A role that starts from another has its network."""
        if not isinstance(given, dict):
            return given
        made = dict(given)
        for role, spec in given.items():
            if not isinstance(spec, dict) or not isinstance(spec.get("from"), str):
                continue
            source = _named(given.get(spec["from"]))
            own = [name for name in ("model", "options", "input_size") if name in spec]
            if own:
                raise ValueError(f"{role} has the network of the role that it starts from: remove `{own[0]}`")
            if not isinstance(source, dict) or spec["from"] in ("recipe", "reported", "ladder", "note"):
                raise ValueError(f"{role} starts from '{spec['from']}', which is no role of this pair")
            if "answers" in source:
                raise ValueError(f"{role} starts from {spec['from']}, which is a file of answers and has no weights")
            if "from" in source:
                raise ValueError(f"{role} starts from {spec['from']}, which itself starts from a role: name that one")
            network = {name: source[name] for name in ("model", "options", "input_size") if name in source}
            made[role] = {**network, **spec}
        return made

    @property
    def roles(self) -> dict[str, Model]:
        rungs = {rung_role(index): rung.role(self.student) for index, rung in enumerate(self.ladder)}
        return {"teacher": self.teacher, "student": self.student, **rungs, **(self.__pydantic_extra__ or {})}


def rung_role(index: int) -> str:
    """The role of a rung of a ladder, counted from 0: weak1, weak2, ..."""
    return f"weak{index + 1}"


class Triple(Spec):
    """One cell of the suite, or with a glob several: `{pair: "*", method: kd}`."""

    pair: Str
    method: Str


class Tune(Spec):
    """How `kdbench tune` searches; parsed and checked with the suite."""

    trials: Annotated[Int, Field(ge=1)] = 16
    """Per (pair, method), the published defaults included as the first."""
    sampler: Literal["tpe", "gp", "random", "grid", "cmaes"] = "tpe"
    pruner: Literal["hyperband", "median", "none"] = "none"
    metric: Str | None = None
    """Default: the task's headline on validation, such as `val/top1`."""
    seeds: tuple[Annotated[Int, Field(ge=0)], ...] = (1000,)
    """Disjoint from the suite's seeds."""
    epochs: Annotated[Int, Field(ge=1)] | None = None
    budget: Literal["trials", "gpu_seconds"] = "trials"
    gpu_seconds: Annotated[Float, Field(gt=0)] | None = None
    constraints: dict[Str, Float] = {}
    """Upper bounds checked before training: `{macs: 40e6, parameters: 1e6, epochs: 60}`. Unless told, MACs of the
    deployed student and training epochs, summed over stages, are bounded by the plain student's, or by those of the
    suite's own configuration where it has more."""
    objectives: tuple[Str, ...] = ()
    """More than one gives a Pareto set: `[val/top1, macs]`."""
    space: dict[Str, Any] = {}
    """Narrow or add: `{temperature: {low: 1, high: 8}, recipe.optimizer.lr: {low: 1e-4, high: 1e-1, log: true}}`."""


class SuiteFile(Spec):
    """A suite file: data, recipe, pairs, methods, seeds. Every pair is trained with every method for every seed."""

    name: Name
    version: Annotated[Int, Field(ge=1)] = 1
    extends: Str | None = None
    """Another suite file (relative to this one) to start from: maps merge, lists replace."""
    description: Str = ""
    task: Str | None = None
    """classification, regression, a task of an installed package, or of a Python file (`./mine.py`). Default: what the
    data set's file declares."""
    data: Data
    recipe: Recipe
    pairs: Annotated[dict[Name, Pair], Field(min_length=1)]
    methods: Annotated[dict[Name, Any], Field(min_length=1)]
    """Label -> `{method: name, knob: value, over: {...}}`; a bare label is the method of that name, with defaults."""
    triples: tuple[Triple, ...] | None = None
    """Default: every pair with every method."""
    exclude: tuple[Triple, ...] = ()
    floor: Name = "none"
    """Label of the student without a teacher, over which gains are counted."""
    reference: Name = "kd"
    """Label of the method that claims compare with; it has a teacher."""
    seeds: Annotated[tuple[Annotated[Int, Field(ge=0)], ...], Field(min_length=1)] = (0, 1, 2)
    tune: Tune | None = None
