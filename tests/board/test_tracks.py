"""Which stored results belong to which track, and the page, pictures and index that show both."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from board_records import TEACHER, ladder
from board_tracks import SUITE, TOP1, finished, suite, tuned, winner

from kdbench import files
from kdbench.board import tracks
from kdbench.board.page import Summary
from kdbench.board.publish import board_of, current, current_tuned, publish, tables
from kdbench.board.rows import Board, Row, Tuned
from kdbench.cli import listing
from kdbench.errors import UserError
from kdbench.run.store import Store
from kdbench.suite import winners
from kdbench.suite.job import digest, expand


def part(board: Board) -> Tuned:
    assert board.tuned is not None
    return board.tuned


def row(board: Board, label: str) -> Row:
    found = board.tables[0].row(label)
    assert found is not None
    return found


def test_each_track_has_its_own_results(tmp_path: Path) -> None:
    little = suite(tmp_path)
    board = board_of(little, tuned(little, tmp_path))
    second = part(board).board
    assert row(board, "kd").seeds == {0: 72.0, 1: 72.5, 2: 71.7}
    assert row(second, "kd").seeds == pytest.approx({0: 73.0, 1: 73.6, 2: 72.9})
    assert (second.heading.track, second.finished, second.expected) == ("tuned", 9, 9)
    # the suite's own knobs won for `none`: one result, both tracks
    assert row(second, "none").seeds == row(board, "none").seeds
    gain = row(second, "kd").gain
    assert gain is not None
    assert gain.mean == pytest.approx(3.1)  # over the tuned floor
    assert row(second, "kd-hot").over_reference is not None
    assert {r.track for r in current(little, Store(tmp_path, "little"))} == {"default"}
    assert {r.track for r in current_tuned(little, Store(tmp_path, "little"))} == {"tuned"}


def test_what_tuning_was_worth_is_paired_across_tracks(tmp_path: Path) -> None:
    little = suite(tmp_path)
    store = tuned(little, tmp_path)
    lost = next(r for r in store.results.values() if r.method == "kd" and r.track == "default" and r.seed == 2)
    del store.results[lost.key]
    found = {worth.label: worth for worth in part(board_of(little, store)).worth}
    assert list(found) == ["kd-hot", "kd", "none"]
    assert found["kd"].gain.n == 2
    assert found["kd"].gain.mean == pytest.approx(1.05)
    assert found["kd"].default.mean == pytest.approx(72.25)
    assert (found["none"].gain.mean, found["none"].gain.half) == (0.0, None)


def test_results_of_overrides_that_are_no_longer_in_force_are_left_out(tmp_path: Path) -> None:
    little = suite(tmp_path)
    store = tuned(little, tmp_path)
    winners.write(winner(little, "kd", {"temperature": 3.0}), tmp_path)
    second = part(board_of(little, store)).board
    assert row(second, "kd").troubles == (((0, 1, 2), "no result yet"),)
    shown = [line["shown"] for line in listing.results(little, store) if line["method"] == "kd"]
    assert sorted(shown) == ["no: stale"] * 3 + ["yes"] * 3
    others = {line["shown"] for line in listing.results(little, store) if line["method"] == "kd-hot"}
    assert others == {"yes", "yes, tuned track"}


def test_a_winner_of_another_space_is_named_and_left_out(tmp_path: Path) -> None:
    little = suite(tmp_path)
    store = tuned(little, tmp_path, kd={"space_hash": "0" * 12})
    publish(board_of(little, store), tmp_path)
    second = part(board_of(little, store))
    assert [r.label for r in second.board.tables[0].rows] == ["kd-hot", "none"]
    text = (tmp_path / "little.md").read_text()
    assert "- Not in this track: p/kd (was tuned for another space, recipe or method than the suite has now)." in text


def test_a_suite_without_winners_has_one_track(tmp_path: Path) -> None:
    little = suite(tmp_path)
    store = Store(tmp_path, "little")
    for job in expand(little):
        store.write(finished(job, TOP1[job.label]))
    board = board_of(little, store)
    assert board.tuned is None
    publish(board, tmp_path)
    assert "tuned" not in (tmp_path / "README.md").read_text().lower()
    assert "tuned" not in (tmp_path / "little.md").read_text().lower()
    assert not (tmp_path / "little.tuned.svg").exists()


@pytest.mark.parametrize("text", ["{", "[" * 100_000, '{"value": NaN}', "overrides"])
def test_a_damaged_winner_is_named_and_the_others_stay(tmp_path: Path, text: str) -> None:
    little = suite(tmp_path)
    store, said = tuned(little, tmp_path), []
    path = winners.path_of(tmp_path, "little", "p", "kd")
    if text == "overrides":
        text = json.dumps(json.loads(path.read_text()) | {"overrides": {"no_such_knob": 1}})
    path.write_text(text)
    store.warn = said.append
    second = part(board_of(little, store))
    assert [r.label for r in second.board.tables[0].rows] == ["kd-hot", "none"]
    assert second.notes == ("p/kd has a damaged file of its winner",)
    (sentence,) = said
    assert sentence.startswith(f"{path}: damaged (")
    assert path.read_text() == text


def test_unequal_budgets_raise_the_alarm_but_exhausted_spaces_do_not(tmp_path: Path) -> None:
    little = suite(tmp_path)
    board = part(board_of(little, tuned(little, tmp_path))).board
    assert board.tables[0].alarms == ()  # `none` has a single configuration
    other = board_of(little, tuned(little, tmp_path, kd={"trials": 3}))
    table = part(other).board.tables[0]
    assert table.alarms == ("2 different tuning budgets in one pair (3 trials: kd; 4 trials: kd-hot)",)
    assert not any(row.ranked for row in table.rows)
    assert all(row.ranked for row in other.tables[0].rows)  # the default track has no part in it
    seeds = board_of(little, tuned(little, tmp_path, kd={"seeds": [7]}))
    assert "2 different ways of tuning" in part(seeds).board.tables[0].alarms[0]


def test_a_budget_in_seconds_is_kept_by_who_spent_it(tmp_path: Path) -> None:
    text = SUITE.replace("trials: 4", "trials: 4, budget: gpu_seconds, gpu_seconds: 20")
    little = suite(tmp_path, text)
    kept = part(board_of(little, tuned(little, tmp_path, kd={"trials": 9}))).board.tables[0]
    assert kept.alarms == ()
    short = part(board_of(little, tuned(little, tmp_path, kd={"gpu_seconds": 12.0}))).board.tables[0]
    assert short.alarms == ("2 different tuning budgets in one pair (12 s: kd; 20 s: kd-hot)",)


def test_publishing_both_tracks(tmp_path: Path) -> None:
    little = suite(tmp_path)
    board = board_of(little, tuned(little, tmp_path))
    paths = publish(board, tmp_path)
    assert [path.name for path in paths] == ["little.md", "little.svg", "little.tuned.svg", "README.md"]
    assert all(path.exists() for path in paths)
    text = (tmp_path / "little.md").read_text()
    default, second = text.split("## Tuned track")
    assert "trials |" not in default
    for words in ("### p", "little.tuned.svg", "temperature=2.5", "### What tuning was worth", "nothing to tune"):
        assert words in second
        assert words not in default
    assert "(#tuned-track)" in default
    first = {path.name: path.read_bytes() for path in paths}
    again = publish(board_of(little, Store(tmp_path, "little")), tmp_path)
    assert {path.name: path.read_bytes() for path in again} == first
    index = (tmp_path / "README.md").read_text()
    assert "| [little](little.md#tuned-track) |         3 |        4 |        64 |    9 of 9 |" in index
    assert [str(table.title) for table in tables(board)] == ["p, teacher 90.00%", "p, tuned track, teacher 90.00%"]
    assert Summary.read(text) == Summary.of(board)


def test_a_pair_with_prefixes_has_a_picture_of_its_own_in_each_track(tmp_path: Path) -> None:
    little = suite(tmp_path)
    steps = ladder("p", "kd", 3)
    store = tuned(little, tmp_path)
    for key, result in list(store.results.items()):
        if result.method == "kd":
            store.results[key] = dataclasses.replace(result, prefixes=steps[result.seed].prefixes)
    names = [path.name for path in publish(board_of(little, store), tmp_path)]
    assert names == [
        "little.md", "little.svg", "little.p.anytime.svg", "little.tuned.svg", "little.p.tuned.anytime.svg", "README.md"
    ]  # fmt: skip
    text = (tmp_path / "little.md").read_text()
    assert "(little.p.anytime.svg)" in text
    assert "(little.p.tuned.anytime.svg)" in text
    assert text.count("claims reproduced, architecture ours") == 2


def test_another_version_of_the_data_and_another_teacher(tmp_path: Path) -> None:
    little = suite(tmp_path)
    store = tuned(little, tmp_path)
    strange = [finished(job, 99.0) for job in expand(little, seeds=[0])]
    for result in strange:
        content = json.loads(json.dumps(result.job).replace('"f00d"', '"beef"'))
        store.write(dataclasses.replace(result, job=content, key=digest(content)))
    assert row(board_of(little, store), "kd").seeds[0] == 72.0
    for key, result in list(store.results.items()):
        if result.track == "tuned":
            other = dataclasses.replace(TEACHER, sha256="cd" * 32)
            store.results[key] = dataclasses.replace(result, teacher=other)
    assert [w.label for w in tracks.worth(board_of(little, store), part(board_of(little, store)).board)] == []


def test_matching_costs_no_more_than_a_key_for_each_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    little = suite(tmp_path)
    store = tuned(little, tmp_path)
    counted: list[object] = []
    monkeypatch.setattr("kdbench.suite.job.digest", lambda content: counted.append(content) or digest(content))
    found = current(little, store)
    wanted = expand(little)
    assert len(found) == len(wanted) < len(store.results)
    assert len(counted) == len(wanted)  # and not one for each pair of job and record


@pytest.mark.parametrize("name", ["README.md", "little.md", "little.svg", "little.tuned.svg"])
def test_a_strangers_file_is_not_replaced_and_nothing_else_is_written(tmp_path: Path, name: str) -> None:
    (tmp_path / "suite").mkdir()
    little = suite(tmp_path / "suite")
    store = tuned(little, tmp_path)
    (tmp_path / name).write_text("mine\n")
    with pytest.raises(UserError, match=rf"{name}: is no file of kdbench's .*--results"):
        publish(board_of(little, store), tmp_path)
    assert (tmp_path / name).read_text() == "mine\n"
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == [name]


def test_no_two_boards_share_a_page_or_a_picture(tmp_path: Path) -> None:
    (tmp_path / "suite").mkdir()
    little = suite(tmp_path / "suite")
    store = tuned(little, tmp_path)
    board = board_of(little, store)
    publish(board, tmp_path)
    before = (tmp_path / "little.md").read_text()
    other = dataclasses.replace(board, heading=dataclasses.replace(board.heading, suite="little.tuned"), tuned=None)
    with pytest.raises(UserError, match=r"little\.tuned\.svg: belongs to the board little\.md"):
        publish(other, tmp_path)
    (tmp_path / "Little.md").write_text(before)  # what a file system without case shows of it
    other = dataclasses.replace(board, heading=dataclasses.replace(board.heading, suite="Little"), tuned=None)
    with pytest.raises(UserError, match="is the board of the suite 'little'"):
        publish(other, tmp_path)
    assert (tmp_path / "little.md").read_text() == before


def test_every_committed_page_and_picture_counts_as_generated() -> None:
    root = Path(__file__).parents[2] / "leaderboard"
    pages = [path for path in root.rglob("*") if path.suffix in (".md", ".svg")]
    assert pages
    assert [path for path in pages if not files._generated(path.read_bytes())] == []
