"""Tuning end to end on digits in little: trials, constraints, conditions, objectives, pruning, failures, command."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from commands import Done, kdbench
from optuna.trial import TrialState
from stopping import METHOD, steps, stop
from training import LITTLE

from kdbench.errors import UserError
from kdbench.run.opened import Setting
from kdbench.suite.cell import parse_extra
from kdbench.suite.load import load
from kdbench.suite.winners import current, read, tuned_jobs
from kdbench.tune import session
from kdbench.tune.order import Order
from kdbench.tune.screen import Screen
from kdbench.tune.slots import Outcome
from kdbench.tune.tuner import Listener, Tuner

SUITE = LITTLE.replace("batch_size: 32", "batch_size: 64") + "tune:\n  trials: 3\n"
ODD = """
from dataclasses import dataclass
from kdbench.method import Method, knob

@dataclass(frozen=True)
class Odd(Method):
    kind: str = knob("fine", choices=["fine", "raise", "nan"])

    def loss(self, learner, teachers, batch, heads):
        if self.kind == "raise":
            raise ZeroDivisionError("on purpose")
        return {"odd": learner.rows.sum() * (float("nan") if self.kind == "nan" else 0.0)}
"""


def with_tune(text: str, suite: str = SUITE) -> str:
    return suite.replace("tune:\n  trials: 3\n", f"tune: {{{text}}}\n")


class Desk:
    """A suite in a folder of its own, tuned in this process."""

    def __init__(self, folder: Path, text: str) -> None:
        self.folder, self.told = folder, []
        folder.mkdir(exist_ok=True)
        (folder / "s.yaml").write_text(text)
        (folder / "odd.py").write_text(ODD)

    def order(self, extra: int = 0, url: str | None = None) -> Order:
        setting = Setting(self.folder / "s.yaml", None, self.folder / "board", self.folder / "runs")
        return Order(setting, url or f"sqlite:///{self.folder / 'tune.db'}", extra)

    def open(self, extra: int = 0) -> Tuner:
        listener = Listener(finished=lambda cell, slot, of, outcome: self.told.append((cell.label, slot, outcome)))
        return self.order(extra).open("cpu", listener)

    def tune(self, extra: int = 0) -> Tuner:
        tuner = self.open(extra)
        tuner.work()
        return tuner


def overrides(tuner: Tuner, label: str) -> list[dict]:
    (cell,) = [cell for cell in tuner.cells if cell.label == label]
    return [slot.trial.user_attrs.get("overrides") for slot in tuner.studies[cell].table.values()]


def table(tuner: Tuner, label: str):
    (cell,) = [cell for cell in tuner.cells if cell.label == label]
    tuner.studies[cell].refresh()
    return tuner.studies[cell].table


@pytest.fixture(scope="module")
def tuned(tmp_path_factory) -> tuple[Desk, Tuner]:
    desk = Desk(tmp_path_factory.mktemp("tuned"), SUITE)
    tuner = desk.tune()
    return desk, tuner


def test_every_method_gets_its_trials_and_the_published_knobs_are_the_first(tuned) -> None:
    desk, tuner = tuned
    assert [slot.state for slot in table(tuner, "kd").values()] == ["done"] * 3
    assert overrides(tuner, "kd")[0] == {}
    assert [label for label, _, _ in desk.told] == ["none", "kd", "kd", "kd"]  # nothing to tune: one trial


def test_trials_are_ordinary_results_of_the_validation_split_alone(tuned) -> None:
    desk, tuner = tuned
    records = {
        path.name.split(".")[-2]: json.loads(path.read_text())
        for path in (desk.folder / "runs" / "trials" / "results" / "little").glob("*.json")
    }
    assert len(records) == 4
    for slot in table(tuner, "kd").values():
        (key,) = slot.trial.user_attrs["outcome"]["seconds"]
        record = records[key]
        assert record["status"] == "ok"
        assert record["scores"]["val/top1"] == slot.trial.values[0]
        assert record["job"]["method"]["knobs"].items() >= slot.trial.user_attrs["overrides"].items()
        assert not any("test" in name for name in [*record["scores"], *record["curves"], *record["teacher"]["scores"]])
        assert record["seed"] == 1000
    assert not (desk.folder / "runs" / "students").exists()
    assert not list((desk.folder / "runs" / "checkpoints").glob("*"))


def test_the_teacher_is_the_one_of_a_run(tuned) -> None:
    desk, tuner = tuned
    (folder,) = (desk.folder / "runs" / "teachers").iterdir()
    assert {job.frozen["teacher"].key for job in tuner.opened.jobs} == {folder.name}


def test_a_finished_tune_does_nothing_and_an_extension_is_alike_for_all(tuned, tmp_path) -> None:
    import shutil

    desk, _ = tuned
    copy = Desk(tmp_path / "copy", SUITE)
    for source in (desk.folder / "runs", *desk.folder.glob("tune.db*")):
        (shutil.copytree if source.is_dir() else shutil.copy)(source, copy.folder / source.name)
    copy.tune()
    assert copy.told == []
    copy.tune(extra=2)
    assert [(label, slot) for label, slot, _ in copy.told] == [("kd", 3), ("kd", 4)]
    copy.told.clear()
    copy.tune()  # without the option: the larger budget is remembered
    copy.tune(extra=2)  # and the same command joins, it does not extend again
    assert copy.told == []


def test_the_same_seed_and_one_worker_give_the_same_trials(tuned, tmp_path) -> None:
    _, tuner = tuned
    again = Desk(tmp_path / "again", SUITE).tune()
    assert overrides(again, "kd") == overrides(tuner, "kd")
    values = [[slot.trial.values for slot in table(t, "kd").values()] for t in (tuner, again)]
    assert values[0] == values[1]


def test_the_winner_is_written_and_its_jobs_are_the_tuned_track(tuned) -> None:
    desk, tuner = tuned
    found = session.conclude(tuner, desk.folder / "board")
    assert all(found.values())
    winner = read(desk.folder / "board", "little", "p", "kd")
    values = [slot.trial.values[0] for slot in table(tuner, "kd").values()]
    assert winner.value == max(values)
    assert winner.values == values
    assert winner.default_value == values[0]
    assert winner.overrides == overrides(tuner, "kd")[values.index(max(values))]
    assert (winner.trials, winner.pruned, winner.failed, winner.epochs, winner.seeds) == (3, 0, 0, 2, [1000])
    assert set(winner.knobs) == {"temperature", "ce_weight", "kd_weight"}
    assert read(desk.folder / "board", "little", "p", "none").trials == 1
    text = (desk.folder / "board" / "tuned" / "little" / "p" / "kd.json").read_text()
    assert str(desk.folder) not in text
    suite = load(desk.folder / "s.yaml")
    jobs = tuned_jobs(suite, desk.folder / "board")
    assert [(job.label, job.seed, job.track, job.trials) for job in jobs] == [
        ("none", 0, "tuned", 1), ("kd", 0, "tuned", 3), ("none", 1, "tuned", 1), ("kd", 1, "tuned", 3),
    ]  # fmt: skip
    changed = suite.path.with_name("changed.yaml")
    changed.write_text(SUITE.replace("batch_size: 64", "batch_size: 32"))
    assert "another space, recipe or method" in current(load(changed), desk.folder / "board")[1][0]
    with pytest.raises(UserError, match="nothing of it has been tuned"):
        tuned_jobs(load(changed), desk.folder / "board")


def test_what_breaks_a_constraint_is_never_trained(tmp_path) -> None:
    widths = "[[4, 8, 8], [2, 2, 2], [64, 64, 64]]"
    text = f"trials: 3, constraints: {{macs: 20000}}, space: {{student.options.widths: {widths}}}"
    desk = Desk(tmp_path / "d", with_tune(text))
    built = []
    tuner = desk.open()
    perform = tuner.bench.perform

    def noted(job, splits):
        built.append(job.roles["student"].options["widths"])
        return perform(job, splits)

    tuner.bench.perform = noted
    tuner.work()
    assert [64, 64, 64] not in built
    rows = table(tuner, "none")  # three configurations: all of them, one beyond the bound
    assert sorted(slot.verdict for slot in rows.values()) == ["failed", "ok", "ok"]
    (broken,) = [slot for slot in rows.values() if slot.verdict == "failed"]
    assert "macs" in broken.reason
    assert "exceed the bound of 20,000" in broken.reason
    drawn = table(tuner, "kd")  # an endless space: another draw takes its place
    assert [slot.verdict for slot in drawn.values()] == ["ok"] * 3


def test_unless_told_a_trial_costs_no_more_than_the_plain_student_or_the_suite_s_own(tmp_path) -> None:
    """kd: the plain student's epochs; simkd: its own MACs, which are more, but not those of a larger head."""
    methods = "  none:\n  simkd: {factor: 4}\n  born_again: {generations: 1}\n"
    text = SUITE.replace("  none:\n  kd:\n", methods)
    searched = "space: {factor: [4, 1], generations: [1, 2], recipe.epochs: [2, 3]}"

    def tuner_of(folder: str, tune: str) -> Tuner:
        return Desk(tmp_path / folder, with_tune(tune, text)).open()

    def broken(tuner: Tuner, label: str, overrides: dict[str, object]) -> str:
        (cell,) = (cell for cell in tuner.cells if cell.label == label)
        return tuner._broken(cell, tuner.job(cell, overrides, 1000))

    usual = tuner_of("usual", f"trials: 3, {searched}")
    for label in ("none", "simkd", "born_again"):
        assert broken(usual, label, {}) == ""  # the suite's own may always be tried
    assert broken(usual, "none", {"recipe.epochs": 3}) == "epochs 3 exceed the bound of 2"
    assert broken(usual, "born_again", {"generations": 2}) == "epochs 6 exceed the bound of 4"
    assert broken(usual, "simkd", {"factor": 1}).startswith("macs ")
    told = tuner_of("told", f"trials: 3, constraints: {{epochs: 6, macs: 1e9}}, {searched}")
    assert broken(told, "born_again", {"generations": 2}) == ""
    assert broken(told, "simkd", {"factor": 1}) == ""
    assert broken(told, "none", {"recipe.epochs": 3}) == ""


