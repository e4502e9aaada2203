"""`kdbench export` as a user meets it: every kind of student in every format, read back; cards; mistakes."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from commands import kdbench
from data_layouts import make_folder
from huggingface_hub import ModelCard
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from kdbench import data, models
from kdbench.data import DataSet
from kdbench.data.batches import fetch
from kdbench.export import card, deployed, export, formats, snippets
from kdbench.export.card import Card, Network, Preprocessing
from kdbench.models import operators, weights
from kdbench.models.timm_models import create
from kdbench.suite.fields import Model
from kdbench.suite.load import load

SUITE = """
name: little
data: {name: digits, fraction: 0.2, val: 100}
recipe: {epochs: 3, batch_size: 32, optimizer: {lr: 0.05}}
pairs:
  cnn:
    teacher: &t {model: cnn, options: {widths: [8, 16, 16]}}
    student: {model: cnn, options: {widths: [4, 8, 8]}}
  resnet: {teacher: *t, student: resnet8}
  vit:
    teacher: *t
    student: {model: vit_tiny_patch16_224, options: {patch_size: 4, depth: 1, embed_dim: 24, num_heads: 2}}
  wrap: {teacher: *t, student: ./net.py:build}
  mamba:
    teacher: *t
    student: {model: mamba, options: {depth: 1, dim: 8, patch: 4, d_state: 4, bidirectional: true}}
methods:
  kd: {temperature: 2.0}
  simkd:
  both: {method: ./both.py}
  refused: {method: ./both.py, refuse: true}
triples:
  - {pair: "*", method: kd}
  - {pair: cnn, method: simkd}
  - {pair: cnn, method: both}
  - {pair: cnn, method: refused}
seeds: [3, 4]
"""

BOTH = '''
from dataclasses import dataclass
from kdbench.losses import supervised
from kdbench.method import Method, Plan, Refusal, Stage, knob


@dataclass(frozen=True)
class Both(Method):
    """Two students in two stages, one answer."""

    refuse: bool = knob(False, "whether to refuse")

    def plan(self, roles):
        stages = (Stage({"student": ("teacher",)}), Stage({"peer": ("student",)}))
        return Plan(stages, answer=("student", "peer"), copies={"peer": "student"})

    def batch(self, batch):
        if self.refuse:
            raise Refusal("it does not want to")
        return batch

    def loss(self, learner, teachers, batch, heads):
        return {"ce": supervised(learner, batch)}
'''
NET = '''
import torch
from torch import nn


class Net(nn.Module):
    """All of it below the name `module`; one buffer is a view of a large table."""

    def __init__(self, classes, pixels):
        super().__init__()
        self.module = nn.Sequential(nn.Flatten(), nn.Linear(pixels, 8), nn.ReLU(), nn.Linear(8, classes))
        self.register_buffer("shift", torch.linspace(0, 1, 100_000)[:classes])

    def forward(self, x):
        return self.module(x) + self.shift


def build(classes, channels, size):
    return Net(classes, channels * size * size)
'''
CELLS = ("cnn/kd", "resnet/kd", "wrap/kd", "vit/kd", "mamba/kd", "cnn/simkd", "cnn/both", "cnn/teacher")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the suite has been run for its first seed; tests only add files to it."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "s.yaml").write_text(SUITE)
    (folder / "both.py").write_text(BOTH)
    (folder / "net.py").write_text(NET)
    done = kdbench(folder, "run", "s.yaml", "--seeds", "3")
    assert done.returncode == 1, done.stderr  # one cell refuses
    assert len(list((folder / "runs" / "students").iterdir())) == 7
    return folder


def exported(folder: Path, cell: str, target: Path, *options: str) -> dict:
    done = kdbench(folder, "export", "s.yaml", cell, "--to", str(target), "--json", *options)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def needs(suffix: str) -> None:
    if suffix == ".onnx":
        for package in formats.ONNX:
            pytest.importorskip(package, reason="the extra `onnx` is not installed")


def file_of(folder: Path, cell: str, suffix: str) -> Path:
    """An export that tests share, because it takes seconds."""
    target = folder.with_name(f"{folder.name}-shared") / f"{cell.replace('/', '-')}{suffix}"
    target.parent.mkdir(exist_ok=True)
    if not target.exists():
        exported(folder, cell, target)
    return target


def reference(folder: Path, cell: str, batch: int = 100) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixels and logits of a student as training left it, found without kdbench.export."""
    from kdbench.train.workbench import Workbench

    suite = load(folder / "s.yaml")
    loaded = data.load(suite.file.data, folder)
    bench = Workbench(loaded, torch.device("cpu"), folder / "runs")
    job = deployed.job_of(suite, *deployed.cell_of(suite, cell), fingerprint=loaded.fingerprint)
    if cell.endswith("/teacher"):
        model = bench.teacher(job.frozen["teacher"]).model
    else:
        model = deployed.untrained(job, bench)
        model.load_state_dict(load_file(folder / "runs" / "students" / f"{job.key}.safetensors"))
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (loaded.mean, loaded.std))
    pixels = loaded.val.images[:batch]
    return pixels, deployed.logits(model.eval(), (pixels / 255 - mean) / std)


