"""Records -> Board: pairing, ranking, claims, and what keeps a row from being ranked."""

from __future__ import annotations

import dataclasses
import random
from typing import Any

import numpy as np
import pytest
from board_records import BAD, DKD, KD, NONE, PAIR, TEACHER, heading, record, records, reported, settings
from scipy import stats

from kdbench.board.rank import rank
from kdbench.board.rows import BETTER, NOT_SEPARABLE, WORSE, Row, Table
from kdbench.result import Result


def table(rows: dict[str, list[float]], seeds: int = 5) -> Table:
    return rank(heading({"p": list(rows)}, seeds), records("p", rows)).tables[0]


def row(found: Table, label: str) -> Row:
    made = found.row(label)
    assert made is not None
    return made


def test_gains_are_means_of_paired_differences_with_their_t_interval() -> None:
    dkd = row(table(PAIR), "dkd")
    assert dkd.gain is not None
    assert dkd.over_reference is not None
    assert dkd.gain.mean == pytest.approx(np.mean(np.subtract(DKD, NONE)))
    low, high = stats.ttest_rel(DKD, KD).confidence_interval()
    assert (
        dkd.over_reference.mean - (dkd.over_reference.half or 0),
        dkd.over_reference.mean + (dkd.over_reference.half or 0),
    ) == pytest.approx((low, high))


def test_pairing_is_by_seed_not_by_order() -> None:
    shuffled = [record("p", "kd", seed, KD[seed]) for seed in (3, 1, 4, 0, 2)]
    found = rank(heading({"p": ["none", "kd"]}), [*shuffled, *records("p", {"none": NONE})]).tables[0]
    gain = row(found, "kd").gain
    assert gain is not None
    assert gain.half == pytest.approx(row(table({"none": NONE, "kd": KD}), "kd").gain.half)  # type: ignore[union-attr]


def test_rows_are_sorted_and_numbered_by_gain() -> None:
    found = table(PAIR)
    assert [(r.label, r.place) for r in found.rows] == [("dkd", 1), ("kd", 2), ("none", 3), ("bad", 4)]
    gains = [r.gain.mean if r.gain else 0.0 for r in found.rows]
    assert gains == sorted(gains, reverse=True)


def test_equal_rows_share_a_place_in_the_suite_s_order() -> None:
    found = table({"none": NONE, "b": KD, "a": KD, "c": BAD})
    assert [(r.label, r.place) for r in found.rows] == [("b", 1), ("a", 1), ("none", 3), ("c", 4)]


def test_claims_follow_holm_over_the_pair() -> None:
    near = [71.3, 71.8, 71.0, 71.2, 71.5]
    found = table({**PAIR, "near": near})
    assert {r.label: r.claim for r in found.rows} == {
        "dkd": BETTER, "kd": "", "near": NOT_SEPARABLE, "none": WORSE, "bad": WORSE
    }  # fmt: skip
    others = {"none": NONE, "bad": BAD, "dkd": DKD, "near": near}
    raw = {label: stats.ttest_rel(values, KD).pvalue for label, values in others.items()}
    largest = max(raw, key=lambda label: raw[label])
    smallest = min(raw, key=lambda label: raw[label])
    assert largest == "near"
    assert row(found, "near").p_holm == pytest.approx(raw["near"])
    assert row(found, smallest).p_holm == pytest.approx(4 * raw[smallest])


def test_the_same_row_loses_its_claim_among_many() -> None:
    edge = [a + d for a, d in zip(KD, [0.1, 0.9, 0.5, 0.8, 0.2], strict=True)]
    p = stats.ttest_rel(edge, KD).pvalue
    assert 0.05 / 8 < p < 0.05
    noise = {f"m{i}": [x + d for x, d in zip(KD, [0.3, -0.3, 0.2, -0.2, 0.01 * i], strict=True)] for i in range(1, 8)}
    assert row(table({"kd": KD, "edge": edge}), "edge").claim == BETTER
    assert row(table({"kd": KD, "edge": edge, **noise}), "edge").claim == NOT_SEPARABLE


