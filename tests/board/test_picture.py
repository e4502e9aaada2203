"""The picture: stable bytes, everything inside the page, names that do not cover each other."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import matplotlib
import pytest
from board_records import BAD, DKD, KD, NONE, PAIR, heading, ladder, record, records, settings
from matplotlib import style
from matplotlib.figure import Figure
from matplotlib.text import Text

from kdbench.board import picture, picture_prefixes
from kdbench.board.palette import palette
from kdbench.board.rank import rank
from kdbench.board.rows import Board

SCRIPT = """
import sys
from board_records import settings
from kdbench.board.picture import svg
sys.stdout.buffer.write(svg(settings(3)).encode())
"""


def of(label: str, rows: dict[str, list[float]]) -> str:
    """The colour of a method."""
    return palette(rows, "none", "kd")[label]


def legend(drawn: Figure) -> list[str]:
    (found,) = drawn.legends
    return [text.get_text() for text in found.get_texts()]


def crowded() -> Board:
    """Several pairs whose students and teachers have nearly the same MACs and accuracy."""
    pairs = [f"resnet{i}-shufflenet{i}" for i in range(6)]
    given = [
        record(pair, label, seed, top1 + 0.02 * i, macs=40_000 + 100 * i)
        for i, pair in enumerate(pairs)
        for label, row in PAIR.items()
        for seed, top1 in enumerate(row)
    ]
    return rank(heading({pair: list(PAIR) for pair in pairs}), given)


def test_it_is_svg_without_a_date() -> None:
    text = picture.svg(settings(2))
    assert ElementTree.fromstring(text).tag == "{http://www.w3.org/2000/svg}svg"
    assert "dc:date" not in text
    assert all(line == line.rstrip() for line in text.splitlines())


def test_the_bytes_are_the_same_in_another_process_and_under_other_settings(tmp_path: Path) -> None:
    (tmp_path / "matplotlibrc").write_text("font.size: 20\nsvg.fonttype: none\nlines.linewidth: 9\n")
    here = picture.svg(settings(3))
    environment = {**os.environ, "PYTHONHASHSEED": "7", "MATPLOTLIBRC": str(tmp_path / "matplotlibrc")}
    environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[1]), str(Path(__file__).parents[2])])
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, env=environment, check=True)
    assert done.stdout.decode() == here
    with matplotlib.rc_context({"axes.facecolor": "black"}):
        assert picture.svg(settings(3)) == here


def test_the_bytes_do_not_depend_on_the_order_of_records() -> None:
    given = records("p", PAIR)
    first = picture.svg(rank(heading({"p": list(PAIR)}), given))
    random.Random(0).shuffle(given)
    assert picture.svg(rank(heading({"p": list(PAIR)}), given)) == first
    assert picture.svg(rank(heading({"p": list(PAIR)}), records("p", {**PAIR, "dkd": BAD}))) != first


def wordy() -> Board:
    """A teacher with many options."""
    options = ", ".join(f"option_{i}={i}" for i in range(9))
    cells = heading({"p": list(PAIR)}, roles={"p": {"teacher": f"vit_tiny_patch16_224({options})"}})
    return rank(cells, records("p", PAIR))


@pytest.mark.parametrize(
    "board",
    [settings(1), settings(2), settings(7), crowded(), wordy()],
    ids=["1", "2", "7", "crowded", "wordy"],
)
def test_no_text_leaves_the_page_or_covers_another(board: Board) -> None:
    with style.context(["default", picture.SETTINGS]):
        drawn = picture.figure(board)
        drawn.draw_without_rendering()
        texts = [t for axes in drawn.axes for t in (*axes.texts, *axes.get_yticklabels(), axes.title) if t.get_text()]
        # Text's own method: an Annotation's includes its leader line
        boxes = [(text.get_text(), Text.get_window_extent(text)) for text in (*texts, *drawn.texts)]
    for name, box in boxes:
        assert box.x0 >= 0, name
        assert box.y0 >= 0, name
        assert box.x1 <= drawn.bbox.x1, name
        assert box.y1 <= drawn.bbox.y1, name
    for i, (name, box) in enumerate(boxes):
        for other, its in boxes[i + 1 :]:
            wide = min(box.x1, its.x1) - max(box.x0, its.x0)
            tall = min(box.y1, its.y1) - max(box.y0, its.y0)
            assert wide <= 0 or tall <= 2.0, (name, other)  # points of slack for ascenders


def test_a_row_far_below_does_not_stretch_its_strip() -> None:
    rows = {**PAIR, "broken": [x - 50.0 for x in BAD]}
    with style.context(["default", picture.SETTINGS]):
        drawn = picture.figure(rank(heading({"p": list(rows)}), records("p", rows)))
    gains, strip = drawn.axes
    assert strip.get_xlim()[0] > 60.0
    assert gains.get_xlim()[0] > -20.0
    assert "18.24" in [text.get_text() for text in strip.texts]
    for axes in (gains, strip):
        (edge,) = (line for line in axes.lines if line.get_marker() == "<")
        assert (edge.get_markerfacecolor(), edge.get_markeredgecolor()) == ("white", of("broken", rows))
    assert "below the scale" in legend(drawn)


def test_methods_stand_in_the_board_s_order_and_unranked_last() -> None:
    given = records("p", {"none": NONE, "kd": KD, "dkd": DKD[:4]})
    with style.context(["default", picture.SETTINGS]):
        strip = picture.figure(rank(heading({"p": ["dkd", "none", "kd"]}), given)).axes[0]
    assert [label.get_text() for label in strip.get_yticklabels()] == ["kd", "none", "dkd"]


def test_the_main_panel_shows_what_the_claims_test() -> None:
    board = rank(heading({"p": list(PAIR)}), records("p", PAIR))
    with style.context(["default", picture.SETTINGS]):
        drawn = picture.figure(board)
    gains, _ = drawn.axes
    assert gains.get_xlabel() == "gain over kd in points, paired by seed"
    for y, row in enumerate(board.tables[0].rows):
        points = [line for line in gains.lines if len(line.get_xdata()) == 1 and line.get_ydata()[0] == y]  # type: ignore[arg-type,index]
        assert points[0].get_xdata()[0] == pytest.approx(row.over_reference.mean if row.over_reference else 0.0)  # type: ignore[index]
        (bar,) = (line for line in gains.lines if list(line.get_ydata()) == [y, y] and line.get_linewidth() == 1.7)  # type: ignore[arg-type]
        low, high = bar.get_xdata()  # type: ignore[misc]
        assert high - low == pytest.approx(2 * (row.over_reference.half or 0.0) if row.over_reference else 0.0)
    assert {"better than kd", "worse than kd", "kd (reference)", "none (floor)", "teacher", "one seed"} <= set(
        legend(drawn)
    )


def test_costs_are_drawn_only_where_they_differ_and_no_row_is_dropped() -> None:
    rows = {**PAIR, "broken": [x - 50.0 for x in BAD]}
    big = [record("p", "big", seed, KD[seed] + 5.0, macs=160_000) for seed in range(5)]
    with style.context(["default", picture.SETTINGS]):
        plain = picture.figure(rank(heading({"p": list(rows)}), records("p", rows)))
        costly = picture.figure(rank(heading({"p": [*rows, "big"]}), [*records("p", rows), *big]))
    assert len(plain.axes) == 2
    panel = costly.axes[-1]
    assert panel.get_xlabel() == "MACs of one image (log scale)"
    texts = {text.get_text() for text in panel.texts}
    assert {"big", "broken 18.24"} <= texts
    dots = [line for line in panel.lines if len(line.get_xdata()) == 1]  # type: ignore[arg-type]
    assert len(dots) == len(rows) + 2  # big, and the teacher
    assert {"below the scale of costs", "unranked"} <= set(legend(costly))


def test_a_method_has_one_colour_in_every_picture() -> None:
    steps = ladder("p", "steps")
    board = rank(
        heading({"p": ["none", "dkd", "steps", "kd"]}), [*records("p", {"none": NONE, "kd": KD, "dkd": DKD}), *steps]
    )
    with style.context(["default", picture.SETTINGS]):
        both = picture.figure(board), picture_prefixes.figure(board.heading, board.tables[0])
    hues = palette(["none", "dkd", "steps", "kd"], "none", "kd")
    assert len(set(hues.values())) == 4
    for drawn in both:
        used = {line.get_markeredgecolor() for axes in drawn.axes for line in axes.lines if line.get_marker() in "oXs"}
        assert set(hues.values()) <= used


def test_long_pair_names_make_room_for_the_teacher() -> None:
    pairs = ["vision_mamba_small-weak_ladder", "a" * 60, "short"]
    names = ["none", "kd", "progressive-bdistil-on-top"]
    given = [r for pair in pairs for r in records(pair, dict(zip(names, (NONE, KD, DKD), strict=True)))]
    board = rank(heading(dict.fromkeys(pairs, names)), given)
    with style.context(["default", picture.SETTINGS]):
        drawn = picture.figure(board)
        drawn.draw_without_rendering()
        for axes, strip, pair in zip(drawn.axes[::2], drawn.axes[1::2], pairs, strict=True):
            title = axes.get_title("left")
            assert title == pair
            (teacher,) = (text for text in strip.texts if text.get_text().startswith("teacher"))
            box = axes._left_title.get_window_extent()  # type: ignore[attr-defined]
            assert box.x0 >= 0
            assert box.x1 < teacher.get_window_extent().x0


def test_a_board_without_results_is_still_a_picture() -> None:
    ElementTree.fromstring(picture.svg(rank(heading({"p": ["none", "kd"]}), [])))


@pytest.mark.filterwarnings("ignore:Glyph")
def test_names_are_neither_formulas_nor_markup() -> None:
    name = "a$\\frac{1}$ <script> --> \x1b & \ufffe"
    found = records("p", {"none": [70.0] * 5, "kd": [71.0] * 5})
    roles = {"p": {"teacher": name, "student": name}}
    text = picture.svg(rank(heading({"p": ["none", "kd"]}, roles=roles), found))
    ElementTree.fromstring(text)
    assert "<script>" not in re.sub("<!--.*?-->", "", text, flags=re.DOTALL)