# round trips ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("cell", CELLS)
def test_weights_make_the_round_trip(trained: Path, tmp_path: Path, cell: str) -> None:
    said = exported(trained, cell, tmp_path / "m.safetensors")
    assert (said["difference"], said["images"]) == (0.0, 64)
    kept = load_file(tmp_path / "m.safetensors")
    empty = deployed.architecture(trained / "s.yaml", cell)
    assert list(empty.state_dict()) == list(kept) or set(empty.state_dict()) == set(kept)
    empty.load_state_dict(kept)
    pixels, logits = reference(trained, cell)
    assert logits.std() > 0.01
    again = formats.FromPixels(empty, *_statistics(trained))
    assert torch.allclose(deployed.logits(again, pixels), logits, atol=1e-4)
    with safe_open(tmp_path / "m.safetensors", "pt") as file:
        metadata = file.metadata()
    assert metadata["format"] == "pt"
    preprocessing = json.loads(metadata["kdbench.preprocessing"])
    assert (preprocessing["size"], preprocessing["channels"], preprocessing["classes"]) == (8, 1, 10)
    assert json.loads(metadata["kdbench.card"])["key"] == said["key"]


def _statistics(folder: Path) -> tuple[tuple[float, ...], tuple[float, ...]]:
    loaded = data.load(load(folder / "s.yaml").file.data, folder)
    return loaded.mean, loaded.std


SLOW = pytest.mark.slow  # an ONNX file takes seconds to write


@pytest.mark.parametrize(
    ("cell", "suffix"),
    [
        *((cell, ".pt2") for cell in CELLS[:-1]),
        ("mamba/kd", ".onnx"),
        *(pytest.param(cell, ".onnx", marks=SLOW) for cell in CELLS[:-1] if cell != "mamba/kd"),
    ],
)
def test_graphs_make_the_round_trip_for_any_batch_and_hold_no_paths(trained: Path, cell: str, suffix: str) -> None:
    needs(suffix)
    target = file_of(trained, cell, suffix)
    run = (formats.read_program if suffix == ".pt2" else formats.read_onnx)(target)
    pixels, logits = reference(trained, cell)
    assert pixels.dtype == torch.uint8
    for batch in (1, 2, 7, 100):
        assert torch.allclose(deployed.logits(run, pixels[:batch]), logits[:batch], atol=1e-4), batch
    content = target.read_bytes()
    if suffix == ".pt2":
        with zipfile.ZipFile(target) as archive:
            content = b"".join(archive.read(name) for name in archive.namelist())
    for path in (trained, target.parent, Path(models.__file__).parents[2], Path.home(), Path(torch.__file__).parent):
        assert str(path).encode() not in content
    assert b'"pair": "%b"' % cell.split("/")[0].encode() in content.replace(b"\\", b"")  # the card goes with the file


# leaks ---------------------------------------------------------------------------------------------------------------
def content(path: Path) -> bytes:
    """All bytes of a file, unpacked where it is an archive."""
    if not zipfile.is_zipfile(path):
        return path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        return b"".join(archive.read(name) for name in archive.namelist())


