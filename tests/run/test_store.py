"""Results on disk: written whole, never replaced when final, damaged ones set aside."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from kdbench.errors import UserError
from kdbench.files import set_aside, write_atomically
from kdbench.result import Cost, Result, Teacher
from kdbench.run.store import Store, filename
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
        (lambda text: text.replace('"seed": 0', '"seed": 7', 1), "does not match its key"),
        (lambda text: text.replace('"format": 1', '"format": 99'), "format"),
        (lambda text: "[]", "format"),
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
    assert [p.name for p in path.parent.iterdir()] == [path.name + ".damaged"]
    store.write(result())
    assert Store(tmp_path, "s").done(result().key)


def test_a_moved_result_does_not_pass_for_another(tmp_path: Path) -> None:
    path = Store(tmp_path, "s").write(result())
    path.rename(path.with_name("p.none.s0.000000000000.json"))
    assert not Store(tmp_path, "s").results


def test_an_unwritable_folder_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "results").write_text("a file where the folder should be")
    with pytest.raises(UserError, match=r"cannot write results .*--results DIR"):
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
