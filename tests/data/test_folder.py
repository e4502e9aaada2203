"""Image folders: what is read, how broken files are told, and that workers and interruptions change no pixel."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from data_layouts import break_images, make_folder
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as V
from training import assert_same, snapshot, states, task

from kdbench import data
from kdbench.data import DataSet, files, folder, folder_index
from kdbench.data.batches import fetch, stream
from kdbench.data.files import Files
from kdbench.data.resized_crop import boxes
from kdbench.errors import UserError
from kdbench.files import cache
from kdbench.method import Method
from kdbench.methods.kd import KD
from kdbench.suite.fields import Augment, Data, Recipe, ResizedCrop
from kdbench.tasks import classification
from kdbench.train import evaluate
from kdbench.train.engine import Engine
from kdbench.train.state import State

torch.set_num_threads(1)

SIZE = 16
CROP = ResizedCrop()
IMAGENET = {"random_resized_crop": {}, "flip": True}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("data"))


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KDBENCH_CACHE", str(tmp_path / "cache"))


def loaded(tree: Path, **options) -> DataSet:
    given = {"path": tree.name, "size": SIZE, "workers": 0, **options}
    return data.load(Data(name="folder", options=given, val=6), tree.parent)


def recipe(**augment) -> Recipe:
    return Recipe.model_validate({"epochs": 2, "batch_size": 8, "optimizer": {"lr": 0.02}, "augment": augment})


def images(found: DataSet, part: str = "train") -> Files:
    split = getattr(found, part)
    assert isinstance(split.images, Files)
    return split.images


def opened(tree: Path, name: str) -> Image.Image:
    return Image.open(tree / name).convert("RGB")


# what is read --------------------------------------------------------------------------------------------------------


def test_splits_classes_and_labels_are_the_folders(tree: Path) -> None:
    found = loaded(tree)
    assert (found.classes, found.channels, found.size, found.notes, found.left_out) == (3, 3, SIZE, (), 0)
    assert [len(split.labels) for split in (found.train, found.val, found.test)] == [36, 6, 21]
    assert np.bincount(found.val.labels).tolist() == [2, 2, 2]
    seen = []
    for part, folder_ in (("train", "train"), ("val", "train"), ("test", "val")):
        for i, label in enumerate(getattr(found, part).labels.tolist()):
            seen.append(images(found, part).name(i))
            assert seen[-1].split("/")[:2] == [folder_, f"n0{label + 1}"]
    assert sorted(seen) == sorted(path.relative_to(tree).as_posix() for path in tree.glob("*/*/*"))
    assert images(found).shape == (36, 3, SIZE, SIZE)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_evaluation_pixels_are_torchvisions(tree: Path, interpolation: str) -> None:
    """Resize and CenterCrop of every format and mode, to the bit; normalised as stated."""
    found = loaded(tree, resize=19, interpolation=interpolation, mean=[0.5, 0.4, 0.3], std=[0.25, 0.5, 1])
    out = fetch(found.test, torch.arange(21))
    for i in range(21):
        image = opened(tree, images(found, "test").name(i))
        expected = V.center_crop(V.resize(image, 19, InterpolationMode(interpolation)), [SIZE, SIZE])
        wanted = V.normalize(V.to_tensor(expected), [0.5, 0.4, 0.3], [0.25, 0.5, 1])
        torch.testing.assert_close(out[i], wanted, rtol=0, atol=3e-6)


def test_training_crops_are_torchvisions_in_the_original_image(tree: Path) -> None:
    found, index = loaded(tree, mean=[0, 0, 0], std=[1, 1, 1]), torch.tensor([35, 0, 7, 7, 12])
    out = fetch(found.train, index, recipe(random_resized_crop={}), (3, 5), view=1)
    sizes = [opened(tree, images(found).name(i)).size for i in index.tolist()]
    height_B, width_B = images(found).sizes(index)
    assert list(zip(width_B.tolist(), height_B.tolist(), strict=True)) == sizes
    box_B4 = boxes(index, height_B, width_B, CROP, seed=3, epoch=5, view=1)
    for i, box in zip(range(5), box_B4.tolist(), strict=True):
        image = opened(tree, images(found).name(index.tolist()[i]))
        expected = V.resized_crop(image, *box, [SIZE, SIZE], InterpolationMode.BILINEAR)
        torch.testing.assert_close(out[i], V.to_tensor(expected), rtol=0, atol=3e-7)
    assert torch.equal(out[2], out[3])


def test_without_a_resized_crop_training_starts_from_the_evaluation_view(tree: Path) -> None:
    found, index = loaded(tree), torch.arange(36)
    whole = fetch(found.train, index)
    flipped = fetch(found.train, index, recipe(flip=True), (0, 0))
    same = (flipped == whole).flatten(1).all(1)
    assert torch.equal(flipped[~same], whole[~same].flip(3))
    assert 5 < int(same.sum()) < 31


@pytest.mark.parametrize("name", ["validation", "test"])
def test_the_held_out_folder_may_be_called_otherwise(tmp_path: Path, name: str) -> None:
    tree = make_folder(tmp_path, held_out=name, train=4, val=2)
    found = loaded(tree)
    assert images(found, "test").name(0).startswith(f"{name}/n01/")
    shutil.copytree(tree / name, tree / "mine")
    assert images(loaded(tree, test="mine"), "test").name(0).startswith("mine/n01/")


def test_images_may_lie_deeper_and_other_files_are_passed_over(tmp_path: Path) -> None:
    tree = make_folder(tmp_path, train=4, val=2)
    before = loaded(tree)
    (tree / "train/n01/notes.txt").write_text("x")
    (tree / "train/n01/.hidden.png").write_bytes(b"x")
    (tree / "train/.thumbs").mkdir()
    assert loaded(tree).fingerprint == before.fingerprint
    (tree / "train/n02/images").mkdir()
    (tree / "train/n02/000.JPEG").rename(tree / "train/n02/images/000.JPEG")
    found = loaded(tree)
    assert len(found.train.labels) + len(found.val.labels) == 12
    assert found.fingerprint != before.fingerprint


# fingerprint and index -----------------------------------------------------------------------------------------------


def test_the_fingerprint_is_of_classes_names_and_bytes_and_of_no_place(tree: Path, tmp_path: Path) -> None:
    before = loaded(tree)
    copy = Path(shutil.copytree(tree, tmp_path / "elsewhere"))
    assert loaded(copy).fingerprint == before.fingerprint == loaded(copy, path=str(copy)).fingerprint
    (copy / "train/n03/000.JPEG").write_bytes((copy / "train/n03/000.JPEG").read_bytes() + b"\0")
    changed = loaded(copy).fingerprint
    shutil.copy2(tree / "train/n03/000.JPEG", copy / "train/n03/000.JPEG")
    assert loaded(copy).fingerprint == before.fingerprint != changed
    for part in ("train", "val"):
        (copy / part / "n03").rename(copy / part / "n04")
    assert loaded(copy).fingerprint not in (before.fingerprint, changed)


def test_an_indexed_folder_is_not_decoded_again(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = Path(shutil.copytree(tree, tmp_path / "copy"))
    seen: list[int] = []
    original = files.Checker.__getitem__
    monkeypatch.setattr(files.Checker, "__getitem__", lambda self, rows: seen.extend(rows) or original(self, rows))
    first = loaded(copy)
    assert len(seen) == 63
    assert loaded(copy).fingerprint == first.fingerprint
    assert len(seen) == 63
    Image.new("RGB", (30, 30), "red").save(copy / "val/n02/new.png")
    assert len(loaded(copy).test.labels) == 22
    assert len(seen) == 64  # the new one alone


def test_an_interrupted_check_continues(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = Path(shutil.copytree(tree, tmp_path / "copy"))
    original, seen = files.Checker.__getitem__, []

    def interrupted(self: files.Checker, rows: np.ndarray) -> list:
        if len(seen) == 32:
            raise KeyboardInterrupt
        seen.extend(rows)
        return original(self, rows)

    monkeypatch.setattr(files.Checker, "__getitem__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        loaded(copy)
    monkeypatch.setattr(files.Checker, "__getitem__", lambda self, rows: seen.extend(rows) or original(self, rows))
    assert loaded(copy).fingerprint == loaded(tree).fingerprint
    assert sorted(seen[:63]) == list(range(63))


def test_a_damaged_index_is_made_again_and_a_cache_that_cannot_be_written_is_no_matter(
    tree: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(tree, tmp_path / "copy"))
    first = loaded(copy)
    (kept,) = (tmp_path / "cache" / "index").iterdir()
    assert re.fullmatch(r"copy-[0-9a-f]{12}\.npz", kept.name)
    kept.write_bytes(kept.read_bytes()[:500])
    assert loaded(copy).fingerprint == first.fingerprint
    shutil.rmtree(kept.parent)
    kept.parent.write_text("in the way")
    assert loaded(copy).fingerprint == first.fingerprint


def test_nothing_is_written_among_the_data(tree: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    copy = Path(shutil.copytree(tree, root / "copy"))
    places = [root, *root.rglob("*")]
    for place in places:
        place.chmod(0o555 if place.is_dir() else 0o444)
    try:
        before = {place: place.stat().st_mtime_ns for place in places}
        assert loaded(copy).fingerprint == loaded(tree).fingerprint
        assert {
            place: place.stat().st_mtime_ns for place in [root, *root.rglob("*")]
        } == before  # root may write anyway
    finally:
        for place in places:
            place.chmod(0o755)
    assert len(list((tmp_path / "cache" / "index").iterdir())) == 2


@pytest.mark.parametrize(
    ("variables", "place"),
    [
        ({"KDBENCH_CACHE": "/a", "XDG_CACHE_HOME": "/b"}, "/a"),
        ({"XDG_CACHE_HOME": "/b"}, "/b/kdbench"),
        ({}, "/home/me/.cache/kdbench"),
    ],
)
def test_the_cache_is_where_the_user_says(monkeypatch: pytest.MonkeyPatch, variables: dict, place: str) -> None:
    for name in ("KDBENCH_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/home/me")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert cache() == Path(place)


# images that are no part of the set ----------------------------------------------------------------------------------


def test_images_that_lie_elsewhere_are_counted_and_told(tree: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tree, tmp_path / "copy"))
    before = loaded(copy)
    image = copy / "train/n01/000.JPEG"
    for place in (
        *("train/a.png", "val/b.JPEG", "train/.old/c.png", "train/n01/.d.png", "train/n01/.trash/deep/e.png"),
        *("train/@eaDir/x.jpg/SYNOPHOTO_THUMB_M.jpg", "train/n02/@eaDir/y.jpg/THUMB.jpg", "train/n03/._f.jpg"),
        "val/__MACOSX/n01/g.png",
    ):
        (copy / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(image, copy / place)
    (copy / "train/.empty").mkdir()
    found = loaded(copy)
    assert (found.classes, found.fingerprint, found.left_out) == (3, before.fingerprint, 0)
    assert found.notes == (
        "2 images in copy lie in no class folder and are left out: train/a.png, val/b.JPEG",
        "3 images in copy have a name, or lie in a folder, that begins with a dot and are left out: "
        "train/.old/c.png, train/n01/.d.png, train/n01/.trash/deep/e.png",
        "3 images in copy are what a file server or system keeps (thumbnails, deleted files) and are left out: "
        "train/@eaDir/x.jpg/SYNOPHOTO_THUMB_M.jpg, train/n02/@eaDir/y.jpg/THUMB.jpg, val/__MACOSX/n01/g.png",
    )


def test_classes_without_a_held_out_image_are_told(tree: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tree, tmp_path / "copy"))
    for path in (copy / "val/n02").iterdir():
        path.unlink()
    (note,) = loaded(copy).notes
    assert note == "1 of 3 classes have no image in val/, where they are not measured: n02"


def test_one_wrapper_folder_too_many_is_named(tmp_path: Path) -> None:
    tree = make_folder(tmp_path, classes=("circle", "square"), train=3, val=2)
    for part in ("train", "val"):
        (tree / part).rename(tree / "images")
        (tree / part).mkdir()
        (tree / "images").rename(tree / part / "images")
    with pytest.raises(UserError, match=r"tree/train holds one folder, images/, .*\(circle, square\).* move them up"):
        loaded(tree)
    (tmp_path / "outer").mkdir()
    tree.rename(tmp_path / "outer" / "inner")
    with pytest.raises(
        UserError, match=r"has no folder train/.*; inner/ in it has one: data.options.path: outer/inner"
    ):
        loaded(tmp_path / "outer")


def test_one_class_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"train has one class only \(n01\)"):
        loaded(make_folder(tmp_path, classes=("n01",), train=12, val=2))


def test_images_that_are_trained_on_and_measured_are_told(tree: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tree, tmp_path / "copy"))
    for name in ("000", "002"):
        shutil.copy(copy / f"train/n01/{name}.JPEG", copy / f"val/n02/again{name}.jpg")
    (note,) = loaded(copy).notes
    assert note == "2 of 23 images of val/ are in train/ too, byte for byte; scores are too good"


# a validation folder of one's own ------------------------------------------------------------------------------------


def test_validation_may_be_a_folder_of_its_own(tree: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tree, tmp_path / "copy"))
    cut = loaded(copy)
    shutil.copytree(copy / "val", copy / "test")
    for extra in (copy / "val").glob("n*/00[3-6].*"):
        extra.unlink()
    found = data.load(Data(name="folder", options={"path": "copy", "size": SIZE, "workers": 0, "val": "val"}), tmp_path)
    assert [len(split.labels) for split in (found.train, found.val, found.test)] == [42, 9, 21]
    assert {images(found, "val").name(i).split("/")[0] for i in range(9)} == {"val"}
    assert {images(found, "test").name(i).split("/")[0] for i in range(21)} == {"test"}
    assert np.bincount(found.val.labels).tolist() == [3, 3, 3]
    assert len({found.fingerprint, cut.fingerprint, loaded(copy, test="test").fingerprint}) == 3
    half = Data(name="folder", options={"path": "copy", "size": SIZE, "workers": 0, "val": "val"}, fraction=0.5)
    assert [len(s.labels) for s in (data.load(half, tmp_path).train, data.load(half, tmp_path).val)] == [21, 9]
    with pytest.raises(UserError, match=r"data.val: 6 cuts validation .* of its own"):
        loaded(copy, val="val")
    for options, said in (
        ({"val": "nowhere"}, "has no held-out folder nowhere"),
        ({"val": "train"}, "has no held-out folder train"),
        ({"val": "val", "test": "val"}, "val/ is the test split"),
    ):
        with pytest.raises(UserError, match=said):
            loaded(copy, **options)


# broken files --------------------------------------------------------------------------------------------------------


def test_broken_images_are_named_counted_and_left_out(tree: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tree, tmp_path / "copy"))
    names = break_images(copy)
    found = loaded(copy)
    assert found.left_out == 3
    (note,) = found.notes
    assert note.startswith("3 of 65 images in copy cannot be decoded and are left out: ")
    assert all(name in note for name in names)
    assert "truncated" in note
    assert found.provenance["images_left_out"] == 3
    assert [len(split.labels) for split in (found.train, found.val, found.test)] == [35, 6, 21]
    assert loaded(copy).notes == found.notes  # from the kept index
    every = [images(found, part).name(i) for part in ("train", "val", "test") for i in range(len(images(found, part)))]
    assert not set(every) & set(names)
    for name in names:
        (copy / name).unlink()
    assert loaded(copy).fingerprint == found.fingerprint
    assert loaded(copy).notes == ()
    assert "images_left_out" not in loaded(tree).provenance


def test_a_file_that_vanishes_later_stops_with_its_name(tree: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tree, tmp_path / "copy"))
    for workers in (0, 1):
        found = loaded(copy, workers=workers)
        gone = copy / images(found, "test").name(4)
        content = gone.read_bytes()
        gone.unlink()
        with pytest.raises(UserError, match=f"{re.escape(gone.name)} was readable when .* repair the data"):
            fetch(found.test, torch.arange(21))
        gone.write_bytes(content)


def test_a_class_of_broken_images_only_is_refused(tmp_path: Path) -> None:
    tree = make_folder(tmp_path, train=3, val=2)
    for path in (tree / "train/n02").iterdir():
        path.write_bytes(b"")
    with pytest.raises(UserError, match=r"train/n02 holds no image that can be decoded"):
        loaded(tree)


# workers -------------------------------------------------------------------------------------------------------------


def test_pixels_do_not_depend_on_workers_batches_or_interruptions(tree: Path) -> None:
    key, index = (1, 4), torch.randperm(36, generator=torch.Generator().manual_seed(0))
    every = recipe(**IMAGENET, rand_augment={})
    alone = loaded(tree)
    expected = [fetch(alone.train, index, every, key, view) for view in (0, 1)]
    for workers in (1, 2):
        found = loaded(tree, workers=workers)
        for size in (36, 7):
            parts = list(stream(found.train, index.split(size), every, key, views=2))
            for view in (0, 1):
                assert torch.equal(torch.cat([part[view] for part in parts]), expected[view])
        half = stream(found.train, index.split(7), every, key, views=2)
        next(half)
        other = next(stream(found.test, [torch.arange(3)]))  # two streams of one pool at a time
        assert torch.equal(other[0], fetch(alone.test, torch.arange(3)))
        half.close()
        (again,) = stream(found.train, [index], every, key)
        assert torch.equal(again[0], expected[0])
        images(found).close()


def test_streams_read_ahead_and_keep_their_workers(tree: Path) -> None:
    found = loaded(tree, workers=1)
    list(stream(found.test, [torch.arange(21)]))
    (kept,) = images(found, "test").pool.idle[False]
    list(stream(found.train, torch.arange(36).split(5)))
    assert images(found).pool.idle[False] == [kept]  # one pool for all splits, used again
    worker = kept._iterator._workers[0]
    assert worker.is_alive()
    images(found).close()
    del kept
    worker.join(5)
    assert not worker.is_alive()


def test_a_program_that_ends_with_open_workers_ends_quietly(tree: Path, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import sys, torch\nfrom pathlib import Path\nfrom kdbench import data\n"
        "from kdbench.data.batches import stream\n"
        "from kdbench.suite.fields import Data\n"
        "options = {'path': 'tree', 'size': 8, 'workers': 2}\n"
        "found = data.load(Data(name='folder', options=options), Path(sys.argv[1]))\n"
        "list(stream(found.test, [torch.arange(8)]))\n"
        "half = stream(found.train, torch.arange(16).split(4))\nnext(half)\n"
    )
    done = subprocess.run([sys.executable, program, tree.parent], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_dead_worker_is_a_sentence(tree: Path) -> None:
    found = loaded(tree, workers=1)
    list(stream(found.test, [torch.arange(21)]))
    images(found).pool.idle[False][0]._iterator._workers[0].kill()
    with pytest.raises(UserError, match="a process that decodes images died"):
        list(stream(found.test, [torch.arange(21)]))
    (x,) = next(stream(found.test, [torch.arange(21)]))  # and the next stream has another one
    assert len(x) == 21


def test_the_global_generator_belongs_to_the_training(tree: Path) -> None:
    found = loaded(tree, workers=1)
    before = torch.get_rng_state()
    list(stream(found.train, torch.arange(36).split(9), recipe(**IMAGENET), (0, 0)))
    assert torch.equal(torch.get_rng_state(), before)
    images(found).close()


# training ------------------------------------------------------------------------------------------------------------


def trained(found: DataSet, method: Method, made: Recipe, state: State | None = None, saved: list | None = None):
    engine = Engine(
        task(method, found, recipe_=made),
        state=state,
        save=lambda s: (saved if saved is not None else []).append(snapshot(s)),
    )
    return engine.train()


def test_a_training_ends_with_the_same_bits_whatever_the_workers_and_however_interrupted(tree: Path) -> None:
    made = recipe(**IMAGENET, rand_augment={"n": 1, "m": 5}, cutmix={})
    whole, saved = None, []
    for workers in (0, 2):
        found = loaded(tree, workers=workers)
        answer = trained(found, KD(), made, saved=saved)
        whole = whole or answer
        assert_same(states(answer.answer), states(whole.answer))
        again = trained(found, KD(), made, state=saved[0])
        assert_same(states(again.answer), states(whole.answer))
        assert again.curves == whole.curves
        images(found).close()


def test_it_learns(tree: Path) -> None:
    found = loaded(tree)
    made = Recipe.model_validate({"epochs": 12, "batch_size": 12, "optimizer": {"lr": 0.05}, "augment": IMAGENET})
    answer = trained(found, KD(ce_weight=1.0, kd_weight=0.0), made).answer
    logits_NC = evaluate.split_answers(answer, found.test)
    assert classification.scores(logits_NC, found.test.labels)["top1"] > 60


# what is refused -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda tree: shutil.rmtree(tree / "val"), "has no held-out folder: expects val/"),
        (lambda tree: shutil.rmtree(tree / "train"), "has no folder train/"),
        (lambda tree: shutil.rmtree(tree / "val/n02"), "must have the same classes: only train/ has n02"),
        (lambda tree: (tree / "val/zebra").mkdir(), "only val/ has zebra"),
        (lambda tree: [shutil.rmtree(path) for path in (tree / "val").iterdir()], "val has no class folders$"),
        (
            lambda tree: [
                (shutil.copy(p / "000.JPEG", tree / "val"), shutil.rmtree(p)) for p in (tree / "val").glob("n*")
            ],
            "val has no class folders: its images must lie in one folder for each class",
        ),
    ],
)
def test_a_wrong_layout_is_a_sentence(tmp_path: Path, change, said: str) -> None:
    tree = make_folder(tmp_path, train=2, val=1)
    change(tree)
    with pytest.raises(UserError, match=said):
        loaded(tree)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"path": "nowhere"}, "there is no folder nowhere .*--data-root"),
        ({"path": 3}, "path of 'folder' is the folder's name, not 3"),
        ({"size": 0}, "size is a whole number"),
        ({"size": "224"}, "size is a whole number"),
        ({"resize": 8}, r"at least the size \(16\), not 8"),
        ({"interpolation": "nearest"}, "bilinear or bicubic"),
        ({"mean": [0.5]}, "mean is three numbers"),
        ({"std": [0, 1, 1]}, "std is three numbers"),
        ({"workers": -1}, "workers of 'folder' is a whole number from 0"),
        ({"test": "train"}, "has no held-out folder train"),
        ({"sizes": 3}, "data.options of 'folder': got an unexpected keyword argument 'sizes'"),
    ],
)
def test_wrong_options_are_sentences(tree: Path, options: dict, said: str) -> None:
    with pytest.raises(UserError, match=said):
        loaded(tree, **options)


def test_the_path_must_be_given(tree: Path) -> None:
    with pytest.raises(UserError, match=r"missing a required (keyword-only )?argument: 'path'"):
        data.load(Data(name="folder"), tree.parent)


def test_status_lists_the_folders(tree: Path, tmp_path: Path) -> None:
    assert folder.status("folder", tmp_path / "nowhere").startswith("missing: expects DIR/train/CLASS/")
    assert data.found(tree.parent)["folder"] == "found (tree): choose with data.options.path"


def test_default_workers_are_the_cpus_this_process_may_use() -> None:
    assert 1 <= files.default_workers() <= min(16, os.cpu_count() or 1)
    assert folder_index.SUFFIXES[0] == ".jpg"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_pixels_are_the_same_on_cuda(tree: Path) -> None:
    found = loaded(tree, workers=2)
    there = found.train.__class__(images(found).to("cuda"), found.train.labels.cuda())
    made = recipe(**IMAGENET, rand_augment={})
    here = torch.cat([x for (x,) in stream(found.train, torch.arange(36).split(8), made, (0, 1))])
    parts = [x for (x,) in stream(there, torch.arange(36, device="cuda").split(8), made, (0, 1))]
    assert torch.equal(torch.cat(parts).cpu(), here)
    images(found).close()


def test_augment_defaults_change_nothing() -> None:
    assert Augment().model_dump(exclude_defaults=True) == {}
