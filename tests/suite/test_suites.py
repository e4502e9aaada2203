"""The suites that come with kdbench: they load, say what the field's tables say, and every cell of them trains."""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from data_layouts import make_cifar, make_folder

from kdbench import models
from kdbench.batch import Batch, Out
from kdbench.method import Prepared
from kdbench.models.taps import Tapped, profile, resolve
from kdbench.run.runner import run
from kdbench.run.store import Store
from kdbench.suite.job import Job, expand
from kdbench.suite.load import Suite, load
from kdbench.targets import Targets
from kdbench.tasks.classification import Classification
from kdbench.train.workbench import Workbench

FOLDER = Path(__file__).parents[2] / "suites"
SUITES = sorted(path.name for path in FOLDER.glob("*.yaml"))
CIFAR = ("cifar10.yaml", "cifar100.yaml")
PAIRS = (
    *("resnet56-resnet20", "resnet110-resnet32", "resnet110-resnet20", "resnet32x4-resnet8x4"),
    *("wrn_40_2-wrn_16_2", "wrn_40_2-wrn_40_1", "vgg13-vgg8"),
    *("resnet32x4-ShuffleNetV2", "ResNet50-MobileNetV2", "vgg13-MobileNetV2"),
)
SIMKD = PAIRS[:4] + ("vgg13-vgg8",)
METHODS = ("none", "kd", "fitnet", "at", "sp", "rkd", "crd", "dkd", "dist", "simkd")
LATER = (
    *("cc", "vid", "pkt", "ab", "ft", "nst", "itrd", "ctkd", "mlkd", "ttm", "wttm", "kd+ls", "dkd+ls", "mlkd+ls"),
    *("wkd-logits", "wkd-features", "wkd"),
)
UNSEEN = ("ofd", "reviewkd", "cat_kd")  # without a number that we could read at its source


def suite(name: str) -> Suite:
    return load(FOLDER / name)


def test_the_suites_are_there() -> None:
    assert {"imagenet.yaml"} <= set(SUITES)
    assert {"cifar10.yaml", "cifar10-short.yaml", "cifar100.yaml", "digits.yaml", "mnist.yaml"} <= set(SUITES)


@pytest.mark.parametrize("name", SUITES)
def test_a_suite_loads_and_says_how_it_is_run(name: str) -> None:
    loaded = suite(name)
    assert loaded.file.name == Path(name).stem
    assert loaded.notes == ()
    schema, *head = (FOLDER / name).read_text().splitlines()
    assert schema == "# yaml-language-server: $schema=../docs/suite.schema.json"
    comments = [line for line in head[:6] if line.startswith("#")]
    assert any(line.startswith(f"#   kdbench run suites/{name}") for line in comments)
    reference = "kd" if loaded.task.kind == "categorical" else "imitate"
    assert {"none", reference} <= set(loaded.methods)  # the mandatory controls
    assert all(pair.teacher.gates(loaded.task.headline.name) for pair in loaded.file.pairs.values())
    jobs = expand(loaded)
    assert len({job.key for job in jobs}) == len(jobs) == len(loaded.cells) * len(loaded.file.seeds)
    assert f"{len(jobs)} jobs" in "".join(head[:6]) or name not in CIFAR


def test_cifar100_is_the_classic_table() -> None:
    loaded = suite("cifar100.yaml")
    assert tuple(loaded.file.pairs) == PAIRS
    assert tuple(loaded.methods) == METHODS + LATER + UNSEEN
    everywhere = METHODS[:-1] + LATER + UNSEEN[:-1]
    assert set(loaded.cells) == set(product(PAIRS, everywhere)) | set(product(SIMKD, ["simkd", "cat_kd"]))
    for name, pair in loaded.file.pairs.items():
        assert f"{pair.teacher.model}-{pair.student.model}" == name
    for job in expand(loaded, seeds=[0]):
        recipe = job.recipe
        mobile = job.roles["student"].model in ("MobileNetV2", "ShuffleNetV2")
        assert (recipe.epochs, recipe.batch_size, recipe.schedule.milestones) == (240, 64, (150, 180, 210))
        assert (recipe.optimizer.name, recipe.optimizer.momentum, recipe.optimizer.weight_decay) == ("sgd", 0.9, 5e-4)
        assert (recipe.optimizer.lr, recipe.schedule.gamma) == (0.01 if mobile else 0.05, 0.1)
        assert (recipe.augment.crop, recipe.augment.flip) == (4, True)