def test_without_spread_nothing_is_claimed() -> None:
    shifted = row(table({"none": NONE, "kd": KD, "up": [x + 1.0 for x in KD]}), "up")
    assert shifted.over_reference is not None
    assert (shifted.over_reference.half, shifted.claim) == (None, NOT_SEPARABLE)


def test_the_order_of_records_does_not_matter() -> None:
    suite = heading({"p": list(PAIR), "q": list(PAIR)})
    given = records("p", PAIR) + records("q", {label: values[::-1] for label, values in PAIR.items()})
    first = rank(suite, given)
    for seed in range(5):
        random.Random(seed).shuffle(given)
        assert rank(suite, given) == first


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"status": "failed", "reason": "RuntimeError: no"}, "failed: RuntimeError: no"),
        ({"status": "diverged", "reason": "the loss is NaN"}, "diverged: the loss is NaN"),
        ({"status": "skipped", "reason": "no such tap"}, "skipped: no such tap"),
        ({"scores": {"test/top1": None}}, "finished without a test accuracy"),
        (None, "no result yet"),
    ],
)
def test_a_row_with_a_missing_cell_is_shown_unranked_with_its_sentence(
    changes: dict[str, Any] | None, words: str
) -> None:
    given = [r for r in records("p", PAIR) if (r.method, r.seed) != ("dkd", 3)]
    if changes is not None:
        given.append(record("p", "dkd", 3, 99.0, **changes))
    found = rank(heading({"p": list(PAIR)}), given).tables[0]
    dkd = found.rows[-1]
    assert (dkd.label, dkd.place, dkd.claim, dkd.why_unranked) == ("dkd", None, "", "4 of 5 seeds")
    assert dkd.troubles == (((3,), words),)
    assert sorted(dkd.seeds) == [0, 1, 2, 4]
    assert [r.place for r in found.rows] == [1, 2, 3, None]


def test_a_cell_without_any_result_is_a_row() -> None:
    found = rank(heading({"p": ["none", "kd"]}, 3), records("p", {"none": NONE[:3]})).tables[0]
    assert row(found, "kd").troubles == (((0, 1, 2), "no result yet"),)
    assert row(found, "kd").score is None


@pytest.mark.parametrize(
    ("seeds", "ranked", "preliminary"), [(2, False, False), (3, True, True), (4, True, True), (5, True, False)]
)
def test_few_seeds(seeds: int, ranked: bool, preliminary: bool) -> None:
    kd = row(table({label: values[:seeds] for label, values in PAIR.items()}, seeds), "kd")
    assert (kd.ranked, kd.preliminary) == (ranked, preliminary)
    assert kd.why_unranked == ("" if ranked else "only 2 seeds")


def test_no_claim_is_made_against_an_incomplete_reference() -> None:
    given = [r for r in records("p", PAIR) if (r.method, r.seed) != ("kd", 0)]
    found = rank(heading({"p": list(PAIR)}), given).tables[0]
    dkd = row(found, "dkd")
    assert dkd.over_reference is not None
    assert (dkd.place, dkd.claim, dkd.over_reference.n) == (1, "", 4)


def test_recovered_gap_and_its_blank() -> None:
    assert row(table(PAIR), "kd").recovered == pytest.approx((np.mean(KD) - np.mean(NONE)) / (90.0 - np.mean(NONE)))
    assert row(table(PAIR), "none").recovered is None
    at_the_top = {"none": [x + 19.5 for x in NONE], "kd": [x + 19.5 for x in KD]}  # floor 89.74, teacher 90
    assert row(table(at_the_top), "kd").recovered is None
    assert row(table(at_the_top), "kd").gain is not None