def test_conditions_hold_in_every_trial(tmp_path) -> None:
    space = "{temperature: {low: 1, high: 8, when: {ce_weight: 0.5}}, ce_weight: [0.1, 0.5], kd_weight: [0.9]}"
    tuner = Desk(tmp_path / "d", with_tune(f"trials: 8, sampler: random, space: {space}")).tune()
    tried = overrides(tuner, "kd")[1:]
    assert {"temperature" in one for one in tried} == {True, False}
    for one in tried:
        assert ("temperature" in one) == (one["ce_weight"] == 0.5)


@pytest.mark.parametrize(("objectives", "timed"), [("val/top1, macs", False), ("val/top1, latency_ms_batch1", True)])
def test_latency_is_measured_where_it_is_searched_for(tmp_path, objectives: str, timed: bool) -> None:
    desk = Desk(tmp_path, with_tune(f"trials: 1, objectives: [{objectives}]"))
    records = desk.tune().records.results.values()
    assert {record.status for record in records} == {"ok"}
    assert {record.cost.latency_ms_batch256 > 0 for record in records} == {timed}


def test_several_objectives_give_a_pareto_set(tmp_path) -> None:
    text = "trials: 4, objectives: [val/top1, macs], space: {student.options.widths: [[4, 8, 8], [2, 2, 2], [4, 4, 8]]}"
    desk = Desk(tmp_path / "d", with_tune(text))
    tuner = desk.tune()
    session.conclude(tuner, desk.folder / "board")
    winner = read(desk.folder / "board", "little", "p", "none")
    points = [slot.trial.values for slot in table(tuner, "none").values()]
    assert len(points) == 3
    assert winner.value == max(top1 for top1, _ in points)
    assert winner.objectives == ["val/top1", "macs"]
    for one in winner.pareto:
        top1, macs = one["values"]
        assert not any(t >= top1 and m <= macs and (t, m) != (top1, macs) for t, m in points)