def images_in(content: bytes, loaded: DataSet) -> list[str]:
    """Which images of a data set lie in some bytes, as they are stored or as networks take them."""
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (loaded.mean, loaded.std))
    found = []
    for part in ("train", "val", "test"):
        pixels = getattr(loaded, part).images
        shown = torch.arange(len(pixels))
        normalised = fetch(getattr(loaded, part), shown)
        forms = {"uint8": pixels, "scaled": pixels / 255, "by hand": (pixels / 255 - mean) / std, "input": normalised}
        for form, images in forms.items():
            hits = [i for i, image in enumerate(images) if image.contiguous().numpy().tobytes() in content]
            found += [f"{part} {i} as {form}" for i in hits]
    return found


def test_the_search_finds_images(trained: Path, tmp_path: Path) -> None:
    loaded = data.load(load(trained / "s.yaml").file.data, trained)
    images = loaded.val.images
    torch.save({"two": images[5:7], "three": (images[8:11] / 255 - loaded.mean[0]) / loaded.std[0]}, tmp_path / "x.pt")
    found = images_in(content(tmp_path / "x.pt"), loaded)
    assert {"val 5 as uint8", "val 99 as uint8", "val 8 as by hand", "val 10 as by hand"} <= set(
        found
    )  # the whole split


@pytest.mark.parametrize("cell", ["cnn/kd", "wrap/kd", "cnn/both"])
@pytest.mark.parametrize("suffix", formats.SUFFIXES)
def test_an_export_holds_its_weights_and_no_image(trained: Path, cell: str, suffix: str) -> None:
    needs(suffix)
    path, loaded = file_of(trained, cell, suffix), data.load(load(trained / "s.yaml").file.data, trained)
    assert images_in(content(path), loaded) == []
    weights_ = load_file(file_of(trained, cell, ".safetensors"))
    size = sum(value.numel() * value.element_size() for value in weights_.values())
    assert size < 25_000
    card_ = 3 * len(path.with_suffix(".md").read_bytes())
    graph = {".safetensors": 150 * len(weights_), ".pt2": 250_000, ".onnx": 30_000}[suffix]
    assert path.stat().st_size < size + card_ + graph
    if suffix == ".pt2":
        with zipfile.ZipFile(path) as archive:
            sizes = {info.filename.partition("/")[2]: info.file_size for info in archive.infolist()}
        tensors = [size_ for name, size_ in sizes.items() if name.startswith(("data/weights/w", "data/constants/t"))]
        assert size <= sum(tensors) < size + 100
        assert sizes["data/sample_inputs/model.pt"] < 4000


def test_nothing_that_a_run_keeps_holds_an_image(trained: Path) -> None:
    loaded = data.load(load(trained / "s.yaml").file.data, trained)
    kept = [path for folder in ("runs", "leaderboard") for path in (trained / folder).rglob("*") if path.is_file()]
    assert {path.suffix for path in kept} >= {".safetensors", ".json"}
    assert len([path for path in kept if path.suffix == ".safetensors"]) == 8  # seven students, one teacher
    for path in kept:
        assert images_in(content(path), loaded) == [], path
        if path.suffix == ".safetensors":
            tensors = load_file(path)
            size = sum(value.numel() * value.element_size() for value in tensors.values())
            assert size <= path.stat().st_size < size + 150 * len(tensors)


BLOCKED = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "kdbench":
            raise ImportError("kdbench is not here")
sys.meta_path.insert(0, Blocked())
import numpy, torch
given = torch.load("given.pt")
for name, code in given["code"].items():
    space = {"pixels": given["pixels"].numpy() if name.endswith(".onnx") else given["pixels"]}
    with torch.inference_mode():
        exec(code, space)
    logits = torch.as_tensor(space["logits"])
    assert logits.shape == given["logits"][name].shape
    print(name, (logits - given["logits"][name]).abs().max().item())
