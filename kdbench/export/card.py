"""The model card beside an exported model: Markdown with YAML front matter, in the manner of Hugging Face.

No paths, host names or user names. The licence is left to whoever publishes the model.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import PurePath
from typing import Any

# Ids on the Hugging Face hub.
HUB = {"mnist": "ylecun/mnist", "fashion_mnist": "zalando-datasets/fashion_mnist", "cifar10": "uoft-cs/cifar10"} | {
    "cifar100": "uoft-cs/cifar100"
}
PERCENT = ("top1", "top5")
CLASSES_SHOWN = 20


@dataclass(frozen=True)
class Network:
    """A network by name, as a suite declares it; `role` is what it was in its pair."""

    role: str
    model: str
    options: Mapping[str, Any]
    input_size: int | None = None  # to which it resizes images before all else

    def __str__(self) -> str:
        given = {**self.options, **({"input_size": self.input_size} if self.input_size else {})}
        options = ", ".join(f"{name}={value!r}" for name, value in given.items())
        return f"{self.model}({options})" if options else self.model


@dataclass(frozen=True)
class Preprocessing:
    """From pixels to what the network takes: (pixels / 255 - mean) / std, per channel."""

    size: int  # H = W
    channels: int
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    class_names: tuple[str, ...] = ()  # in the order of the logits, where they are known
    resize: int | None = None  # of image files: the shorter side, before the middle is cut out
    interpolation: str | None = None  # bilinear or bicubic, antialiased


@dataclass(frozen=True)
class Card:
    """Everything that is told about an exported model; JSON of it is kept inside the file as well."""

    suite: str
    pair: str
    label: str  # of the method, or "teacher"
    seed: int
    key: str  # of the job, or of the teacher
    networks: tuple[Network, ...]  # several: they answer together, see `combine`
    changed: bool  # the deployed graph is not that network alone
    method: str  # with knobs, for readers; "" for a teacher
    recipe: Mapping[str, Any]  # {} where it was not trained here
    data: Mapping[str, Any]  # name, fraction, val, split_seed, fingerprint, split
    preprocessing: Preprocessing
    scores: Mapping[str, float]
    cost: Mapping[str, float]
    teacher: Mapping[str, Any] = field(default_factory=dict)  # model, key, sha256, scores; {} for a teacher
    provenance: Mapping[str, Any] = field(default_factory=dict)
    track: str = "default"
    comparable: bool = True
    combine: str = "sum"  # of several networks' logits; or "mean"
    prefixes: tuple[Mapping[str, Any], ...] = ()

    def metadata(self) -> dict[str, str]:
        """JSON by name, for the header of a file."""
        values = asdict(self)
        return {
            "kdbench.card": _json(values),
            "kdbench.architecture": _json(values["networks"]),
            "kdbench.preprocessing": _json(values["preprocessing"]),
        }


def described(content: Mapping[str, Any]) -> str:
    """A method's content in a job -> `mixup(alpha=0.2) over kd(temperature=4.0, ...)`."""
    knobs = ", ".join(f"{name}={value}" for name, value in content["knobs"].items())
    text = f"{content['name']}({knobs})" if knobs else str(content["name"])
    return f"{text} over {described(content['over'])}" if "over" in content else text


def shown(reference: str) -> str:
    """A model or data set's name; of a user's absolute path only its last part."""
    return f"./{PurePath(reference).name}" if PurePath(reference).is_absolute() else reference


def files_of(text: str, key: str) -> dict[str, float] | None:
    """Files (with the difference after the round trip) that a card lists; None: it is no card of the model `key`."""
    from huggingface_hub import ModelCard

    if not text.startswith("---"):
        return None
    try:
        about = ModelCard(text).data.get("kdbench")
    except Exception:  # of several kinds, where it is some other page
        return None
    if not isinstance(about, dict) or about.get("key") != key or not isinstance(about.get("files"), dict):
        return None
    return {str(name): float(value) for name, value in about["files"].items()}


def render(card: Card, files: Mapping[str, float], loading: Mapping[str, Iterable[str]]) -> str:
    """Markdown.

    Args:
        files: name -> largest difference of a logit after the round trip.
        loading: name of a file -> lines of Python that load it and answer `logits` for `pixels`.
    """
    return "\n".join([*_front(card, files), *_intro(card), *_scores(card), *_use(card, files, loading), *_made(card)])


def _front(card: Card, files: Mapping[str, float]) -> list[str]:
    from huggingface_hub import EvalResult, ModelCardData

    name = str(card.data["name"])
    scored = (
        []
        if "test/top1" not in card.scores
        else [
            EvalResult(
                task_type="image-classification",
                dataset_type=HUB.get(name, name),
                dataset_name=name,
                dataset_split="test",
                metric_type="accuracy",
                metric_value=round(card.scores["test/top1"] / 100, 4),
            )
        ]
    )
    about = ModelCardData(
        model_name=_title(card),
        eval_results=scored or None,
        pipeline_tag="image-classification",
        tags=["image-classification", "knowledge-distillation", "kdbench"],
        datasets=[HUB[name]] if name in HUB else None,
        metrics=["accuracy"],
        kdbench={"key": card.key, "files": dict(files)},
    )
    return ["---", "# license: to be filled in by whoever publishes this model", about.to_yaml(), "---", ""]


def _title(card: Card) -> str:
    networks = " + ".join(network.model for network in card.networks)
    return f"{networks}, {card.label} on {card.data['name']}"


