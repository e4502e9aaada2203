"""Identity grows without emptying a board: new fields and knobs at their neutral default change no key."""

from __future__ import annotations

import inspect
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import pytest

import kdbench
from kdbench import births
from kdbench.births import Outside, Since, born, content
from kdbench.methods.kd import KD
from kdbench.suite.fields import Augment, Data, Model, Optimizer, Recipe, ResizedCrop, Schedule, Spec
from kdbench.suite.job import digest, expand
from kdbench.suite.load import load
from kdbench.suite.winners import tuned_jobs

ROOT = Path(__file__).parent.parent
SUITES = sorted((ROOT / "suites").glob("*.yaml"))
RECORDS = {path.stem: sorted((ROOT / "leaderboard" / "results" / path.stem).glob("*.json")) for path in SUITES}
RECORDED = [path for path in SUITES if RECORDS[path.stem]]


def test_there_are_records_to_keep() -> None:
    folders = {folder.name for folder in (ROOT / "leaderboard" / "results").iterdir()}
    assert folders == {name for name, records in RECORDS.items() if records}


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.stem)
def test_every_committed_record_is_current(path: Path) -> None:
    """Its key is the digest of its content, and the suite as it is now asks for it."""
    suite = load(path)
    records = [json.loads(file.read_text()) for file in RECORDS[path.stem]]
    asked: dict[str, set[str]] = {}
    for record in records:
        assert record["key"] == digest(record["job"])
        fingerprint = record["job"]["data"]["fingerprint"]
        if fingerprint not in asked:
            jobs = expand(suite, fingerprint)
            if any(record.get("track") == "tuned" for record in records):
                jobs += tuned_jobs(suite, ROOT / "leaderboard", fingerprint)
            asked[fingerprint] = {job.key for job in jobs}
        assert record["key"] in asked[fingerprint], f"{record['pair']}/{record['method']}, seed {record['seed']}"


# a later kdbench -----------------------------------------------------------------------------------------------------
SUITE = """
name: later
data: {name: digits}
recipe: {epochs: 4, optimizer: {lr: 0.1}, schedule: {gamma: 0.2}, augment: {crop: 2}}
pairs:
  p: {teacher: {model: cnn}, student: {model: mlp}}
methods:
  none:
  kd: {method: kd, temperature: 4.0}
  mixed: {method: mixup, over: {method: kd, temperature: 4.0}}
seeds: [0]
"""
FIELDS = (Data, Recipe, Optimizer, Schedule, Augment, Model)
# what is written into the suite -> the methods whose keys must change with 1.5 there, and must not with 0.0
PLACES = {
    "name: digits": {"none", "kd", "mixed"},
    "epochs: 4": {"none", "kd", "mixed"},
    "lr: 0.1": {"none", "kd", "mixed"},
    "gamma: 0.2": {"none", "kd", "mixed"},
    "crop: 2": {"none", "kd", "mixed"},
    "model: mlp": {"none", "kd", "mixed"},
    "model: cnn": {"none", "kd", "mixed"},
    "kd, temperature: 4.0}\n  mixed": {"kd"},
    "kd, temperature: 4.0}}": {"mixed"},
}
KEYS = """
import json, sys
from pathlib import Path
from {load} import load
from {expand} import expand
jobs = [expand(load(Path(path)), fingerprint) for path, fingerprint in json.load(sys.stdin)]
print(json.dumps([[[job.name, job.key] for job in found] for found in jobs]))
"""


@pytest.fixture(scope="module")
def later(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of kdbench in which every kind of declaration has a younger member `haze`, 0.0 by default."""
    package = Path(kdbench.__file__).parent
    folder = tmp_path_factory.mktemp("later")
    shutil.copytree(package, folder / "kdbench", ignore=shutil.ignore_patterns("__pycache__"))
    for cls in (*FIELDS, KD):
        source = Path(inspect.getsourcefile(cls) or "")
        path = folder / "kdbench" / source.relative_to(package)
        line = "haze: float = knob(0.0, since=2)" if cls is KD else f"haze: Annotated[Float, {Since.__name__}(2)] = 0.0"
        text, count = re.subn(
            rf'(class {cls.__name__}\(\w+\):\n    """[^"]*"""\n)', rf"\1    {line}\n", path.read_text()
        )
        assert count == 1, cls
        path.write_text(text)
    return folder


