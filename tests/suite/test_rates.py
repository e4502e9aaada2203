"""What is stored of floors at several learning rates: directions, and what counts as current."""

from __future__ import annotations

import statistics
from pathlib import Path

import pytest

from kdbench.suite import rates
from kdbench.suite.load import Suite, load
from kdbench.suite.rates import Floor

SUITE = """
name: little
data: {name: digits}
recipe: {epochs: 2}
pairs:
  p: {teacher: {model: cnn}, student: {model: cnn, options: {widths: [4, 8, 8]}}}
methods: {none: , kd: }
"""


def little(folder: Path, text: str = SUITE) -> Suite:
    path = folder / "s.yaml"
    path.write_text(text)
    return load(path)


def floor(means: dict[str, float], better: str = "up", key: str = "h", apart: float = 1.0) -> Floor:
    """Two seeds, `apart` from each other at every rate alike: gains are the same for both."""
    scores = {factor: (mean - apart / 2, mean + apart / 2) for factor, mean in means.items()}
    return Floor("p", key, "val/x", 0.05, (1000, 1001), scores, better)


def test_the_best_factor_follows_the_direction() -> None:
    scores = {"0.5": 70.0, "1": 71.0, "2": 73.0, "4": 72.0}
    up, down = floor(scores), floor(scores, "down")
    assert (up.best, up.higher, up.left) == (2.0, (2.0, 2.0), 2.0)
    assert (down.best, down.higher, down.left) == (0.5, None, 0.0)
    lower = floor({"1": 5.0, "2": 4.0, "4": 4.0}, "down")
    assert (lower.best, lower.higher) == (2.0, (2.0, 1.0))
    assert floor({"1": 5.0}).higher is None


def test_a_gain_within_its_error_is_chance() -> None:
    noisy = Floor("p", "h", "val/x", 0.05, (1, 2, 3), {"1": (70.0, 71.0, 72.0), "2": (74.0, 70.5, 72.0)})
    assert noisy.gain("2") == pytest.approx(3.5 / 3)
    assert noisy.error("2") == pytest.approx(statistics.stdev([4.0, -0.5, 0.0]) / 3**0.5)
    assert noisy.higher is None
    alone = Floor("p", "h", "val/x", 0.05, (1,), {"1": (70.0,), "2": (80.0,)})
    assert alone.higher is None, "one seed says nothing of chance"


def test_only_floors_of_the_suite_as_it_is_are_current(tmp_path: Path) -> None:
    suite = little(tmp_path)
    assert rates.current(suite, tmp_path, "none") == {}
    made = floor({"1": 70.0, "2": 72.0}, key=rates.hash_of(suite, "p", "none"))
    assert rates.write(tmp_path, "little", [made]) == tmp_path / "recipes" / "little.json"
    assert rates.current(suite, tmp_path, "none") == {"p": made}
    assert rates.current(suite, tmp_path, "gone") == {}
    assert rates.current(little(tmp_path, SUITE.replace("epochs: 2", "epochs: 3")), tmp_path, "none") == {}
    text = rates.path_of(tmp_path, "little").read_text()
    for wrong in ("[{}]", "{", "7", text.replace("1001", "1001, 1002"), text.replace('"1": [', '"1": 70, "x": [')):
        rates.path_of(tmp_path, "little").write_text(wrong)
        assert rates.current(suite, tmp_path, "none") == {}
