"""The picture of a pair with prefixes: every thing in its place, names apart, stable bytes."""

from __future__ import annotations

import dataclasses
import random
from xml.etree import ElementTree

import matplotlib
import pytest
from board_records import KD, NONE, PAIR, heading, ladder, records, reported
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.text import Text

from kdbench.board import picture, picture_prefixes
from kdbench.board.rank import rank
from kdbench.board.rows import Board
from kdbench.result import Result
from kdbench.suite.fields import Reported

CLAIMS = {
    ("p", "steps"): Reported(top1=75.0, macs_percent=63.0, prefixes={1: 58.0}),
    ("p", "teacher"): reported(91.0, "last epoch"),
    ("p", "kd"): reported(70.66, "last epoch"),
}


def given() -> list[Result]:
    return [*records("p", {"none": NONE, "kd": KD, "broken": [x - 60.0 for x in KD]}), *ladder("p", "steps")]


def board(results: list[Result] | None = None, **changes: object) -> Board:
    suite = heading({"p": ["none", "kd", "broken", "steps"]}, **{"reported": CLAIMS, **changes})
    return rank(suite, given() if results is None else results)


def crowded() -> Board:
    """Twenty single students of the same MACs, two ladders, the longest names."""
    rows = {**PAIR, **{f"progressive-bdistil-{i:02}": [x + 0.1 * i for x in KD] for i in range(16)}}
    ladders = [*ladder("p", "progressive"), *ladder("p", "progressive-bdistil", macs=60_000, shift=3.0)]
    cells = {"p": [*rows, "progressive", "progressive-bdistil"]}
    return rank(heading(cells), [*records("p", rows), *ladders])


def drawn(board: Board) -> Axes:
    with style.context(["default", picture.SETTINGS]):
        return picture_prefixes.figure(board.heading, board.tables[0]).axes[0]


def points(axes: Axes, marker: str) -> set[tuple[float, float]]:
    lines = [line for line in axes.lines if line.get_marker() == marker and len(line.get_xdata()) == 1]  # type: ignore[arg-type]
    return {(round(line.get_xdata()[0], 3), round(line.get_ydata()[0], 3)) for line in lines}  # type: ignore[index]


def test_curves_dots_teacher_and_claims_stand_where_the_records_say() -> None:
    axes = drawn(board())
    curve, dashed = (line for line in axes.lines if len(line.get_xdata()) == 3)  # type: ignore[arg-type]
    table = board().tables[0]
    prefixes = table.anytime[0].prefixes
    assert list(curve.get_xdata()) == pytest.approx([10.0, 20.0, 30.0])
    assert list(curve.get_ydata()) == pytest.approx([prefix.score.mean for prefix in prefixes])
    assert list(dashed.get_xdata()) == pytest.approx([12.5, 16.0, 22.0])
    assert points(axes, "D") == {(100.0, 90.0)}
    assert points(axes, "s") == {(5.0, 70.24)}  # none
    assert points(axes, "o") == {(5.0, 71.3)}  # kd
    assert points(axes, "d") == {(10.0, 64.2), (10.0, 66.2)}  # weak2 and weak3 alone
    assert points(axes, "*") == {(100.0, 91.0), (63.0, 75.0), (10.0, 58.0), (5.0, 70.66)}
    texts = {text.get_text() for text in axes.texts}
    assert {"steps", "k=1", "k=2", "weak2 alone", "kd", "none", "teacher", "broken 11.30", "k=3, reported"} <= texts


def test_the_band_goes_from_the_lowest_to_the_highest_seed() -> None:
    (band,) = drawn(board()).collections
    seeds = board().tables[0].anytime[0].prefixes[0].seeds.values()
    at_first = [y for x, y in band.get_paths()[0].vertices if x == pytest.approx(10.0)]
    assert (min(at_first), max(at_first)) == pytest.approx((min(seeds), max(seeds)))