def test_cifar100_reports_each_number_with_its_protocol() -> None:
    pairs = suite("cifar100.yaml").file.pairs
    for name, pair in pairs.items():
        labels = {"teacher", *METHODS, *LATER}
        if name != "resnet32x4-resnet8x4":
            labels -= {"simkd", "wkd-logits", "wkd-features", "wkd"}
        assert set(pair.reported) == labels
        assert all(claim.protocol and claim.source for claim in pair.reported.values())
        mobile = pair.student.model in ("MobileNetV2", "ShuffleNetV2")
        assert pair.reported["kd"].protocol == f"last epoch, mean of {3 if mobile else 5} runs"
        assert pair.reported["dkd"].protocol.startswith("best test epoch")
        # A trained teacher has a gate a few points below what is reported of it (which is with 5,000 more images).
        assert 3.5 <= pair.reported["teacher"].top1 - pair.teacher.min_top1 <= 5.5
    # Rows and columns in their places: a model's number is the same wherever it stands, and some cells by name.
    for label, role in (("teacher", "teacher"), ("none", "student")):
        seen = {(getattr(pair, role).model, pair.reported[label].top1) for pair in pairs.values()}
        assert len(seen) == len({model for model, _ in seen})
    assert [pairs[name].reported["crd"].top1 for name in PAIRS] == [
        *(71.16, 73.48, 71.46, 75.51, 75.48, 74.14, 73.94, 75.65, 69.11, 69.73),
    ]
    assert [pairs["vgg13-MobileNetV2"].reported[label].top1 for label in ("teacher", *METHODS[:-1])] == [
        *(74.64, 64.60, 67.37, 64.14, 59.40, 66.30, 64.52, 69.73, 69.71, 68.50),
    ]
    assert pairs["resnet32x4-resnet8x4"].reported["simkd"].top1 == 78.08
    assert [pairs["ResNet50-MobileNetV2"].reported[label].top1 for label in LATER[:-3]] == [
        *(65.43, 67.57, 66.52, 67.20, 60.99, 64.96, 71.41, 68.67, 71.04, 69.24, 69.59, 69.02, 70.45, 71.19),
    ]


def test_cifar10_crosses_architectures() -> None:
    loaded = suite("cifar10.yaml")
    assert tuple(loaded.file.pairs) == ("resnet56-resnet20", "wrn_40_2-wrn_16_2", "wrn_40_2-vit")
    every = set(product(loaded.file.pairs, loaded.methods))
    assert every - set(loaded.cells) == {("wrn_40_2-wrn_16_2", "simkd"), ("wrn_40_2-vit", "simkd")}
    recipes = {job.pair: job.recipe for job in expand(loaded)}
    assert [recipe.optimizer.name for recipe in recipes.values()] == ["sgd", "sgd", "adamw"]
    assert {recipe.epochs for recipe in recipes.values()} == {60}


@pytest.mark.parametrize(("name", "teachers"), [("cifar10.yaml", 2), ("cifar100.yaml", 6)])
def test_a_teacher_is_one_checkpoint_for_all_its_pairs(name: str, teachers: int) -> None:
    """Also where a pair overrides the recipe of its students."""
    found: dict[str, set[str]] = {}
    for job in expand(suite(name)):
        if "teacher" in job.frozen:
            found.setdefault(job.roles["teacher"].model, set()).add(job.frozen["teacher"].key)
    assert {model: len(keys) for model, keys in found.items()} == dict.fromkeys(found, 1)
    assert len(found) == teachers


