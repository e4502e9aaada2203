"""`kdbench export`: a finished job's deployed student (or a pair's teacher) as a file that works without kdbench.

The file is written elsewhere, read back, and its logits compared with those of the trained model on real images;
only then it takes its place, with a model card. Whatever goes wrong leaves the target folder as it was.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from kdbench import data
from kdbench.data import DataSet, default_root
from kdbench.data.files import Files
from kdbench.errors import UserError
from kdbench.export import card as cards
from kdbench.export import deployed, formats, snippets
from kdbench.export.card import Card, Network, Preprocessing
from kdbench.export.deployed import Deployed
from kdbench.files import write_atomically
from kdbench.result import Result
from kdbench.run.store import Store
from kdbench.suite.fields import Model
from kdbench.suite.job import LOCAL, Job
from kdbench.suite.load import Suite, load
from kdbench.train import evaluate
from kdbench.train.provenance import versions
from kdbench.train.workbench import Workbench, on_device

IMAGES = 64  # compared after the round trip
TOLERANCE = 1e-4  # of the largest logit, or of 1
POINTS = 1.0  # percentage points on validation: bf16 and other devices answer a little differently
SHARE = 0.01  # of a headline that is no percentage


@dataclass(frozen=True)
class Request:
    """What to export, and where to; None stands for the suite's first seed, its epochs and the default data folder."""

    suite: Path
    name: str  # pair/method, or pair/teacher
    to: Path
    seed: int | None = None
    epochs: int | None = None
    results: Path = Path("leaderboard")
    runs: Path = Path("runs")
    data_root: Path | None = None
    force: bool = False
    track: str = "default"  # or "tuned"

    def command(self, seed: int) -> str:
        """The command that trains the student asked for."""
        options = f" --epochs {self.epochs}" if self.epochs is not None else ""
        options += f" --track {self.track}" if self.track != "default" else ""
        options += f" --results {self.results}" if self.results != Path("leaderboard") else ""
        options += f" --runs {self.runs}" if self.runs != Path("runs") else ""
        return f"kdbench run {self.suite} --only {self.name} --seeds {seed}{options}"


@dataclass(frozen=True)
class Exported:
    """What was written."""

    path: Path
    card: Path
    difference: float  # of logits after the round trip
    images: int
    key: str


def export(request: Request, device: torch.device, warn: Callable[[str], None] = lambda sentence: None) -> Exported:
    """Write the file and its card.

    Raises:
        UserError: no such cell, result, weights, folder or format; a file that is there already; a model that the
            format cannot hold.
    """
    _free(request)
    formats.check(request.to.suffix)
    suite = load(request.suite)
    pair, label = deployed.cell_of(suite, request.name)
    loaded = data.load(suite.file.data, request.data_root or default_root(), suite.folder, suite.task_name)
    bench = Workbench(on_device(loaded, device), device, request.runs)
    found, card = (_teacher if deployed.is_teacher(suite, pair, label) else _student)(
        request, suite, pair, label, bench, warn
    )
    _confirm(found, card, bench, request)
    others = _listed(request, card)
    with tempfile.TemporaryDirectory() as folder:
        draft = Path(folder) / request.to.name
        difference, images = _round_trip(draft, found, card, bench)
        write_atomically(request.to, draft.read_bytes())
    names = {**others, request.to.name: difference}
    how = {name: snippets.lines(name, found, card, request.suite.name, request.seed) for name in names}
    target = _card_path(request.to)
    write_atomically(target, cards.render(card, names, how).encode())
    return Exported(request.to, target, difference, images, card.key)


# what is asked for ---------------------------------------------------------------------------------------------------
def _free(request: Request) -> None:
    """Raises UserError unless the target can be written."""
    if not request.to.parent.is_dir():
        raise UserError(f"--to {request.to}: there is no folder {request.to.parent}; make it first")
    if request.to.is_dir():
        raise UserError(f"--to {request.to}: is a folder; name a file in it, for example student.safetensors")
    if request.to.exists() and not request.force:
        raise UserError(f"--to {request.to}: is there already; choose another name, or replace it with --force")