def test_a_failing_trial_is_recorded_and_not_fatal(tmp_path) -> None:
    desk = Desk(tmp_path / "d", SUITE.replace("  kd:\n", "  odd: {method: ./odd.py}\n"))
    tuner = desk.tune()
    found = {slot.trial.user_attrs["overrides"].get("kind", "fine"): slot for slot in table(tuner, "odd").values()}
    assert {kind: slot.verdict for kind, slot in found.items()} == {"fine": "ok", "raise": "failed", "nan": "diverged"}
    assert "on purpose" in found["raise"].reason
    assert "not finite" in found["nan"].reason
    winner = session.conclude(tuner, desk.folder / "board")[tuner.cells[1]]
    assert (winner.trials, winner.failed, winner.sampler) == (3, 2, "grid")
    desk.told.clear()
    desk.tune()
    assert desk.told == []


def test_a_pruned_trial_is_recorded_and_counts(tmp_path, monkeypatch) -> None:
    import optuna

    class Eager(optuna.pruners.BasePruner):
        def prune(self, study, trial) -> bool:
            return trial.number > 0

    monkeypatch.setattr("kdbench.tune.setup.pruner_of", lambda name, epochs: Eager())
    desk = Desk(tmp_path / "d", with_tune("trials: 2, pruner: median"))
    tuner = desk.tune()
    rows = table(tuner, "kd")
    assert [slot.verdict for slot in rows.values()] == ["ok", "pruned"]
    assert rows[1].trial.state == TrialState.PRUNED
    (key,) = rows[1].trial.user_attrs["outcome"]["seconds"]
    (path,) = (desk.folder / "runs" / "trials").rglob(f"*.{key}.json")
    record = json.loads(path.read_text())
    assert record["status"] == "pruned"
    assert len(record["curves"]["val/top1"]) == 1  # one epoch of two
    assert not list((desk.folder / "runs" / "checkpoints").glob("*"))


