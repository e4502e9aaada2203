"""Records -> prefixes and exits: any method whose records have them, paired with what the paper reports."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from board_records import KD, NONE, heading, ladder, record, records
from scipy import stats

from kdbench.board.prefixes import anytime
from kdbench.board.rank import rank
from kdbench.board.rows import Anytime
from kdbench.result import Exit
from kdbench.suite.fields import Reported

CLAIM = Reported(top1=98.0, macs_percent=63.0, prefixes={1: 72.0}, source="A paper, 2025")

HEADING = heading({"p": ["steps"]})


def made(reported: Reported | None = None, **changes: object) -> Anytime:
    results = {result.seed: dataclasses.replace(result, **changes) for result in ladder("p", "steps")}  # type: ignore[arg-type]
    found = anytime(HEADING, "steps", results, reported)
    assert found is not None
    return found


def test_a_prefix_is_a_mean_over_seeds_with_its_t_interval() -> None:
    second = made().prefixes[1]
    given = [result.prefixes[1].scores["test/top1"] for result in ladder("p", "steps")]
    low, high = stats.t.interval(0.95, 4, np.mean(given), stats.sem(given))
    assert (second.k, second.role, list(second.seeds.values())) == (2, "weak2", given)
    assert second.score.mean == pytest.approx(np.mean(given))
    assert second.score.half == pytest.approx((high - low) / 2)
    assert second.metrics == pytest.approx({"nll": 0.8, "ece": 0.05})


def test_costs_are_cumulative_and_shares_of_the_teacher_s() -> None:
    prefixes = made().prefixes
    assert [prefix.macs for prefix in prefixes] == [80_000, 160_000, 240_000]
    assert [prefix.parameters for prefix in prefixes] == [1000, 2000, 3000]
    assert [prefix.share for prefix in prefixes] == pytest.approx([0.1, 0.2, 0.3])  # of 800k
    assert [prefix.alone_share for prefix in prefixes] == pytest.approx([0.1, 0.1, 0.1])
    assert prefixes[0].alone == prefixes[0].score  # the first is alone


def test_reported_numbers_find_their_prefix() -> None:
    assert [prefix.reported for prefix in made(CLAIM).prefixes] == [72.0, None, 98.0]
    assert [prefix.reported_share for prefix in made(CLAIM).prefixes] == [None, None, 0.63]
    whole = CLAIM.model_copy(update={"prefixes": {3: 97.0}})
    assert made(whole).prefixes[2].reported == 97.0
    assert {prefix.reported for prefix in made(None).prefixes} == {None}


def test_exits_join_the_seeds_by_threshold() -> None:
    exits = made().exits
    assert [leave.thresholds for leave in exits] == [(0.5, 0.5), (0.8, 0.8), (0.95, 0.95)]
    assert [leave.share for leave in exits] == pytest.approx([0.125, 0.16, 0.22])
    assert exits[0].leaving == pytest.approx((0.8, 0.15, 0.05))
    assert exits[2].val_score == pytest.approx(exits[2].score.mean - 1.0)


def test_exits_of_seeds_with_thresholds_of_their_own() -> None:
    results = {result.seed: result for result in ladder("p", "steps", 2)}
    first, second = results[0].exits[:2]
    results[1] = dataclasses.replace(results[1], exits=[first, dataclasses.replace(second, threshold=0.7)])
    results[0] = dataclasses.replace(results[0], exits=[first, second])
    found = anytime(HEADING, "steps", results, None)
    assert found is not None
    assert [leave.thresholds for leave in found.exits] == [(0.5, 0.5), (0.7, 0.8)]
    results[0] = dataclasses.replace(results[0], exits=[first])  # another number of them: those in common
    found = anytime(HEADING, "steps", results, None)
    assert found is not None
    assert [leave.thresholds for leave in found.exits] == [(0.5, 0.5)]
    results[0] = dataclasses.replace(results[0], exits=[])
    found = anytime(HEADING, "steps", results, None)
    assert found is not None
    assert found.exits == ()


def test_missing_numbers_are_left_out() -> None:
    results = {result.seed: result for result in ladder("p", "steps", 3)}
    broken = results[1].prefixes
    broken[1] = dataclasses.replace(broken[1], scores={"test/top1": None}, alone={})  # type: ignore[dict-item]
    found = anytime(HEADING, "steps", results, None)
    assert found is not None
    assert sorted(found.prefixes[1].seeds) == [0, 2]
    assert found.prefixes[1].metrics == {}
    assert found.prefixes[1].alone is not None
    assert found.prefixes[1].alone.n == 2
    without = {seed: dataclasses.replace(result, cost=None) for seed, result in results.items()}
    costless = anytime(HEADING, "steps", without, None)
    assert costless is not None
    assert {prefix.share for prefix in costless.prefixes} == {None}
    assert {leave.share for leave in costless.exits} == {None}
    no_test = [Exit(0.5, {"val/top1": 1.0}, {"val": 1.0}, [])]
    assert made(exits=no_test).exits == ()


def test_only_finished_results_with_prefixes_count() -> None:
    assert anytime(HEADING, "kd", {0: record("p", "kd", 0, 70.0)}, None) is None
    failed = {result.seed: dataclasses.replace(result, status="failed") for result in ladder("p", "steps")}
    assert anytime(HEADING, "steps", failed, None) is None


def test_every_method_with_prefixes_is_in_its_table_in_the_order_of_the_rows() -> None:
    given = [
        *records("p", {"none": NONE, "kd": KD}),
        *ladder("p", "a", macs=10_000),
        *ladder("p", "b", macs=10_000, shift=2.0),
    ]
    suite = heading({"p": ["none", "kd", "a", "b"]}, reported={("p", "b"): CLAIM}, notes={"p": "ours"})
    table = rank(suite, given).tables[0]
    assert [found.label for found in table.anytime] == ["b", "a"]
    assert table.anytime[0].prefixes[0].reported == 72.0
    assert table.anytime[1].prefixes[0].reported is None
    assert table.note == "ours"
    row = table.row("b")
    assert row is not None
    assert row.score == table.anytime[0].prefixes[-1].score