def test_another_teacher_raises_the_alarm_and_unranks_the_pair() -> None:
    other = dataclasses.replace(TEACHER, sha256="cd" * 32)
    given = records("p", PAIR)
    given[7] = dataclasses.replace(given[7], teacher=other)
    found = rank(heading({"p": list(PAIR)}), given).tables[0]
    assert len(found.alarms) == 1
    assert "2 different teachers" in found.alarms[0]
    assert "cdcdcdcdcdcd: kd" in found.alarms[0]
    assert all(r.place is None and r.gain is None and r.over_reference is None and r.claim == "" for r in found.rows)
    assert {r.why_unranked for r in found.rows} == {"not comparable"}


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"job": {"data": {"fingerprint": "beef"}, "recipe": {"epochs": 30}}}, "data"),
        ({"job": {"data": {"fingerprint": "f00d"}, "recipe": {"epochs": 31}}}, "recipes"),
        ({"provenance": {"split": "9999"}}, "splits"),
    ],
)
def test_other_conditions_raise_the_alarm(change: dict[str, Any], what: str) -> None:
    given = records("p", PAIR)
    given[0] = dataclasses.replace(given[0], **change)
    alarms = rank(heading({"p": list(PAIR)}), given).tables[0].alarms
    assert len(alarms) == 1
    assert what in alarms[0]


def test_a_batch_that_is_smaller_than_asked_for_is_said() -> None:
    given = [dataclasses.replace(r, cost=dataclasses.replace(r.cost, batch=239)) for r in records("p", PAIR) if r.cost]
    assert len(given) == len(records("p", PAIR))
    (warning,) = rank(heading({"p": list(PAIR)}), given).tables[0].warnings
    assert warning.startswith("Batches are of 239 images, all there are")
    assert not rank(heading({"p": list(PAIR)}), records("p", PAIR)).tables[0].warnings


def test_two_scan_backends_in_one_pair_raise_the_alarm_and_networks_without_a_scan_do_not() -> None:
    plain, *others = records("p", PAIR)
    native = [dataclasses.replace(r, provenance={**r.provenance, "scan": "native"}) for r in others]
    assert not rank(heading({"p": list(PAIR)}), [plain, *native]).tables[0].alarms
    other = dataclasses.replace(plain, provenance={**plain.provenance, "scan": "torch"})
    (alarm,) = rank(heading({"p": list(PAIR)}), [other, *native]).tables[0].alarms
    assert "2 different scan backends" in alarm


def test_incomparable_foreign_and_surplus_results_never_enter() -> None:
    suite = heading({"p": ["none", "kd"]})
    given = records("p", {"none": NONE, "kd": KD})
    strangers = [
        record("p", "kd", 0, 99.0, comparable=False, key="short"),
        record("p", "kd", 1000, 99.0),
        record("q", "kd", 0, 99.0),
        record("p", "other", 0, 99.0),
    ]
    assert rank(suite, [*strangers, *given]) == rank(suite, given)


def test_two_results_for_one_cell_are_a_mistake() -> None:
    twice = records("p", {"kd": KD})
    with pytest.raises(ValueError, match="two results for p/kd seed 0"):
        rank(heading({"p": ["kd"]}), [*twice, dataclasses.replace(twice[0], key="other")])
    assert rank(heading({"p": ["kd"]}), [*twice, twice[0]]).finished == 5


def test_relative_time_is_the_median_ratio_on_the_same_machine() -> None:
    given = [record("p", "none", seed, NONE[seed], seconds=10.0 + seed) for seed in range(5)]
    given += [record("p", "kd", seed, KD[seed], seconds=(10.0 + seed) * (2.0 if seed else 50.0)) for seed in range(5)]
    elsewhere = {"device_name": "GPU", "split": "0123"}
    given += [record("p", "dkd", seed, DKD[seed], provenance=elsewhere) for seed in range(5)]
    found = rank(heading({"p": ["none", "kd", "dkd"]}), given)
    assert [row(found.tables[0], label).relative_time for label in ("none", "kd", "dkd")] == [1.0, 2.0, None]
    assert len(found.machines) == 2