def test_an_interrupted_trial_goes_on_from_its_checkpoint(tmp_path) -> None:
    desk = Desk(tmp_path / "d", with_tune("trials: 2").replace("epochs: 2", "epochs: 4"))
    whole = Desk(tmp_path / "whole", with_tune("trials: 2").replace("epochs: 2", "epochs: 4")).tune()
    tuner, heard = desk.open(), []

    def stop(what, progress) -> None:
        heard.append((what, progress.epoch))
        if what.startswith("p/kd") and progress.epoch == 1:
            raise KeyboardInterrupt

    tuner.listener.epoch = stop
    with pytest.raises(KeyboardInterrupt):
        tuner.work()
    heard.clear()
    tuner = desk.open()
    tuner.listener.epoch = lambda what, progress: heard.append((what, progress.epoch))
    tuner.work()
    assert heard[:2] == [("p/kd seed 1000", 2), ("p/kd seed 1000", 3)]
    assert overrides(tuner, "kd") == overrides(whole, "kd")
    values = [[slot.trial.values for slot in table(t, "kd").values()] for t in (tuner, whole)]
    assert values[0] == values[1]


def test_a_budget_of_seconds_ends_when_they_are_spent(tmp_path) -> None:
    tuner = Desk(tmp_path / "d", with_tune("budget: gpu_seconds, gpu_seconds: 0.05")).tune()
    from kdbench.tune.slots import seconds_of

    for cell in tuner.cells:
        if cell.label == "kd":
            trials = tuner.studies[cell].trials
            assert seconds_of(trials) >= 0.05
            assert seconds_of(trials[:-1]) < 0.05