def many() -> Board:
    """Four ladders of the same MACs, whose later roles alone are far below, and two students far below."""
    names = ["progressive", "mpo+progressive", "opdf+progressive", "opdf-strong+progressive"]
    rungs = [result for i, name in enumerate(names) for result in ladder("p", name, shift=0.3 * i)]
    sunk = [
        dataclasses.replace(r, prefixes=[dataclasses.replace(p, alone={**p.alone, "test/top1": p.scores["test/top1"]
        if p.role == "weak1" else 12.0 + i}) for p in r.prefixes])
        for i, r in enumerate(rungs)
    ]  # fmt: skip
    rows = {"none": NONE, "kd": KD, "broken": [x - 60.0 for x in KD], "bad": [x - 55.0 for x in KD]}
    return rank(heading({"p": [*rows, *names]}), [*records("p", rows), *sunk])


def test_names_at_a_shared_triangle_are_those_that_stand_there() -> None:
    axes = drawn(many())
    edge = axes.get_ylim()[0]
    triangles = points(axes, "v")
    assert triangles == {(5.0, round(edge, 3)), (10.0, round(edge, 3))}
    texts = {text.get_text() for text in axes.texts}
    assert "bad 16.30, broken 11.30" in texts
    assert not any("alone" in text for text in texts)  # of several ladders: in the tables
    assert len(texts) <= 12  # the ladders' ends, one name a number of roles, controls, teacher, triangles


def test_every_mark_is_in_the_legend() -> None:
    with style.context(["default", picture.SETTINGS]):
        page = picture_prefixes.figure(board().heading, board().tables[0])
    (legend,) = page.legends
    marks = {handle.get_marker() for handle in legend.legend_handles}  # type: ignore[union-attr]
    assert {line.get_marker() for line in page.axes[0].lines} - {"None", ""} <= marks | {"None", ""}
    words = {text.get_text() for text in legend.get_texts()}
    assert {"first k roles together", "early exit", "a later role alone", "reported by the paper"} <= words


def test_of_many_students_with_the_same_macs_the_controls_and_the_best_are_named() -> None:
    texts = {text.get_text() for text in drawn(crowded()).texts}
    assert {"none", "kd", "dkd", "progressive", "progressive-bdistil"} <= texts
    assert not any(text.startswith("progressive-bdistil-") for text in texts)


@pytest.mark.parametrize(
    "made",
    [board(), crowded(), board([*ladder("p", "steps")]), many()],
    ids=["one", "crowded", "alone", "many"],
)
def test_no_text_leaves_the_page_or_covers_another(made: Board) -> None:
    with style.context(["default", picture.SETTINGS]):
        page = picture_prefixes.figure(made.heading, made.tables[0])
        page.draw_without_rendering()
        texts = [*page.axes[0].texts, *page.texts]
        boxes = [(text.get_text(), Text.get_window_extent(text)) for text in texts]
    for i, (name, box) in enumerate(boxes):
        assert page.bbox.x0 <= box.x0, name
        assert box.x1 <= page.bbox.x1, name
        assert page.bbox.y0 <= box.y0, name
        assert box.y1 <= page.bbox.y1, name
        for other, its in boxes[i + 1 :]:
            wide = min(box.x1, its.x1) - max(box.x0, its.x0)
            tall = min(box.y1, its.y1) - max(box.y0, its.y0)
            assert wide <= 0 or tall <= 2.0, (name, other)


def test_the_longest_names_stay_on_the_page() -> None:
    long = "progressive-" * 6
    suite = heading({long: ["steps"]}, suite=long, track="tuned")
    made = rank(suite, ladder(long, "steps"))
    with style.context(["default", picture.SETTINGS]):
        for page in (picture_prefixes.figure(suite, made.tables[0]), picture.figure(made)):
            page.draw_without_rendering()
            assert all(text.get_window_extent().x1 <= page.bbox.x1 for text in page.texts)


def test_costs_may_be_unknown() -> None:
    results = [dataclasses.replace(result, cost=None) for result in given()]
    made = board(results)
    ElementTree.fromstring(picture_prefixes.svg(made, made.tables[0]))
    one = board([dataclasses.replace(result, teacher=None) for result in given()])
    ElementTree.fromstring(picture_prefixes.svg(one, one.tables[0]))


def test_the_bytes_depend_on_the_records_alone() -> None:
    made = board()
    first = picture_prefixes.svg(made, made.tables[0])
    results = given()
    random.Random(1).shuffle(results)
    assert "dc:date" not in first
    with matplotlib.rc_context({"axes.facecolor": "black", "font.size": 20}):
        assert picture_prefixes.svg(board(results), board(results).tables[0]) == first
