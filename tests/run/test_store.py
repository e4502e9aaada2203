"""Results on disk: written whole, never replaced when final, damaged ones set aside."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest

from kdbench.errors import UserError
from kdbench.files import set_aside, write_atomically
from kdbench.result import Cost, Result, Teacher
from kdbench.run.store import Store, filename, read
from kdbench.suite.job import digest


def result(seed: int = 0, **changes: object) -> Result:
    job = {"seed": seed, "method": {"name": "kd"}}
    made = Result(key=digest(job), suite="s", pair="p", method="kd", seed=seed, status="ok", job=job)
    return dataclasses.replace(made, **changes)


def test_a_result_survives_the_disk_unchanged(tmp_path: Path) -> None:
    whole = result(
        scores={"test/top1": 91.25},
        curves={"train/loss": [1.0, None, 0.5]},
        cost=Cost(1.5, 2.0, 300.0, 80.0, 10, 4, 6, 7, 8, 9, 0.1, 0.2, 3),
        teacher=Teacher("k", "f" * 64, {"val/top1": 93.0}),
        provenance={"versions": {"torch": "x"}},
    )
    Store(tmp_path, "s").write(whole)
    assert Store(tmp_path, "s").results == {whole.key: whole}


def test_non_finite_numbers_become_null() -> None:
    text = result(scores={"test/nll": float("nan")}, curves={"train/loss": [float("inf")]}).to_json()
    assert json.loads(text)["scores"] == {"test/nll": None}
    assert json.loads(text)["curves"] == {"train/loss": [None]}


def test_a_final_result_is_never_replaced_but_a_failed_one_is(tmp_path: Path) -> None:
    store = Store(tmp_path, "s")
    store.write(result(status="failed", reason="out of memory"))
    assert not store.done(result().key)
    store.write(result(scores={"test/top1": 1.0}))
    store.write(result(scores={"test/top1": 2.0}))
    assert Store(tmp_path, "s").results[result().key].scores == {"test/top1": 1.0}
    assert len(list((tmp_path / "results" / "s").iterdir())) == 1


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (lambda text: text[: len(text) // 2], "damaged"),
        (lambda text: text.replace('"seed": 0', '"seed": 7', 1), "seed is not that of its job"),
        (lambda text: text.replace('"name": "kd"', '"name": "dkd"'), "does not match its key"),
        (lambda text: text.replace('"format": 1', '"format": 99'), "format"),
        (lambda text: "[]", "damaged"),
        (lambda text: text.replace('"reason"', '"raison"'), "raison"),
        (lambda text: "\udcff", "damaged"),
    ],
)
def test_a_damaged_result_is_named_set_aside_and_not_used(tmp_path: Path, damage, complaint: str) -> None:
    path = Store(tmp_path, "s").write(result())
    path.write_bytes(damage(path.read_text()).encode("utf-8", "surrogateescape"))
    said: list[str] = []
    store = Store(tmp_path, "s", said.append)
    assert not store.results
    assert path.name in said[0]
    assert complaint in said[0]
    assert len(said[0].splitlines()) == 1
    store.refresh(result().key)
    assert len(said) == 1  # said once
    assert [p.name for p in path.parent.iterdir()] == [path.name]  # who only reads changes nothing
    store.write(result())
    assert sorted(p.name for p in path.parent.iterdir()) == [path.name, path.name + ".damaged"]
    assert Store(tmp_path, "s").done(result().key)


def test_a_moved_result_does_not_pass_for_another(tmp_path: Path) -> None:
    path = Store(tmp_path, "s").write(result())
    path.rename(path.with_name("p.none.s0.000000000000.json"))
    assert not Store(tmp_path, "s").results


def test_an_unwritable_folder_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "results").write_text("a file where the folder should be")
    with pytest.raises(UserError, match=r"cannot read results .*--results DIR"):
        Store(tmp_path, "s").write(result())


def test_a_failed_write_leaves_the_old_file_and_no_draft(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    write_atomically(path, b"old")
    with pytest.raises(TypeError):
        write_atomically(path, "not bytes")  # type: ignore[arg-type]
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


def test_set_aside_never_overwrites(tmp_path: Path) -> None:
    names = []
    for text in ("1", "2", "3"):
        (tmp_path / "a").write_text(text)
        names.append(set_aside(tmp_path / "a"))
    assert [p.read_text() for p in names] == ["1", "2", "3"]
    assert len(set(names)) == 3


def test_file_names_tell_the_cell() -> None:
    assert filename(result(3)).startswith("p.kd.s3.")


WHOLE = result(
    scores={"test/top1": 91.25, "test/nll": 0.5, "test/kl": -1e-12},
    curves={"train/loss": [1.0, None, 0.5]},
    cost=Cost(1.5, 2.0, 300.0, 80.0, 10, 4, 6, 7, 8, 9, 0.1, 0.2, 3),
    teacher=Teacher("k", "f" * 64, {"val/top1": 93.0}),
    provenance={"versions": {"torch": "x"}, "device": "cpu"},
)


def spoilt(path: str, value: object) -> str:
    """The record with one field changed."""
    record = json.loads(WHOLE.to_json())
    place, *steps = record, *path.split(".")
    for step in steps[:-1]:
        place = place[step]
    place[steps[-1]] = value
    return json.dumps(record)


WRONG = [
    *(("scores.test/top1", value) for value in (-1, 150, 1e308, True, "93", None, [], math.nan, math.inf)),
    *(("scores.test/ece", value) for value in (-0.1, 1.5)),
    *(("scores.test/brier", value) for value in (-0.1, 2.5)),
    ("scores.test/nll", -0.1),
    ("scores.test/kl", -0.1),
    ("scores.test/rmse", math.inf),
    ("scores", []),
    ("teacher.scores.val/top1", 101.0),
    ("teacher.sha256", "javascript:alert(1)"),
    ("status", "zz"),
    ("status", "<script>alert(1)</script>"),
    ("seed", "0"),
    ("seed", -1),
    ("seed", 0.0),
    ("pair", "../p"),
    ("cost.train_seconds", -1.0),
    ("cost.macs", 10**400),
    ("cost.parameters", True),
    ("cost", {}),
    ("curves.train/loss", [math.nan]),
    ("curves.train/loss", 3),
    ("provenance.versions", "2.11"),
    ("provenance.device", ["cpu"]),
    ("notes", [1]),
    ("track", "other"),
    ("job.seed", 7),
    ("job.data", []),
    ("job.more", math.nan),
    ("comparable", 1),
]


@pytest.mark.parametrize(("path", "value"), WRONG)
def test_a_record_with_one_wrong_value_is_left_out_and_named(tmp_path: Path, path: str, value: object) -> None:
    good = Store(tmp_path, "s").write(WHOLE)
    assert Store(tmp_path, "s").results == {WHOLE.key: WHOLE}
    good.write_text(spoilt(path, value))
    said: list[str] = []
    assert not Store(tmp_path, "s", said.append).results
    (sentence,) = said
    assert good.name in sentence
    assert sentence.isprintable()


def test_deep_nesting_and_folders_are_damaged_records_too(tmp_path: Path) -> None:
    good = Store(tmp_path, "s").write(WHOLE)
    good.with_name("p.kd.s1.000000000000.json").write_text("[" * 100_000)
    good.with_name("p.kd.s2.000000000000.json").write_text('{"a":' * 100_000)
    good.with_name("p.kd.s3.000000000000.json").mkdir()
    said: list[str] = []
    assert Store(tmp_path, "s", said.append).results == {WHOLE.key: WHOLE}
    assert len(said) == 3


def test_no_accuracy_is_fine_where_nothing_finished(tmp_path: Path) -> None:
    store = Store(tmp_path, "s")
    store.write(dataclasses.replace(WHOLE, status="diverged", scores={"test/top1": math.nan}))
    assert Store(tmp_path, "s").results[WHOLE.key].scores == {"test/top1": None}


def test_all_committed_records_are_read_and_written_unchanged() -> None:
    paths = sorted((Path(__file__).parents[2] / "leaderboard" / "results").glob("*/*.json"))
    assert paths
    for path in paths:
        assert json.loads(path.read_text()).items() <= _with_defaults(path).items(), path


def _with_defaults(path: Path) -> dict[str, object]:
    """What would be written of a record again; `cost` without the fields that are younger than the file."""
    again, before = json.loads(read(path).to_json()), json.loads(path.read_text())
    again["cost"] = {name: again["cost"][name] for name in before["cost"]}
    return again


def test_costs_that_say_nothing_are_left_out_of_a_record() -> None:
    """Records of before have none of them, and are read as they are."""
    cost = dataclasses.replace(WHOLE.cost, queries=None, zeros=0)
    plain = dataclasses.replace(WHOLE, cost=cost).to_json()
    assert "queries" not in plain
    assert "zeros" not in plain
    told = dataclasses.replace(WHOLE, cost=dataclasses.replace(cost, queries=140, zeros=7))
    assert Result.from_json(told.to_json()) == told
    assert Result.from_json(plain).cost == cost