assert not any(name.startswith("kdbench") for name in sys.modules)
"""


def test_what_the_cards_tell_works_where_kdbench_is_not(trained: Path) -> None:
    wanted = {"vit/kd": (".safetensors",), "mamba/kd": (".pt2", ".onnx") if onnx_is_there() else (".pt2",)}
    pixels, _ = reference(trained, "vit/kd", 5)
    given: dict = {"pixels": pixels, "code": {}, "logits": {}}
    for cell, suffixes in wanted.items():
        for suffix in suffixes:
            path = file_of(trained, cell, suffix)
            given["code"][path.name] = code_of(path.with_suffix(".md").read_text(), path.name)
            given["logits"][path.name] = reference(trained, cell, 5)[1]
    assert "timm.create_model(" in given["code"]["vit-kd.safetensors"]
    assert "kdbench" not in "".join(given["code"].values())
    torch.save(given, path.with_name("given.pt"))
    done = subprocess.run([sys.executable, "-c", BLOCKED], cwd=path.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    shown = dict(line.split() for line in done.stdout.splitlines())
    assert set(shown) == set(given["code"])
    assert all(float(difference) < 1e-4 for difference in shown.values()), shown


def onnx_is_there() -> bool:
    try:
        formats.check(".onnx")
    except formats.UserError:
        return False
    return True


def code_of(text: str, name: str) -> str:
    """The Python that a card shows for a file."""
    found = re.search(rf"^`{re.escape(name)}`:\n\n```python\n(.*?)```", text, re.MULTILINE | re.DOTALL)
    assert found is not None, text
    return found.group(1)


@pytest.mark.parametrize("cell", ["resnet/kd", "cnn/both", "wrap/kd"])
def test_what_the_cards_tell_works_with_kdbench(trained: Path, tmp_path: Path, cell: str, monkeypatch) -> None:
    exported(trained, cell, tmp_path / "m.safetensors")
    code = code_of((tmp_path / "m.md").read_text(), "m.safetensors")
    for name in ("s.yaml", "both.py", "net.py"):
        (tmp_path / name).write_text((trained / name).read_text())
    monkeypatch.chdir(tmp_path)
    pixels, logits = reference(trained, cell)
    space: dict = {"pixels": pixels}
    exec(code, space)
    assert torch.allclose(space["logits"], logits, atol=1e-4)


def test_an_exported_student_can_teach(trained: Path, tmp_path: Path) -> None:
    exported(trained, "resnet/kd", tmp_path / "m.safetensors")
    model = models.build("resnet8", {}, classes=10, channels=1, size=8)
    weights.load(model, tmp_path / "m.safetensors")
    pixels, logits = reference(trained, "resnet/kd")
    assert torch.allclose(
        deployed.logits(formats.FromPixels(model.eval(), *_statistics(trained)), pixels), logits, atol=1e-4
    )


def test_every_operator_of_kdbench_can_be_taken_apart() -> None:
    x, weight = torch.randn(3, 5, 8), torch.rand(8)
    (norm,) = (plain for op, plain in operators.table().items() if "rms_norm" in str(op))
    for one, other in zip(norm(x, weight, 1e-5), torch.ops.kdbench.rms_norm(x, weight, 1e-5), strict=True):
        assert torch.allclose(one, other, atol=1e-6)
    assert {str(op) for op in operators.table()} >= {"kdbench.rms_norm.default", "kdbench.selective_scan.default"}


def test_a_network_that_resizes_its_images_is_told_so(monkeypatch) -> None:
    options = {"patch_size": 4, "depth": 1, "embed_dim": 24, "num_heads": 2}
    spec = Model(model="vit_tiny_patch16_224", options=options, input_size=16)
    given = {"classes": 10, "channels": 1}
    model = models.build(spec.model, options, size=8, input_size=16, **given).eval()
    found = deployed.Deployed(model, lambda: model, {"student": spec}, plain=True)
    shape = Preprocessing(8, 1, 10, (0.3,), (0.2,))
    about = a_card(preprocessing=shape, networks=(Network("student", spec.model, options, 16),))
    lines = snippets.lines("m.safetensors", found, about, "s.yaml", None)
    again = snippets.empty(found, 10, 1, 8)
    again.load_state_dict(model.state_dict())
    pixels = torch.randint(0, 256, (3, 1, 8, 8), dtype=torch.uint8)
    x = (pixels / 255 - 0.3) / 0.2
    expected = deployed.logits(model, x)
    assert torch.equal(deployed.logits(again.eval(), x), expected)
    space: dict = {"pixels": pixels}
    monkeypatch.setattr("safetensors.torch.load_file", lambda path: model.state_dict())
    exec("\n".join(lines), space)
    assert torch.allclose(space["logits"], expected, atol=1e-5)


# students of image files ----------------------------------------------------------------------------------------------
FOLDER_SUITE = """
name: photos
data: {name: folder, val: 6, options: {path: tree, size: 16, resize: 20, interpolation: bicubic, workers: 0}}
recipe: {epochs: 3, batch_size: 12, optimizer: {lr: 0.05}}
pairs:
  p: {teacher: &t {model: cnn, options: {widths: [4, 8, 8]}}, student: *t}
  vit:
    teacher: *t
    student: {model: vit_tiny_patch16_224, options: {patch_size: 4, depth: 1, embed_dim: 24, num_heads: 2}}