def _listed(request: Request, card: Card) -> dict[str, float]:
    """The other files that the card beside the target lists: the same model in other formats.

    Raises:
        UserError: there is a file with the card's name that is not this model's card.
    """
    path = _card_path(request.to)
    if not path.exists():
        return {}
    listed = cards.files_of(path.read_text(encoding="utf-8", errors="replace"), card.key)
    if listed is None and not request.force:
        raise UserError(f"{path}: is there already, and is not the card of this model; move it, or give --force")
    return {name: value for name, value in (listed or {}).items() if (path.parent / name).is_file()}


def _card_path(target: Path) -> Path:
    return target.with_suffix(".md")


def _student(
    request: Request, suite: Suite, pair: str, label: str, bench: Workbench, warn: Callable[[str], None]
) -> tuple[Deployed, Card]:
    store = Store(request.results, suite.file.name, warn)

    def job_of(seed: int | None) -> Job:
        tuned = request.results if request.track == "tuned" else None
        fingerprint = bench.data.fingerprint
        return deployed.job_of(suite, pair, label, seed, fingerprint=fingerprint, epochs=request.epochs, tuned=tuned)

    job = job_of(request.seed)
    result = store.results.get(job.key)
    if result is None or result.status != "ok":
        tried = sorted({other.seed for other in store.results.values() if other.status == "ok"})
        has = {key for key, other in store.results.items() if other.status == "ok"}
        seeds = [seed for seed in tried if job_of(seed).key in has]
        raise UserError(_no_result(request, job, result, seeds, store.folder))
    path = bench.runs / "students" / f"{job.key}.safetensors"
    if not path.is_file():
        raise UserError(
            f"{path}: this file holds the student's weights and is not here (the result was made on another machine, "
            f"or with another --runs); bring it here, or train again with `--results`: "
            f"{request.command(job.seed).partition(' --results')[0]} --results my-results"
        )
    found = deployed.student(job, bench)
    return found, _student_card(job, result, found, bench.data)


def _no_result(request: Request, job: Job, result: Result | None, seeds: list[int], folder: Path) -> str:
    said = f"{request.name}: its result with seed {job.seed} is '{result.status}' ({result.reason})" if result else ""
    said = said or f"{request.name} has no result with seed {job.seed} in {folder} for the suite as it is now"
    if seeds:
        return f"{said}; there is one with seed {', '.join(map(str, seeds))}. To train it: {request.command(job.seed)}"
    return f"{said}, nor with any other seed. To train it: {request.command(job.seed)}"


def _teacher(
    request: Request, suite: Suite, pair: str, label: str, bench: Workbench, warn: Callable[[str], None]
) -> tuple[Deployed, Card]:
    job = deployed.job_of(suite, pair, label, fingerprint=bench.data.fingerprint, epochs=request.epochs)
    role = job.frozen[deployed.TEACHER]
    if request.seed not in (None, role.model.seed):
        raise UserError(f"{request.name}: a pair has one teacher, of seed {role.model.seed}; leave out --seed")
    path = bench.runs / "teachers" / role.key / "weights.safetensors"
    if not path.is_file():
        raise UserError(
            f"{path}: this file holds the teacher's weights and is not here (it was trained on another machine, or "
            f"with another --runs); bring its folder here, or train: kdbench run {request.suite} --only '{pair}/*'"
        )
    found, record = deployed.teacher(role, bench)
    made = Card(
        suite=job.suite,
        pair=pair,
        label=label,
        seed=role.model.seed,
        key=role.key,
        networks=_networks(found),
        changed=False,
        method="",
        recipe=role.content.get("train", {}),
        data=_data(job, bench.data),
        preprocessing=_preprocessing(bench.data),
        scores=record.scores,
        cost={"parameters": record.parameters or 0, "macs": record.macs or 0, "train_seconds": record.train_seconds},
        provenance={"versions": versions()},
    )
    return found, made


def _student_card(job: Job, result: Result, found: Deployed, loaded: DataSet) -> Card:
    cost = {name: value for name, value in asdict(result.cost).items() if value is not None} if result.cost else {}
    teacher = asdict(result.teacher) if result.teacher else {}
    return Card(
        suite=job.suite,
        pair=job.pair,
        label=job.label,
        seed=job.seed,
        key=job.key,
        networks=_networks(found),
        changed=not found.plain,
        combine=job.plan.combine,
        method=cards.described(job.content["method"]),
        recipe=job.content["recipe"],
        data=_data(job, loaded),
        preprocessing=_preprocessing(loaded),
        scores=result.scores,
        cost=cost,
        teacher={"model": str(_network(deployed.TEACHER, job.roles[deployed.TEACHER])), **teacher} if teacher else {},
        provenance=result.provenance,
        track=result.track,
        comparable=result.comparable,
        prefixes=tuple(asdict(prefix) for prefix in result.prefixes),
    )