def keys_of(folder: Path, asked: list[tuple[Path, str | None]]) -> list[list[list[str]]]:
    script = KEYS.format(load=load.__module__, expand=expand.__module__)
    done = subprocess.run(
        [sys.executable, "-c", script],
        input=json.dumps([[str(path), fingerprint] for path, fingerprint in asked]),
        env=os.environ | {"PYTHONPATH": str(folder)},
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def test_new_fields_and_knobs_leave_every_committed_record_current(later: Path) -> None:
    asked = [(path, json.loads(RECORDS[path.stem][0].read_text())["job"]["data"]["fingerprint"]) for path in RECORDED]
    asked += [(path, None) for path in SUITES if path not in RECORDED]
    before = [[[job.name, job.key] for job in expand(load(path), fingerprint)] for path, fingerprint in asked]
    assert keys_of(later, asked) == before


def test_a_new_field_or_knob_counts_where_it_is_not_neutral(later: Path, tmp_path: Path) -> None:
    texts = [SUITE]
    for place in PLACES:
        assert SUITE.count(place) == 1
        for value in ("0.0", "1.5"):
            head, end = re.fullmatch(r"([^}]*?)(}.*)?", place, re.DOTALL).groups("")  # type: ignore[union-attr]
            texts.append(SUITE.replace(place, f"{head}, haze: {value}{end}"))
    paths = [tmp_path / f"{number}.yaml" for number in range(len(texts))]
    for path, text in zip(paths, texts, strict=True):
        path.write_text(text)
    plain, *found = map(dict, keys_of(later, [(path, "f") for path in paths]))
    assert plain == {job.name: job.key for job in expand(load(paths[0]), "f")}
    for (place, changed), neutral, other in zip(PLACES.items(), found[::2], found[1::2], strict=True):
        assert neutral == plain, place
        assert {name.partition("/")[2] for name in plain if other[name] != plain[name]} == changed, place


# the rule ------------------------------------------------------------------------------------------------------------
def test_what_is_as_old_as_the_format_counts_at_its_default_too(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(SUITE)
    jobs = {job.label: job.content for job in expand(load(tmp_path / "s.yaml"), "f")}
    assert jobs["kd"]["method"]["knobs"] == {"temperature": 4.0, "ce_weight": 0.1, "kd_weight": 0.9}
    assert jobs["none"]["recipe"]["clip_norm"] is None
    assert jobs["none"]["recipe"]["augment"] == {"crop": 2, "flip": False}
    assert jobs["none"]["data"]["val"] is None
    assert jobs["none"]["roles"]["student"] == {"model": "mlp", "options": {}}


class _Leaf(Spec):
    old: int = 1
    young: Annotated[int, Since(2)] = 1
    aside: Annotated[int, Outside("a test")] = 1


class _Tree(Spec):
    leaf: _Leaf = _Leaf()
    leaves: tuple[_Leaf, ...] = ()
    fresh: Annotated[_Leaf | None, Since(2)] = None
    options: dict[str, object] = {}  # noqa: RUF012


def test_content_goes_into_every_depth_and_leaves_maps_as_they_are() -> None:
    assert content(_Tree()) == {"leaf": {"old": 1}, "leaves": [], "options": {}}
    tree = _Tree(leaf=_Leaf(young=2), leaves=(_Leaf(), _Leaf(old=3)), fresh=_Leaf(aside=5), options={"young": 1})
    assert content(tree) == {
        "leaf": {"old": 1, "young": 2},
        "leaves": [{"old": 1}, {"old": 3}],
        "fresh": {"old": 1},  # not at its default, which is none at all
        "options": {"young": 1},
    }


def test_a_raised_format_takes_in_what_was_younger(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (born(1, 0, 0), born(2, 0, 0), born(2, 1, 0)) == (True, False, True)
    monkeypatch.setattr(births, "FORMAT", 2)
    assert born(2, 0, 0)
    assert content(Augment())["cutmix"] is None


def test_fields_outside_of_identity() -> None:
    assert births.outside(Recipe) == {"compile", "validate_every", "checkpoint_every"}
    frozen = {"init", "initial", "answers", "train", "weights", "pretrained", "seed", "gate", "min_top1"}
    assert births.outside(Model) == frozen
    assert content(Augment(random_resized_crop=ResizedCrop()))["random_resized_crop"] == {
        "scale": [0.08, 1.0],
        "ratio": [0.75, 4 / 3],
    }


def test_the_schema_says_nothing_of_births() -> None:
    from kdbench.suite.schema import schema_text

    assert not re.search(r"since|Since|Outside", schema_text())
