"""Pages and pictures of studies: complete, deterministic, and right about their numbers."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from kdbench.errors import UserError
from kdbench.suite.cell import cell_of, tune_of
from kdbench.suite.load import load
from kdbench.tune import report
from kdbench.tune.setup import study_of
from kdbench.tune.slots import Outcome
from kdbench.tune.status import look
from kdbench.tune.storage import connect

SUITE = """
name: little
data: {name: digits}
recipe: {epochs: 2}
pairs:
  p: {teacher: {model: cnn}, student: {model: cnn, options: {widths: [4, 8, 8]}}}
methods: {none: , kd: , label_smoothing: }
tune: {trials: 12}
"""


def value(overrides) -> float:
    """Only the temperature matters."""
    return 90.0 - abs(overrides.get("temperature", 4.0) - 6.0) + overrides.get("epsilon", 0.0)


@pytest.fixture(scope="module")
def tuned(tmp_path_factory) -> tuple[Path, str]:
    """A suite with studies of made-up trials, one of which failed."""
    folder = tmp_path_factory.mktemp("report")
    path, url = folder / "s.yaml", f"sqlite:///{folder / 'tune.db'}"
    path.write_text(SUITE)
    suite, storage = load(path), connect(url)
    for pair, label in suite.cells:
        cell = cell_of(suite, pair, label)
        study = study_of(cell, tune_of(suite), storage, "f")
        study.refresh()
        while (claim := study.claim(cell.trials(12))) is not None:
            failed = claim.slot == 5
            seconds = {f"{label}-{claim.slot}": 1.5}
            worth = (value(claim.overrides),)
            claim.tell(
                Outcome("failed", reason="a|b", seconds=seconds) if failed else Outcome("ok", worth, seconds=seconds)
            )
            study.refresh()
    return path, url


def test_every_study_gets_a_page_and_a_picture_and_every_pair_its_curves(tuned, tmp_path) -> None:
    path, url = tuned
    paths = report.write(path, url, tmp_path)
    folder = tmp_path / "tuned" / "little"
    assert paths[0] == folder / "README.md"
    names = {str(found.relative_to(folder)) for found in paths[1:]}
    assert names == {f"p/{label}.{kind}" for label in ("none", "kd", "label_smoothing") for kind in ("md", "svg")} | {
        "p/expected-best.svg"
    }
    for found in paths:
        if found.suffix == ".svg":
            assert ET.fromstring(found.read_text()).tag.endswith("svg")
    index = paths[0].read_text()
    for label in ("none", "kd", "label_smoothing"):
        assert f"[{label}](p/{label}.md)" in index
    assert "nothing to tune" in index
    page = (folder / "p" / "kd.md").read_text()
    assert "12 trials (0 pruned, 1 failed), 18 s of training" in page
    assert r"failed: a\|b" in page
    assert page.count("`temperature=") == 12  # 11 trials beside the suite's own, and the chosen one
    assert str(tmp_path) not in page + index


def test_the_same_trials_give_the_same_bytes(tuned, tmp_path) -> None:
    path, url = tuned
    one, two = (report.write(path, url, tmp_path / name) for name in ("a", "b"))
    assert [p.read_bytes() for p in one] == [p.read_bytes() for p in two]
    before = [p.stat().st_mtime_ns for p in one]
    report.write(path, url, tmp_path / "a")
    assert [p.stat().st_mtime_ns for p in one] == before


def test_importance_finds_the_knob_that_matters(tuned) -> None:
    _, studies = look(*tuned)
    found = {cell.label: report.importances(cell, study) for cell, study in studies.items()}
    assert next(iter(found["kd"])) == "temperature"
    assert found["kd"]["temperature"] > 0.6
    assert sum(found["kd"].values()) == pytest.approx(1.0)
    assert found["none"] == found["label_smoothing"] == {}  # nothing, or a single field


def test_points_are_the_finished_trials_with_all_that_was_searched(tuned) -> None:
    _, studies = look(*tuned)
    (cell,) = [cell for cell in studies if cell.label == "kd"]
    points = report.points(cell, studies[cell])
    assert [point.number for point in points] == [0, 1, 2, 3, 4, 6, 7, 8, 9, 10, 11]
    assert points[0].settings == {"temperature": 4.0, "ce_weight": 0.1, "kd_weight": 0.9}
    for point in points:
        assert point.value == value(point.settings)


def test_looking_changes_nothing_and_needs_a_study(tuned, tmp_path) -> None:
    path, url = tuned
    before = [[trial.state for trial in study.trials] for study in look(path, url)[1].values()]
    assert [[trial.state for trial in study.trials] for study in look(path, url)[1].values()] == before
    other = tmp_path / "other.yaml"
    other.write_text(SUITE.replace("epochs: 2", "epochs: 3"))
    with pytest.raises(UserError, match="holds no study"):
        look(other, url)
    with pytest.raises(UserError, match="there is nothing yet"):
        look(path, f"sqlite:///{tmp_path / 'none.db'}")