def _networks(found: Deployed) -> tuple[Network, ...]:
    return tuple(_network(role, spec) for role, spec in found.specs.items())


def _network(role: str, spec: Model) -> Network:
    return Network(role, cards.shown(spec.model), dict(spec.options), spec.input_size)


def _data(job: Job, loaded: DataSet) -> dict[str, Any]:
    options = {name: value for name, value in job.data.options.items() if name not in LOCAL}
    cut: dict[str, Any] = {"fraction": job.data.fraction, "split_seed": job.data.split_seed}
    cut |= {} if "val" in options else {"val": job.data.val}
    found = {"fingerprint": loaded.fingerprint, "split": loaded.split}
    return {"name": cards.shown(loaded.name), **options, **cut, **found}


def _preprocessing(loaded: DataSet) -> Preprocessing:
    images = getattr(loaded.val, "images", None)
    geometry = images.pool.reader.geometry if isinstance(images, Files) else None
    return Preprocessing(
        size=loaded.size,
        channels=loaded.channels,
        classes=loaded.classes,
        mean=tuple(loaded.mean),
        std=tuple(loaded.std),
        class_names=loaded.class_names,
        resize=geometry.resize if geometry else None,
        interpolation=geometry.interpolation if geometry else None,
    )


# is it what it says? -------------------------------------------------------------------------------------------------
def _confirm(found: Deployed, card: Card, bench: Workbench, request: Request) -> None:
    """Raises UserError unless the weights reach the recorded headline on validation."""
    metric, task = bench.data.task.headline, bench.data.task
    answers = evaluate.split_answers(found.model, bench.data.val)
    reached = evaluate.scores([answers], bench.data.val, task)[metric.name]
    recorded = card.scores[f"val/{metric.name}"]
    allowed = POINTS if metric.unit == "%" else SHARE * abs(recorded)
    if abs(reached - recorded) > allowed or not answers.isfinite().all():
        words = "logits" if task.kind == "categorical" else "numbers"
        finite = bool(answers.isfinite().all())
        reach = f"reach {metric.shown(reached)} on validation" if finite else f"give {words} that are not finite"
        raise UserError(
            f"{request.name}: its weights ({card.key} below {request.runs}) {reach}, but the record says "
            f"{metric.shown(recorded)}: they are not the weights of this result; nothing was written"
        )


def _round_trip(draft: Path, found: Deployed, card: Card, bench: Workbench) -> tuple[float, int]:
    """Write the file, read it back as its user would, and compare; the largest difference of a logit.

    Raises:
        UserError: the format cannot hold the model, or answers something else.
    """
    loaded = bench.data
    if draft.suffix == ".safetensors":
        x = deployed.normalised(bench, IMAGES)
        formats.write_weights(draft, found.model, card.metadata())
        read = formats.read_weights(draft, snippets.empty(found, loaded.classes, loaded.channels, loaded.size))
        expected_BC, answer_BC = deployed.logits(found.model, x), deployed.logits(read.to(bench.device), x)
    else:
        pixels = deployed.pixels(bench, IMAGES)
        model = formats.FromPixels(found.model, loaded.mean, loaded.std).to(bench.device).eval()
        program = formats.graph(model, (loaded.channels, loaded.size, loaded.size))
        (formats.write_program if draft.suffix == ".pt2" else formats.write_onnx)(draft, program, card.metadata())
        run = (formats.read_program if draft.suffix == ".pt2" else formats.read_onnx)(draft)
        expected_BC = deployed.logits(formats.on_cpu(model), pixels.cpu())
        # One image and many: runtimes may take other paths for a batch of one.
        answer_BC = torch.cat([deployed.logits(run, part.cpu()) for part in (pixels[:1], pixels[1:]) if len(part)])
    difference = (expected_BC - answer_BC).abs().max().item()
    allowed = TOLERANCE * max(1.0, expected_BC.abs().max().item())
    if not difference <= allowed:
        raise UserError(
            f"{draft.name}: read back, its logits differ by {difference:.2g} (allowed: {allowed:.2g}) from those of "
            f"the trained model; nothing was written. {draft.suffix} cannot hold this model"
        )
    return difference, len(expected_BC)