def test_relative_time_on_a_cpu_is_the_processor_s_where_both_rows_have_it() -> None:
    def made(label: str, device: str, seconds: float, cpu: float) -> Result:
        one = record("p", label, 0, 50.0, seconds=seconds, provenance={"device": device, "split": "0123"})
        return dataclasses.replace(one, cost=dataclasses.replace(one.cost, cpu_seconds=cpu))

    def ratio(device: str, *cpu: float) -> float | None:
        given = [made("none", device, 10.0, cpu[0]), made("kd", device, 80.0, cpu[1])]
        return row(rank(heading({"p": ["none", "kd"]}, seeds=1), given).tables[0], "kd").relative_time

    assert ratio("cpu", 9.0, 18.0) == 2.0
    assert ratio("cpu", 0.0, 18.0) == 8.0  # an older record has none
    assert ratio("cuda", 9.0, 18.0) == 8.0  # its processor only waits


def test_metrics_are_means_over_seeds_and_blank_where_one_lacks_them() -> None:
    given = [record("p", "kd", s, KD[s], scores={"test/top1": KD[s], "test/nll": 0.1 * s}) for s in range(5)]
    given[2] = dataclasses.replace(given[2], scores={"test/top1": KD[2], "test/nll": None})
    assert row(rank(heading({"p": ["kd"]}), given).tables[0], "kd").metrics == {"top1": pytest.approx(np.mean(KD))}


def test_reported_numbers_find_their_rows() -> None:
    claims = {("p", "kd"): reported(70.66, "best test epoch"), ("p", "teacher"): reported(91.0, "last epoch")}
    found = rank(heading({"p": ["none", "kd"]}, reported=claims), records("p", {"none": NONE, "kd": KD})).tables[0]
    assert row(found, "kd").reported == claims["p", "kd"]
    assert row(found, "none").reported is None
    assert found.teacher is not None
    assert found.teacher.reported == claims["p", "teacher"]


def test_floor_and_reference_are_those_that_the_suite_declares() -> None:
    rows = {"plain": NONE, "soft": KD, "none": DKD, "kd": BAD}
    suite = heading({"p": list(rows)}, floor="plain", reference="soft")
    found = rank(suite, records("p", rows)).tables[0]
    own = rank(heading({"p": list(PAIR)}), records("p", PAIR)).tables[0]
    for label, usual in (("none", "dkd"), ("kd", "bad"), ("soft", "kd"), ("plain", "none")):
        assert (row(found, label).gain, row(found, label).over_reference) == (
            row(own, usual).gain,
            row(own, usual).over_reference,
        )
    assert suite.claimed(row(found, "none")) == "better than soft"
    assert suite.claimed(row(found, "plain")) == "worse than soft"


def test_better_than_the_reference_but_not_than_the_floor_says_both() -> None:
    rows = {"none": [x + 3.0 for x in DKD], "kd": KD, "dkd": DKD}
    board = rank(heading({"p": list(rows)}), records("p", rows))
    dkd = row(board.tables[0], "dkd")
    assert dkd.claim == BETTER
    assert not dkd.sound
    assert board.heading.claimed(dkd) == "better than kd, but not separable from none"  # always 3 below: no spread
    assert "dkd is better than kd, but not separable from none" in board.tables[0].warnings
    usual = row(table(PAIR), "dkd")
    assert heading({"p": list(PAIR)}).claimed(usual) == "better than kd"
    assert not table(PAIR).warnings


def test_a_teacher_below_the_floor_is_told() -> None:
    above = {"none": [x + 22.0 for x in NONE], "kd": KD}
    (warning, *_) = table(above).warnings
    assert warning.startswith("The teacher (90.00) is below the floor none (92.24)")


def test_rows_that_are_the_same_run_to_six_digits_share_a_sentence() -> None:
    nearly = [x + 1e-6 for x in KD]
    assert table({**PAIR, "again": nearly}).warnings == (
        "kd and again are the same run to six digits, seed by seed: what they differ in had no effect",
    )
    assert not table({**PAIR, "again": [*KD[:4], KD[4] + 0.01]}).warnings
    other = [record("p", "again", s, KD[s], scores={"test/top1": KD[s], "test/nll": 0.51}) for s in range(5)]
    assert not rank(heading({"p": [*PAIR, "again"]}), [*records("p", PAIR), *other]).tables[0].warnings


