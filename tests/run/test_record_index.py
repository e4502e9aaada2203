"""The index of many records: it says what the records say, sees every change of them, and is never needed."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import pytest

from kdbench.result import Cost, Exit, Prefix, Result, Teacher
from kdbench.run import record_index, store
from kdbench.run.store import Store
from kdbench.suite.job import digest

SCORES = {"val/top1": 90.0, "test/top1": 91.25, "test/nll": None}
COST = Cost(1.5, 2.0, 300.0, 80.0, 10, 4, 6, 7, None, None, 0.1, 0.2, 3, queries=5, looked_up_seconds=0.25)


def record(seed: int, **changes: object) -> Result:
    job = {"seed": seed, "method": {"name": "kd"}, "data": {"fingerprint": "f"}}
    made = Result(digest(job), "s", "p", "kd", seed, "ok", job=job, scores=SCORES | {"val/top1": float(seed)})
    return dataclasses.replace(made, **changes)


RECORDS = [
    record(0, cost=COST, teacher=Teacher("k", "f" * 64, {"val/top1": 93.0}), notes=["said"]),
    record(1, cost=dataclasses.replace(COST, parameters=99), provenance={"device": "cpu", "versions": {"torch": "2"}}),
    record(2, status="failed", reason="out of memory", scores={}),
    record(3, prefixes=[Prefix("r", {}, {}, 1, 2)], exits=[Exit(0.5, {}, {"val": 1.0}, [0.5])]),
    record(4, headline={"name": "rmse", "unit": "", "better": "down", "digits": 3}, comparable=False),
]


class Desk:
    """A folder of records, old enough to be kept, and which of them were read whole."""

    def __init__(self, root: Path) -> None:
        self.root, self.read = root, list[str]()
        self.paths = [self.write(made) for made in RECORDS]

    def write(self, made: Result) -> Path:
        path = self.root / "results" / "s" / store.filename(made)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(made.to_json())
        return path

    def results(self) -> dict[str, Result]:
        self.read.clear()
        return Store(self.root, "s").results


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    monkeypatch.setenv("KDBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(record_index, "MANY", 1)
    monkeypatch.setattr(record_index, "SETTLED_NS", -(10**12))
    made, whole = Desk(tmp_path), store.read

    def watched(path: Path) -> Result:
        made.read.append(path.name)
        return whole(path)

    monkeypatch.setattr(store, "read", watched)
    return made


def place(desk: Desk) -> Path:
    return record_index.place_of(desk.paths[0].parent)


def test_the_second_start_reads_no_record_and_finds_the_same(desk: Desk) -> None:
    first = desk.results()
    assert len(desk.read) == len(RECORDS)
    assert desk.results() == first == {made.key: made for made in RECORDS}
    assert desk.read == []
    assert all(digest(made.job) == made.key for made in desk.results().values())


def test_curves_are_left_out_and_stay_in_the_file(desk: Desk) -> None:
    curved = record(7, curves={"train/loss": [1.0, None]})
    path = desk.write(curved)
    for _ in range(2):
        assert desk.results()[curved.key] == dataclasses.replace(curved, curves={})
    assert store.read(path) == curved


def test_few_records_are_read_with_their_curves_and_no_index(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record_index, "MANY", len(RECORDS) + 1)
    assert desk.results() == {made.key: made for made in RECORDS}
    assert not place(desk).exists()


def test_a_changed_a_new_and_a_deleted_record_are_seen(desk: Desk) -> None:
    desk.results()
    changed = dataclasses.replace(RECORDS[0], scores={"test/top1": 12.0})
    desk.paths[0].write_text(changed.to_json())
    desk.paths[1].unlink()
    new = record(9)
    path = desk.write(new)
    found = desk.results()
    assert found == {made.key: made for made in (changed, *RECORDS[2:], new)}
    assert sorted(desk.read) == sorted([desk.paths[0].name, path.name])
    assert desk.results() == found
    assert desk.read == []


def test_a_change_that_keeps_size_and_time_is_seen(desk: Desk) -> None:
    desk.results()
    text, before = desk.paths[1].read_text(), desk.paths[1].stat()
    desk.paths[1].write_text(text.replace("91.25", "81.25"))
    os.utime(desk.paths[1], ns=(before.st_atime_ns, before.st_mtime_ns))
    assert desk.results()[RECORDS[1].key].scores["test/top1"] == 81.25


def test_a_record_that_is_damaged_later_is_left_out_each_time(desk: Desk) -> None:
    desk.results()
    desk.paths[0].write_text("{")
    for _ in range(2):
        said: list[str] = []
        assert RECORDS[0].key not in Store(desk.root, "s", said.append).results
        assert len(said) == 1


def test_a_record_that_may_still_change_is_not_kept(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record_index, "SETTLED_NS", 10**12)
    desk.results()
    desk.results()
    assert len(desk.read) == len(RECORDS)


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:-9],
        lambda content: content.replace(b"91.25", b"99.25"),
        lambda content: b"\xff" + content,
        lambda content: record_index._sealed(b"[]"),
        lambda content: record_index._sealed(content.partition(b"\n")[2].replace(b'\\"ok\\"', b'\\"zz\\"')),
    ],
)
def test_a_damaged_index_is_made_again_without_a_word(desk: Desk, damage) -> None:
    first = desk.results()
    whole = place(desk).read_bytes()
    place(desk).write_bytes(damage(whole))
    said: list[str] = []
    assert Store(desk.root, "s", said.append).results == first
    assert said == []
    assert place(desk).read_bytes() == whole


@pytest.mark.parametrize("part", [0, 1])
def test_an_index_of_other_code_or_another_folder_is_made_again(desk: Desk, part: int) -> None:
    desk.results()
    body = json.loads(place(desk).read_bytes().partition(b"\n")[2])
    body[part] = "other"
    place(desk).write_bytes(record_index._sealed(json.dumps(body).encode()))
    desk.results()
    assert len(desk.read) == len(RECORDS)


def test_it_lies_in_the_cache_alone_and_a_cache_that_cannot_be_written_is_no_trouble(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = sorted(desk.paths[0].parent.iterdir())
    desk.results()
    assert sorted(desk.paths[0].parent.iterdir()) == before
    assert [path.name for path in place(desk).parent.iterdir()] == [place(desk).name]  # and no draft
    (desk.root / "file").write_text("")
    monkeypatch.setenv("KDBENCH_CACHE", str(desk.root / "file"))
    assert desk.results() == {made.key: made for made in RECORDS}


def test_few_changes_are_read_each_time_and_many_are_kept(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    desk.results()
    kept = place(desk).read_bytes()
    monkeypatch.setattr(record_index, "SHARE", 1)
    desk.write(record(9))
    desk.results()
    assert place(desk).read_bytes() == kept
    assert len(desk.read) == 1
    monkeypatch.setattr(record_index, "SHARE", 50)
    desk.results()
    assert place(desk).read_bytes() != kept
