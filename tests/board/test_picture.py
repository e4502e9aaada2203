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
from board_records import BAD, DKD, KD, NONE, PAIR, heading, record, records, settings
from matplotlib import style
from matplotlib.text import Text

from kdbench.board import picture
from kdbench.board.rank import rank
from kdbench.board.rows import Board

SCRIPT = """
import sys
from board_records import settings
from kdbench.board.picture import svg
sys.stdout.buffer.write(svg(settings(3)).encode())
"""


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
        strip = picture.figure(rank(heading({"p": list(rows)}), records("p", rows))).axes[0]
    assert strip.get_xlim()[0] > 60.0
    assert "18.24" in [text.get_text() for text in strip.texts]


def test_methods_stand_in_the_board_s_order_and_unranked_last() -> None:
    given = records("p", {"none": NONE, "kd": KD, "dkd": DKD[:4]})
    with style.context(["default", picture.SETTINGS]):
        strip = picture.figure(rank(heading({"p": ["dkd", "none", "kd"]}), given)).axes[0]
    assert [label.get_text() for label in strip.get_yticklabels()] == ["kd", "none", "dkd"]


def test_long_pair_names_make_room_for_the_teacher() -> None:
    pairs = ["vision_mamba_small-weak_ladder", "a" * 60, "short"]
    names = ["none", "kd", "progressive-bdistil-on-top"]
    given = [r for pair in pairs for r in records(pair, dict(zip(names, (NONE, KD, DKD), strict=True)))]
    board = rank(heading(dict.fromkeys(pairs, names)), given)
    with style.context(["default", picture.SETTINGS]):
        drawn = picture.figure(board)
        drawn.draw_without_rendering()
        for axes, pair in zip(drawn.axes, pairs, strict=False):
            title = axes.get_title("left")
            assert title == pair
            (teacher,) = (text for text in axes.texts if text.get_text().startswith("teacher"))
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