methods: {none: }
seeds: [0]
"""


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    make_folder(folder, classes=("ant", "bee", "cow"))
    (folder / "s.yaml").write_text(FOLDER_SUITE)
    done = kdbench(folder, "run", "s.yaml", "--data-root", str(folder))
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize(
    ("cell", "suffix"),
    [("p/none", ".pt2"), ("p/none", ".safetensors"), ("p/none", ".onnx"), ("vit/none", ".safetensors")],
)
def test_a_card_tells_the_way_from_an_image_file_to_a_class(
    photos: Path, tmp_path: Path, cell: str, suffix: str, monkeypatch, capsys
) -> None:
    needs(suffix)
    target = tmp_path / f"m{suffix}"
    exported(photos, cell, target, "--data-root", str(photos))
    text = target.with_suffix(".md").read_text()
    assert "Classes, in the order of the logits: `ant`, `bee`, `cow`." in text
    assert "its shorter side resized to 20 (bicubic, antialiased), the middle 16x16 cut out" in text
    code = code_of(text, target.name)
    monkeypatch.chdir(tmp_path)
    loaded = data.load(load(photos / "s.yaml").file.data, photos)
    student = weights.read(next((photos / "runs" / "students").glob(f"{ModelCard(text).data['kdbench']['key']}*")))
    names = {tuple(loaded.test.images.name(i).split("/"))[1] for i in range(21)}
    assert names == {"ant", "bee", "cow"}
    for i in (0, 5, 9, 20):  # of many formats and modes
        shutil.copy(photos / "tree" / loaded.test.images.name(i), tmp_path / "photo.jpg")
        space: dict = {}
        exec(code, space)
        (expected,) = loaded.test.images.read([(torch.tensor([i]), None)])
        assert np.array_equal(np.asarray(space["pixels"]), expected.numpy())
        said = capsys.readouterr().out.strip()
        assert said == ("ant", "bee", "cow")[int(torch.as_tensor(space["logits"]).argmax())]
        model = models.build("cnn", {"widths": [4, 8, 8]}, classes=3, channels=3, size=16)
        if cell == "p/none":
            model.load_state_dict(student)
            logits = deployed.logits(formats.FromPixels(model.eval(), loaded.mean, loaded.std), expected)
            assert torch.allclose(torch.as_tensor(space["logits"]), logits, atol=1e-4)
    about = space["about"]
    assert about["class_names"] == ["ant", "bee", "cow"]
    assert (about["resize"], about["size"], about["interpolation"]) == (20, 16, "bicubic")
    assert (about["mean"], about["std"]) == (list(loaded.mean), list(loaded.std))


def test_an_export_holds_no_photograph(photos: Path, tmp_path: Path) -> None:
    exported(photos, "p/none", tmp_path / "m.pt2", "--data-root", str(photos))
    held = content(tmp_path / "m.pt2")
    loaded = data.load(load(photos / "s.yaml").file.data, photos)
    for split in (loaded.train, loaded.val, loaded.test):
        index = torch.arange(len(split.labels))
        (pixels,) = split.images.read([(index, None)])
        for image, x in zip(pixels, fetch(split, index), strict=True):
            assert image.numpy().tobytes() not in held
            assert x.contiguous().numpy().tobytes() not in held


# cards ---------------------------------------------------------------------------------------------------------------
def test_a_card_tells_what_the_record_knows(trained: Path, tmp_path: Path) -> None:
    said = exported(trained, "vit/kd", tmp_path / "m.safetensors", "--seed", "3")
    (path,) = (trained / "leaderboard" / "results" / "little").glob("vit.kd.s3.*.json")
    record = json.loads(path.read_text())
    text = (tmp_path / "m.md").read_text()
    front = yaml.safe_load(text.split("---\n")[1])
    assert front["kdbench"] == {"key": said["key"], "files": {"m.safetensors": 0.0}}
    assert front["model-index"][0]["results"][0]["metrics"][0]["value"] == round(record["scores"]["test/top1"] / 100, 4)
    assert "license" not in front  # the user's to fill in
    assert "To be filled in by whoever publishes this model." in text
    told = [
        *(
            "`little`",
            "`vit`",
            "kd(temperature=2.0",
            "seed 3",
            record["key"],
            record["teacher"]["sha256"],
            "embed_dim=24",
        ),
        f"| test/top1 | {record['scores']['test/top1']:.2f}% | {record['teacher']['scores']['test/top1']:.2f}% |",
        f"| parameters | {record['cost']['parameters']:,} |",
        f"| macs | {record['cost']['macs']:,} |",
        *("latency ms batch1", record["job"]["data"]["fingerprint"], '"batch_size": 32', record["provenance"]["git"]),
        f"torch {record['provenance']['versions']['torch']}",
        "img_size=8",
    ]
    for fact in told:
        assert fact in text, fact
    for place in (trained, tmp_path, Path.home(), Path(models.__file__).parent):
        assert str(place) not in text


def test_one_card_lists_all_formats_of_a_model(trained: Path, tmp_path: Path) -> None:
    exported(trained, "cnn/both", tmp_path / "m.pt2")
    exported(trained, "cnn/both", tmp_path / "m.safetensors")
    text = (tmp_path / "m.md").read_text()
    assert "torch.export.load" in code_of(text, "m.pt2")
    assert "kdbench.architecture(" in code_of(text, "m.safetensors")
    assert "The answer is the sum of the networks' logits." in text
    (tmp_path / "m.pt2").unlink()
    exported(trained, "cnn/both", tmp_path / "m.safetensors", "--force")
    assert "m.pt2" not in (tmp_path / "m.md").read_text()


def test_a_teachers_card_has_its_own_sha_and_no_method(trained: Path, tmp_path: Path) -> None:
    said = exported(trained, "vit/teacher", tmp_path / "t.safetensors")
    text = (tmp_path / "t.md").read_text()
    assert "the teacher of pair `vit`" in text
    assert "| method |" not in text
    assert (trained / "runs" / "teachers" / said["key"]).is_dir()


def a_card(**changes) -> Card:
    values = {
        "suite": "s",
        "pair": "p",
        "label": "kd",
        "seed": 0,
        "key": "0123456789ab",
        "networks": (Network("student", "cnn", {}),),
        "changed": False,
        "method": "kd(temperature=4.0)",
        "recipe": {"epochs": 1},
        "data": {"name": "cifar10"},
        "preprocessing": Preprocessing(32, 3, 10, (0.5,) * 3, (0.2,) * 3),
        "scores": {"test/top1": 50.0, "val/top1": 51.0, "test/nll": 1.25},
        "cost": {"parameters": 1234567, "latency_ms_batch1": 0.25},
    }
    return Card(**(values | changes))


def test_cards_are_rendered_from_values_alone() -> None:
    text = card.render(a_card(), {"m.pt2": 1e-7}, {"m.pt2": ["import torch"]})
    about = ModelCard(text).data
    assert about.datasets == ["uoft-cs/cifar10"]
    assert about.eval_results[0].metric_value == 0.5
    assert about.license is None
    assert "| test/top1 | 50.00% |" in text
    assert "| test/nll | 1.2500 |" in text
    assert "| parameters | 1,234,567 |" in text
    assert card.files_of(text, "0123456789ab") == {"m.pt2": 1e-7}
    assert card.files_of(text, "ba9876543210") is None
    for page in ("# my notes", "", "---\n- 1\n---\n", "---\na: [1\n---\n", "---\nkdbench: {key: 0123456789ab}\n---\n"):
        assert card.files_of(page, "0123456789ab") is None
    assert card.files_of(card.render(a_card(key="000000000012"), {"m.pt2": 0.0}, {"m.pt2": []}), "000000000012")
    unscored = ModelCard(card.render(a_card(scores={"val/top1": 1.0}), {}, {})).data
    assert unscored.eval_results is None
    content = {"name": "mixup", "knobs": {"alpha": 0.2}, "over": {"name": "none", "knobs": {}}}
    assert card.described(content) == "mixup(alpha=0.2) over none"
    assert card.shown("/home/me/secret/net.py:build") == "./net.py:build"
    assert card.shown("./nets/net.py:build") == "./nets/net.py:build"
    prefix = {"role": "weak1", "scores": {"test/top1": 40.0}, "parameters": 10, "macs": 20}
    text = card.render(a_card(prefixes=(prefix,), comparable=False, changed=True, combine="mean"), {}, {})
    assert "| 1 (`weak1` added) | 40.00 | 10 | 20 |" in text
    assert "not comparable" in text


def test_timms_arguments_are_those_that_made_the_model() -> None:
    with torch.device("meta"):
        _, sized = create("vit_tiny_patch16_224", {"patch_size": 4}, classes=10, channels=1, size=8)
        _, free = create("resnet18", {}, classes=10, channels=3, size=32)
    assert sized == {"num_classes": 10, "in_chans": 1, "patch_size": 4, "img_size": 8}
    assert free == {"num_classes": 10, "in_chans": 3}


# mistakes ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("cnn/kdd", "--to", "m.pt2"), "did you mean 'cnn/kd'"),
        (
            ("zzz/qqqqqqq", "--to", "m.pt2"),
            "its pairs are cnn, resnet, vit, wrap, mamba, its methods kd, simkd, both, refused, and teacher",
        ),
        (("vit/simkd", "--to", "m.pt2"), "has no PAIR/METHOD 'vit/simkd'"),
        (("cnn/kd", "--seed", "9", "--to", "m.pt2"), "there is one with seed 3. To train it: kdbench run s.yaml"),
        (("cnn/kd", "--seed", "4", "--to", "m.pt2"), "--only cnn/kd --seeds 4"),
        (("cnn/kd", "--results", "elsewhere", "--to", "m.pt2"), "nor with any other seed"),
        (("cnn/kd", "--epochs", "7", "--to", "m.pt2"), "--seeds 3 --epochs 7"),
        (("cnn/refused", "--to", "m.pt2"), "'skipped' (it does not want to)"),
        (("cnn/kd", "--runs", "elsewhere", "--to", "m.pt2"), "elsewhere/students/"),
        (("cnn/teacher", "--runs", "elsewhere", "--to", "m.pt2"), "weights.safetensors: this file holds the teacher's"),
        (("cnn/teacher", "--seed", "3", "--to", "m.pt2"), "leave out --seed"),
        (("cnn/kd", "--to", "m.pth"), "not to '.pth'"),
        (("cnn/kd", "--to", "model"), "a name without suffix"),
        (("cnn/kd", "--to", "no/such/m.pt2"), "there is no folder no/such"),
        (("cnn/kd", "--to", "runs"), "is a folder"),
        (("cnn/kd", "--to", "there.pt2"), "is there already; choose another name, or replace it with --force"),
        (("cnn/kd", "--to", "notes.pt2"), "notes.md: is there already, and is not the card of this model"),
        (("cnn/kd", "--track", "best", "--to", "m.pt2"), "'best' is not one of 'default', 'tuned'"),
        (("cnn/kd", "--track", "tuned", "--to", "m.pt2"), "cnn/kd has not been tuned as the suite is now"),
        (("cnn/kd", "--device", "cuda:99", "--to", "m.pt2"), "--device cuda:99"),
        (("cnn/kd",), "--to"),
    ],
)
def test_mistakes_are_sentences_with_exit_code_2(trained: Path, arguments: tuple[str, ...], sentence: str) -> None:
    (trained / "there.pt2").write_text("precious")
    (trained / "notes.md").write_text("mine")
    before = sorted(trained.rglob("*"))
    done = kdbench(trained, "export", "s.yaml", *arguments)
    assert done.returncode == 2, (done.stdout, done.stderr)
    assert sentence in " ".join(re.sub("[│╭╮╰╯─]", "", done.stderr).split()), done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(trained.rglob("*")) == before
    assert (trained / "there.pt2").read_text() == "precious"


def test_weights_that_are_not_the_results_are_refused(trained: Path, tmp_path: Path) -> None:
    (students := tmp_path / "runs" / "students").mkdir(parents=True)
    key = exported(trained, "cnn/kd", tmp_path / "ok.safetensors")["key"]
    state = load_file(trained / "runs" / "students" / f"{key}.safetensors")

    def said(changed: dict[str, torch.Tensor] | bytes) -> str:
        path = students / f"{key}.safetensors"
        path.write_bytes(changed) if isinstance(changed, bytes) else save_file(changed, path)
        done = kdbench(
            trained, "export", "s.yaml", "cnn/kd", "--runs", str(tmp_path / "runs"), "--to", str(tmp_path / "m.pt2")
        )
        assert done.returncode == 2
        assert not (tmp_path / "m.pt2").exists()
        return done.stderr

    (name,) = (k for k in state if k.endswith("bias") and len(state[k]) == 10)
    first, *others = sorted(state, key=lambda k: state[k].dim(), reverse=True)
    always = torch.eye(10)[0] * 1e3
    assert "on validation, but the record says" in said({**state, name: always})
    assert "logits that are not finite, but the record says" in said({**state, name: always / 0})
    assert f"missing: {first}" in said({k: state[k] for k in others})
    assert "damaged" in said(b"\x00" * 100)


def test_a_file_that_answers_otherwise_is_never_kept(trained: Path, tmp_path: Path, monkeypatch) -> None:
    real = formats.read_program
    monkeypatch.setattr(formats, "read_program", lambda path: lambda x: real(path)(x) + 1e-2)
    done = kdbench(trained, "export", "s.yaml", "cnn/kd", "--to", str(tmp_path / "m.pt2"))
    assert done.returncode == 2
    assert "read back, its logits differ by 0.01" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_without_the_extra_onnx_is_a_sentence(trained: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    done = kdbench(trained, "export", "s.yaml", "cnn/kd", "--to", str(tmp_path / "m.onnx"))
    assert done.returncode == 2
    assert "uv sync --extra onnx" in done.stderr


def test_a_model_that_cannot_be_traced_is_a_sentence() -> None:
    class Stubborn(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.mean((2, 3)) if x.sum() > 0 else x.amax((2, 3))

    model = formats.FromPixels(Stubborn(), (0.5,), (0.2,))
    with pytest.raises(formats.UserError, match=r"cannot trace this Stubborn .*\.safetensors"):
        formats.graph(model, (1, 8, 8))


def test_the_tuned_student_is_another_job(trained: Path, tmp_path: Path) -> None:
    from kdbench.suite import winners

    (tmp_path / "net.py").write_text(NET)
    text = SUITE.replace("seeds: [3, 4]", "seeds: [3, 4]\ntune: {trials: 2}")
    (tmp_path / "both.py").write_text(BOTH)
    (tmp_path / "s.yaml").write_text(text)
    suite = load(tmp_path / "s.yaml")
    found = winners.Winner(
        suite="little", pair="cnn", method="simkd", space_hash=winners.cell_of(suite, "cnn", "simkd").hash,
        overrides={"factor": 4}, knobs={"factor": 4}, trials=2, pruned=0, failed=0, gpu_seconds=1.0, metric="val/top1",
        value=50.0, values=[40.0, 50.0], default_value=40.0, epochs=2, seeds=[1000], sampler="tpe",
        objectives=["val/top1"],
    )  # fmt: skip
    winners.write(found, tmp_path)
    asked: dict = {"fingerprint": "f", "tuned": tmp_path}
    tuned = deployed.job_of(suite, "cnn", "simkd", **asked)
    with pytest.raises(formats.UserError, match="cnn/kd has not been tuned"):
        deployed.job_of(suite, "cnn", "kd", **asked)
    winners.write(dataclasses.replace(found, space_hash="0" * 12), tmp_path)  # of another space
    with pytest.raises(formats.UserError, match="cnn/simkd has not been tuned as the suite is now"):
        deployed.job_of(suite, "cnn", "simkd", **asked)
    plain = deployed.job_of(suite, "cnn", "simkd", fingerprint="f")
    assert (tuned.method.factor, plain.method.factor, tuned.track) == (4, 2, "tuned")  # type: ignore[attr-defined]
    assert tuned.seed == plain.seed == 3
    assert tuned.key != plain.key


def test_a_command_names_only_what_is_not_the_default() -> None:
    plain = export.Request(Path("s.yaml"), "a/b", Path("m.pt2"))
    assert plain.command(2) == "kdbench run s.yaml --only a/b --seeds 2"
    other = export.Request(Path("s.yaml"), "a/b", Path("m.pt2"), epochs=3, results=Path("r"), runs=Path("q"))
    assert other.command(2) == "kdbench run s.yaml --only a/b --seeds 2 --epochs 3 --results r --runs q"