def test_other_data_under_the_same_name_are_noticed(tuned, monkeypatch) -> None:
    desk, tuner = tuned
    study = tuner.studies[tuner.cells[0]]
    before = study.attribute("fingerprint")
    tuner.storage.set_study_user_attr(study.id, "fingerprint", "other")
    try:
        with pytest.raises(UserError, match="was made on other data"):
            desk.open()
    finally:
        tuner.storage.set_study_user_attr(study.id, "fingerprint", before)


def test_extra_trials_are_read_strictly() -> None:
    assert parse_extra("+20") == 20
    for text in ("20", "+", "+0", "-3", "+2x", "x"):
        with pytest.raises(UserError, match="expects how many more"):
            parse_extra(text)


# the command ---------------------------------------------------------------------------------------------------------
@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "s.yaml").write_text(SUITE.replace("  none:\n", ""))
    return tmp_path


def test_the_command_tunes_shows_and_feeds_the_tuned_track(folder: Path) -> None:
    done = kdbench(folder, "tune", "s.yaml")
    assert done.returncode == 0, done.stderr
    assert "[3/3] p/kd trial 3/3: val/top1" in done.stderr
    assert "--track tuned" in done.stdout
    rows = json.loads(kdbench(folder, "tune", "s.yaml", "--status", "--json").stdout)
    assert [(row["trials"], row["state"]) for row in rows] == [("3/3", "done")]
    ran = kdbench(folder, "run", "s.yaml", "--track", "tuned", "--json")
    assert ran.returncode == 0, ran.stderr
    stored = [json.loads(p.read_text()) for p in (folder / "leaderboard" / "results" / "little").glob("*.json")]
    assert {(one["track"], one["cost"]["trials"], one["seed"]) for one in stored} == {("tuned", 3, 0), ("tuned", 3, 1)}
    assert all("test/top1" in one["scores"] for one in stored)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("tune", "s.yaml", "--storage", "postgrs://x/y"), "--storage postgrs://x/y: expects sqlite:///FILE"),
        (("tune", "s.yaml", "--storage", "mysql://me:secret@localhost/x"), "pip install 'kdbench[mysql]'"),
        (("tune", "s.yaml", "--storage", "grpc://localhost:1"), "kdbench[grpc]"),
        (("tune", "s.yaml", "--storage", "sqlite://"), "names no file"),
        (("tune", "s.yaml", "--storage", "postgresql://me:secret@localhost:1/x"), "cannot be opened"),
        (("tune", "s.yaml", "--trials", "20"), "--trials 20: expects how many more"),
        (("tune", "s.yaml", "--trials", "+4", "--only", "p/kd"), "extends every method alike"),
        (("tune", "plain.yaml"), "plain.yaml: has no `tune` block"),
        (("tune", "s.yaml", "--status"), "there is nothing yet"),
        (("tune", "s.yaml", "--report"), "there is nothing yet"),
        (("tune", "s.yaml", "--only", "p/dk"), "did you mean 'p/kd'"),
        (("tune", "nowhere.yaml"), "nowhere.yaml"),
        (("run", "s.yaml", "--track", "tuned"), "nothing of it has been tuned"),
    ],
)
def test_mistakes_are_sentences(folder: Path, arguments, sentence: str) -> None:
    (folder / "plain.yaml").write_text((folder / "s.yaml").read_text().partition("tune:")[0])
    done: Done = kdbench(folder, *arguments)
    if "grpc" in arguments[-1]:
        with contextlib.suppress(ImportError):
            import grpc  # noqa: F401

            sentence = "nobody answers there"
    assert done.returncode == 2, (done.stdout, done.stderr)
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
    assert "secret" not in done.stderr