def cells_of(names: Sequence[str]) -> list[Any]:
    """All pairs; those of CIFAR-100 but for two kinds are slow."""
    quick = ("resnet56-resnet20", "vgg13-MobileNetV2")
    return [
        pytest.param(name, pair, marks=[pytest.mark.slow] if name == "cifar100.yaml" and pair not in quick else [])
        for name in names
        for pair in suite(name).file.pairs
    ]


@pytest.mark.parametrize(("name", "pair"), cells_of(CIFAR))
def test_every_method_suits_its_pair(name: str, pair: str) -> None:
    """Heads and one loss of each cell, on four random images: nothing is refused, and the student gets a gradient."""
    loaded = suite(name)
    classes, shape, examples = (10 if name == "cifar10.yaml" else 100), (3, 32, 32), 16
    torch.manual_seed(0)
    roles = loaded.file.pairs[pair].roles
    built = {role: models.build(m.model, m.options, classes=classes, channels=3, size=32) for role, m in roles.items()}
    built["teacher"].eval().requires_grad_(False)
    x, targets = torch.randn(4, *shape), Targets(torch.tensor([1, 3, 3, 7]), classes)
    rng = torch.Generator().manual_seed(0)
    batch = Batch(x, targets, torch.tensor([2, 0, 5, 9]), Classification(classes), epoch=30, epochs=60, rng=rng)
    outs = {role: Tapped(model, role, ("block*", "pooled"))(x) for role, model in built.items()}
    seen_again = {role: Tapped(model, role, ())(x.flip(3)).rows for role, model in built.items()}
    for label in (method for cell, method in loaded.cells if cell == pair):
        method = loaded.methods[label]
        needs = method.needs()
        teachers = {"teacher"} if method.plan(tuple(roles)).frozen else set()

        def profiled(role: str, names: tuple[str, ...]):
            return profile(built[role], role, names, classes=classes, examples=examples, input_shape=shape)

        def said(role: str, names: tuple[str, ...]) -> Out:
            kept = resolve(built[role], role, names)
            again = Out(role, seen_again[role], {})
            return Out(role, outs[role].rows, {tap: outs[role].taps[tap] for tap in kept}, (again,))

        made = method.heads(profiled("student", needs.learner), {t: profiled(t, needs.teacher) for t in teachers})
        heads = Prepared.of(made).model.train()
        terms = method.loss(said("student", needs.learner), {t: said(t, needs.teacher) for t in teachers}, batch, heads)
        total = torch.stack(list(terms.values())).sum()
        assert math.isfinite(total.item()), label
        gradients = torch.autograd.grad(
            total, list(built["student"].parameters()), retain_graph=True, allow_unused=True
        )
        assert any(g is not None and g.isfinite().all() and g.any() for g in gradients), label


def stand_in(name: str, folder: Path) -> tuple[list[Job], Workbench, Store]:
    """The suite for two epochs on a few random images in the official binary layout, without gates."""
    data = Path(name).stem
    make_cifar(folder, data, "bin")
    shutil.copy(FOLDER / name, folder / name)
    gates = "".join(f"  {pair}: {{teacher: {{min_top1: 0}}}}\n" for pair in suite(name).file.pairs)
    over = folder / "over.yaml"
    over.write_text(
        f"extends: {name}\nname: stand-in\ndata: {{val: {'20' if data == 'cifar10' else '100'}}}\npairs:\n{gates}"
    )
    jobs = expand(load(over), epochs=2, seeds=[0])
    bench = Workbench.load(jobs[0], folder, torch.device("cpu"), folder / "runs")
    return expand(load(over), bench.data.fingerprint, epochs=2, seeds=[0]), bench, Store(folder / "board", "stand-in")