@pytest.mark.parametrize(("macs", "ranked"), [(40_000, True), (42_000, True), (42_100, False), (670_000, False)])
def test_a_costlier_student_is_of_another_class(macs: int, ranked: bool) -> None:
    big = [record("p", "big", seed, 88.0 + 0.1 * seed, macs=macs) for seed in range(5)]
    found = rank(heading({"p": [*PAIR, "big"]}), [*records("p", PAIR), *big]).tables[0]
    assert (row(found, "big").place == 1) is ranked
    if not ranked:
        words = "1.05×" if macs < 50_000 else "17×"
        assert row(found, "big").why_unranked == f"costs {words} the plain student's MACs"
        assert row(found, "big").gain is not None
        assert [r.label for r in found.rows] == ["dkd", "kd", "none", "bad", "big"]
        without = table(PAIR)
        assert [r.p_holm for r in found.rows[:4]] == [r.p_holm for r in without.rows]  # no part of the family


def test_a_partial_floor_crowns_nobody() -> None:
    """none at seeds 0 and 4 only, the others at 0 to 4."""
    given = [r for r in records("p", PAIR) if r.method != "none" or r.seed in (0, 4)]
    found = rank(heading({"p": list(PAIR)}), given).tables[0]
    dkd = row(found, "dkd")
    assert dkd.gain is not None
    assert (dkd.n, dkd.gain.n, dkd.recovered) == (5, 2, None)
    assert found.leader is None
    assert table(PAIR).leader == row(table(PAIR), "dkd")
    late = [r for r in records("p", PAIR) if (r.method, r.seed) != ("bad", 4)]
    assert rank(heading({"p": list(PAIR)}), late).tables[0].leader is None  # whoever waits might be first
    failed = [*late, record("p", "bad", 4, 0.0, status="diverged", reason="NaN", scores={})]
    assert rank(heading({"p": list(PAIR)}), failed).tables[0].leader is not None  # a failure is a result


def test_across_settings() -> None:
    across = settings(6).across
    assert across is not None
    assert [r.label for r in across.rows] == ["dkd", "kd", "none", "bad"]
    assert [r.mean_rank for r in across.rows] == [1.0, 2.0, 3.0, 4.0]
    assert across.left_out == ("sp",)
    gains = np.concatenate([np.subtract(DKD, NONE) + 0.1 * i for i in range(6)])
    dkd = across.rows[0]
    assert dkd.iqm is not None
    assert dkd.iqm[0] == pytest.approx(stats.trim_mean(gains, 0.25))
    assert dkd.iqm[1] <= dkd.iqm[0] <= dkd.iqm[2]
    assert dkd.p_holm == pytest.approx(3 * 2 / 2**6)  # six wins of six, three methods compared with kd
    assert across.rows[1].p_holm is None


def test_too_few_settings_give_no_p_value_and_one_gives_no_section() -> None:
    few = settings(5).across
    assert few is not None
    assert [r.p_holm for r in few.rows] == [None] * 4
    assert settings(1).across is None


def test_a_pair_with_an_alarm_is_no_setting() -> None:
    given = [r for pair in ("p", "q", "r") for r in records(pair, PAIR)]
    given[0] = dataclasses.replace(given[0], teacher=dataclasses.replace(TEACHER, sha256="cd" * 32))
    across = rank(heading({pair: list(PAIR) for pair in ("p", "q", "r")}), given).across
    assert across is not None
    assert across.settings == ("q", "r")


def test_a_suite_without_controls_is_ranked_by_accuracy() -> None:
    found = table({"dist": KD, "dkd": DKD})
    assert [(r.label, r.place) for r in found.rows] == [("dkd", 1), ("dist", 2)]
    assert all((r.gain, r.over_reference, r.claim, r.recovered) == (None, None, "", None) for r in found.rows)