def _intro(card: Card) -> list[str]:
    shape = card.preprocessing
    what = " + ".join(f"`{network}`" for network in card.networks)
    images = f"{shape.channels}x{shape.size}x{shape.size} images of {shape.classes} classes ({card.data['name']})"
    lines = [f"# {_title(card)}", ""]
    if card.label == "teacher" and not card.method:
        lines += [f"{what} for {images}: the teacher of pair `{card.pair}` in the kdbench suite `{card.suite}`."]
    else:
        lines += [
            f"{what} for {images}: what `{card.method}` deploys after training pair `{card.pair}` of the kdbench suite "
            f"`{card.suite}` with seed {card.seed}."
        ]
    if len(card.networks) > 1:
        lines += ["", f"The answer is the {card.combine} of the networks' logits."]
    if card.changed:
        lines += ["", "The deployed graph is not the bare network: the method adds to it or puts several together."]
    if not card.comparable:
        lines += ["", "Trained with fewer epochs than the suite asks for (`--epochs`): not comparable with its board."]
    return [*lines, ""]


def _scores(card: Card) -> list[str]:
    teacher = card.teacher.get("scores", {})
    origin = "Of the last epoch, which no test score chose" if card.recipe else "Of weights that were not trained here"
    lines = ["## Scores", "", f"{origin}; the test split was read once.", ""]
    lines += ["| score | this model |" + (" teacher |" if teacher else "")]
    lines += ["|---|---:|" + ("---:|" if teacher else "")]
    for name in sorted(card.scores, key=lambda name: (not name.startswith("test/"), name)):
        row = f"| {name} | {_score(name, card.scores[name])} |"
        lines.append(row + (f" {_score(name, teacher[name]) if name in teacher else ''} |" if teacher else ""))
    lines += ["", "## Cost", "", "| | |", "|---|---:|"]
    lines += [f"| {name.replace('_', ' ')} | {_number(value)} |" for name, value in card.cost.items()]
    if device := card.provenance.get("device_name"):
        lines += ["", f"Measured on {device}, {card.provenance['precision']}."]
    if card.prefixes:
        lines += ["", "| first networks | test/top1 | parameters | MACs |", "|---|---:|---:|---:|"]
        for number, prefix in enumerate(card.prefixes, 1):
            top1 = prefix["scores"].get("test/top1", float("nan"))
            lines += [
                f"| {number} (`{prefix['role']}` added) | {top1:.2f} | {prefix['parameters']:,} | {prefix['macs']:,} |"
            ]
    return [*lines, ""]


def _use(card: Card, files: Mapping[str, float], loading: Mapping[str, Iterable[str]]) -> list[str]:
    shape = card.preprocessing
    lines = ["## Use", ""]
    lines += [
        f"`pixels` are uint8, (batch, {shape.channels}, {shape.size}, {shape.size}), as stored in the data set. "
        f"Per channel: (pixels / 255 - mean) / std with mean {list(shape.mean)} and std {list(shape.std)}; graphs "
        f"(.pt2, .onnx) do that inside."
    ]
    if shape.resize is not None:
        lines += [
            "",
            f"From an image file: as RGB, its shorter side resized to {shape.resize} ({shape.interpolation}, "
            f"antialiased), the middle {shape.size}x{shape.size} cut out.",
        ]
    if shape.class_names:
        lines += ["", f"Classes, in the order of the logits: {_named(shape.class_names)}."]
    for name, difference in files.items():
        lines += ["", f"`{name}`:", "", "```python", *loading[name], "```", ""]
        lines += [f"Read back when it was written: logits equal to those of the trained model within {difference:.1e}."]
    return [*lines, ""]


def _named(names: tuple[str, ...]) -> str:
    more = f" and {len(names) - CLASSES_SHOWN} more (all are in the file's metadata)"
    return ", ".join(f"`{name}`" for name in names[:CLASSES_SHOWN]) + (more if len(names) > CLASSES_SHOWN else "")


def _made(card: Card) -> list[str]:
    lines = ["## How it was made", "", "| | |", "|---|---|"]
    lines += [f"| suite, pair | {card.suite}, {card.pair} |"]
    if card.method:
        lines += [f"| method | `{card.label}`: {card.method} |", f"| track | {card.track} |"]
    lines += [f"| seed | {card.seed} |", f"| key | {card.key} |"]
    lines += [f"| {network.role} | {network} |" for network in card.networks]
    if card.teacher:
        about = card.teacher
        lines += [f"| teacher | {about['model']}, key {about['key']}, sha256 {about['sha256']} |"]
    lines += [f"| data | {', '.join(f'{name} {value}' for name, value in card.data.items() if value is not None)} |"]
    lines += [f"| recipe | `{_json(card.recipe)}` |"] if card.recipe else []
    if versions := card.provenance.get("versions"):
        commit = f" (commit {card.provenance['git']})" if card.provenance.get("git") else ""
        named = [f"{name} {value}{commit if name == 'kdbench' else ''}" for name, value in versions.items()]
        lines += [f"| versions | {', '.join(named)} |"]
    return [*lines, "", "## Licence", "", "To be filled in by whoever publishes this model.", ""]


def _score(name: str, value: float) -> str:
    return f"{value:.2f}%" if name.rpartition("/")[2] in PERCENT else f"{value:.4f}"


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,.3g}" if value < 1000 else f"{value:,.0f}"


def _json(value: Any) -> str:
    return json.dumps(value, default=str, sort_keys=False)
