"""Winners: the expected best of n trials, Pareto sets, and files that read back."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import pytest

from kdbench.errors import UserError
from kdbench.suite.winners import Winner, expected_best, pareto_front, path_of, read, write


def winner(**changes) -> Winner:
    values = {
        "suite": "s", "pair": "p", "method": "kd", "space_hash": "0" * 12, "overrides": {"temperature": 2.5},
        "knobs": {"temperature": 2.5}, "trials": 3, "pruned": 1, "failed": 0, "gpu_seconds": 3.5, "metric": "val/top1",
        "value": 2.0, "values": [1.0, 2.0], "default_value": 1.0, "epochs": 3,
        "seeds": [1000], "sampler": "tpe", "objectives": ["val/top1"],
    }  # fmt: skip
    return Winner(**{**values, **changes})


@pytest.mark.parametrize("rising", [True, False])
def test_expected_best_is_the_mean_over_all_draws_without_replacement(rising: bool) -> None:
    values = [3.0, 1.0, 4.0, 1.5]
    best = max if rising else min
    for n, found in enumerate(expected_best(values, rising=rising), start=1):
        draws = [best(draw) for draw in itertools.combinations(values, n)]
        assert found == pytest.approx(sum(draws) / len(draws))


def test_expected_best_of_one_value_is_that_value() -> None:
    assert expected_best([7.0]) == [7.0]
    assert expected_best([]) == []


def test_all_of_a_grid_find_its_best_for_certain(tmp_path: Path) -> None:
    values = [31.5, 44.72, 40.0, 38.25, 42.0]
    assert expected_best(values)[-1] == 44.72
    path = write(winner(values=values), tmp_path)
    raw = json.loads(path.read_text())
    assert "expected_best" not in raw
    path.write_text(json.dumps({**raw, "expected_best": [1.0, 2.0]}))  # as earlier versions wrote it
    found = read(tmp_path, "s", "p", "kd")
    assert found is not None
    assert found.expected_best == expected_best(values)


def test_a_pareto_set_holds_what_nothing_beats() -> None:
    points = [(90.0, 10.0), (91.0, 12.0), (90.0, 12.0), (80.0, 1.0), (91.0, 12.0), (89.0, 10.0)]
    assert pareto_front(points, [True, False]) == [0, 1, 3, 4]
    assert pareto_front(points, [True, True]) == [1, 4]


def test_a_file_reads_back_and_equal_content_leaves_it_alone(tmp_path: Path) -> None:
    path = write(winner(), tmp_path)
    assert path == path_of(tmp_path, "s", "p", "kd") == tmp_path / "tuned" / "s" / "p" / "kd.json"
    assert read(tmp_path, "s", "p", "kd") == winner()
    assert "pareto" not in json.loads(path.read_text())
    before = path.stat().st_mtime_ns
    write(winner(), tmp_path)
    assert path.stat().st_mtime_ns == before
    write(winner(pareto=[{"overrides": {}, "values": [1.0, 2.0]}]), tmp_path)
    assert len(read(tmp_path, "s", "p", "kd").pareto) == 1
    assert read(tmp_path, "s", "p", "none") is None


def test_a_damaged_file_or_a_folder_in_the_way_is_a_sentence(tmp_path: Path) -> None:
    path = write(winner(), tmp_path)
    good = json.loads(path.read_text())
    wrong = {"trials": "3", "value": math.nan, "seeds": ["x"], "values": [], "overrides": {"a": math.inf}}
    spoilt = [json.dumps(good | {name: value}) for name, value in {**wrong, "pair": "q", "bogus": 1}.items()]
    for text in ("{", "[]", '{"suite": "s"}', "[" * 100_000, *spoilt):
        path.write_text(text)
        with pytest.raises(UserError, match="damaged") as raised:
            read(tmp_path, "s", "p", "kd")
        assert len(str(raised.value).splitlines()) == 1
    path.write_bytes(b"\xff\xfe")
    write(winner(), tmp_path)
    assert read(tmp_path, "s", "p", "kd") == winner()
    assert path.with_name("kd.json.damaged").read_bytes() == b"\xff\xfe"
    (tmp_path / "x").write_text("in the way")
    with pytest.raises(UserError, match="cannot write what was tuned"):
        write(winner(), tmp_path / "x")