@pytest.mark.slow
@pytest.mark.parametrize("name", CIFAR)
def test_two_epochs_on_stand_in_data(name: str, tmp_path: Path) -> None:
    """Each pair once and each method at least once: the diagonals of the table."""
    jobs, bench, store = stand_in(name, tmp_path)
    pairs, labels = list(dict.fromkeys(job.pair for job in jobs)), list(dict.fromkeys(job.label for job in jobs))
    steps = len(labels) if name == "cifar10.yaml" else 1
    wanted = {(pairs[(i + 1) % len(pairs)], labels[i % len(labels)]) for i in range(max(len(pairs), steps))}
    wanted.add((pairs[0], "simkd"))
    chosen = [job for job in jobs if (job.pair, job.label) in wanted]
    assert {job.pair for job in chosen} == set(pairs)
    assert {job.label for job in chosen} == set(labels)
    results = run(chosen, bench, store).results
    assert [(r.pair, r.method, r.status, r.reason) for r in results] == [
        (job.pair, job.label, "ok", "") for job in chosen
    ]
    assert all(len(r.curves["train/loss"]) == 2 and 0 <= r.scores["test/top1"] <= 100 for r in results)
    assert len({r.teacher.sha256 for r in results}) == len({job.roles["teacher"].model for job in chosen})


def test_imagenet_is_the_standard_recipe() -> None:
    loaded = suite("imagenet.yaml")
    pair = loaded.file.pairs["resnet34-resnet18"]
    assert (pair.teacher.model.partition(".")[0], pair.student.model) == ("resnet34", "resnet18")
    assert {"teacher", *loaded.methods} == set(pair.reported)
    assert all(claim.protocol and claim.source for claim in pair.reported.values())
    for job in expand(loaded, seeds=[0]):
        recipe = job.recipe
        assert (recipe.epochs, recipe.batch_size, recipe.schedule.milestones) == (100, 256, (30, 60, 90))
        assert (recipe.optimizer.lr, recipe.optimizer.momentum, recipe.optimizer.weight_decay) == (0.1, 0.9, 1e-4)
        assert recipe.augment.flip
        assert recipe.augment.random_resized_crop is not None
        assert job.content["data"]["options"] == {"size": 224}  # where it lies is no part of what it is


@pytest.mark.slow
def test_two_epochs_of_imagenet_on_a_generated_tree(tmp_path: Path) -> None:
    """Every method, on real JPEG and PNG files of ten classes at 64x64, with decoding processes; no file is fetched."""
    make_folder(tmp_path, "imagenet", tuple(f"n{i:02}" for i in range(10)), train=6, val=2, sides=(40, 90))
    over = tmp_path / "over.yaml"
    over.write_text(
        "extends: imagenet.yaml\nname: stand-in\n"
        "data: {val: 10, options: {size: 64, workers: 1}}\nrecipe: {batch_size: 10}\n"
        "pairs: {resnet34-resnet18: {teacher: {model: resnet34, pretrained: false, min_top1: 0}}}\n"
    )
    shutil.copy(FOLDER / "imagenet.yaml", tmp_path)
    jobs = expand(load(over), epochs=2, seeds=[0])
    bench = Workbench.load(jobs[0], tmp_path, torch.device("cpu"), tmp_path / "runs")
    assert (bench.data.classes, bench.data.size, len(bench.data.train.labels)) == (10, 64, 50)
    jobs = expand(load(over), bench.data.fingerprint, epochs=2, seeds=[0])
    results = run(jobs, bench, Store(tmp_path / "board", "stand-in")).results
    assert [(r.method, r.status, r.reason) for r in results] == [(job.label, "ok", "") for job in jobs]
    assert all(len(r.curves["train/loss"]) == 2 and 0 <= r.scores["test/top1"] <= 100 for r in results)
    assert len({r.teacher.sha256 for r in results}) == 1
    assert not any(str(tmp_path) in str(r.job) for r in results)