def begin(folder: Path, *arguments: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "kdbench", "tune", "long.yaml", *arguments],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def wait_for_a_trial(folder: Path, process: subprocess.Popen) -> int:
    """Until a trial's training has a checkpoint; the pid of who trains it."""
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if list((folder / "runs" / "teachers").glob("*/record.json")) and list(
            (folder / "runs" / "checkpoints").glob("*.pt")
        ):
            with contextlib.closing(sqlite3.connect(folder / "runs" / "tune.db", timeout=30)) as database:
                owners = database.execute(
                    "SELECT value_json FROM trial_user_attributes JOIN trials USING (trial_id) "
                    "WHERE key = 'owner' AND state = 'RUNNING'"
                ).fetchall()
            if owners:
                return int(json.loads(owners[-1][0])["pid"])
        time.sleep(0.02)
    raise AssertionError(process.communicate())


def stoppable(folder: Path) -> Path:
    (folder / "halting.py").write_text(METHOD)
    text = with_tune("trials: 2", SUITE).replace("epochs: 2", "epochs: 3")
    (folder / "long.yaml").write_text(text.replace("  none:\n  kd:\n", "  halting: {method: ./halting.py}\n"))
    return folder


def chosen(folder: Path) -> dict[str, object]:
    """What tuning found, but for the time it took."""
    found = json.loads((folder / "leaderboard/tuned/little/p/halting.json").read_text())
    return {name: value for name, value in found.items() if name != "gpu_seconds"}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[int, dict[str, object]]:
    """Steps and winner of a tuning that nobody stops."""
    folder = stoppable(tmp_path_factory.mktemp("undisturbed"))
    done = kdbench(folder, "tune", "long.yaml")
    assert done.returncode == 0, done.stderr
    return steps(folder), chosen(folder)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_stopped_tune_continues_with_the_same_trials(
    tmp_path: Path, undisturbed: tuple[int, dict[str, object]], number: signal.Signals
) -> None:
    folder = stoppable(tmp_path)
    code, errors = stop(folder, number, "tune", "long.yaml")
    if number is signal.SIGINT:
        assert code == 130, errors
        assert "The same command continues" in errors
        assert "Traceback" not in errors
    else:
        assert code == -9
    before = steps(folder) - (number is signal.SIGKILL)  # which did not end the last one; an interrupt waits for it
    done = kdbench(folder, "tune", "long.yaml")
    assert done.returncode == 0, done.stderr
    assert (before > 0, (before + steps(folder), chosen(folder))) == (True, undisturbed)


@pytest.mark.slow
def test_four_workers_with_kills_spend_exactly_the_budget(folder: Path) -> None:
    (folder / "long.yaml").write_text(with_tune("trials: 8", SUITE).replace("epochs: 2", "epochs: 30"))
    process = begin(folder, "--workers", "4")
    for _ in range(3):
        os.kill(wait_for_a_trial(folder, process), signal.SIGKILL)
        time.sleep(1)
    out, errors = process.communicate(timeout=600)
    assert process.returncode == 0, (out, errors)
    assert errors.count("a worker died (SIGKILL)") == 3
    winner = json.loads((folder / "leaderboard/tuned/little/p/kd.json").read_text())
    assert (winner["trials"], len(winner["values"]), winner["failed"]) == (8, 8, 0)


def test_the_verdicts_of_an_outcome_are_said() -> None:
    from io import StringIO

    from rich.console import Console

    desk_cell = type("C", (), {"name": "p/kd", "objectives": ("val/top1",)})()
    text = StringIO()
    screen = Screen(Console(file=text))
    screen.finished(desk_cell, 1, 3, Outcome("failed", reason="boom", seconds={"k": 2.0}))
    assert text.getvalue() == "[1/1] p/kd trial 2/3: failed: boom (2.0 s)\n"
