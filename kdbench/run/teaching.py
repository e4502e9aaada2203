"""`run --teachers-only`: the frozen roles of some jobs, made and nothing else; and what is said of them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from kdbench.run import roster, runner
from kdbench.suite.job import FrozenRole, Job
from kdbench.tasks import Task
from kdbench.train import gates, teachers
from kdbench.train.workbench import Workbench


def make(roles: Sequence[FrozenRole], bench: Workbench) -> dict[str, str]:
    """Make them in this process, one after the other; key -> why, of those that could not be made."""
    return {role.key: reason for role in roles if (reason := runner.teach(role, bench))}


def kept(roles: Sequence[FrozenRole], runs: Path) -> set[str]:
    """The keys of those that were made before."""
    return {role.key for role in roles if roster.made(runs, role)}


def account(
    jobs: Sequence[Job],
    roles: Sequence[FrozenRole],
    task: Task,
    runs: Path,
    before: Collection[str],
    broken: Mapping[str, str],
) -> tuple[list[dict[str, object]], list[str]]:
    """A row for each of these frozen roles in each pair that has it, and a sentence for each that may not teach.

    Args:
        before: keys of those that were kept already.
        broken: key -> why it could not be made.
    """
    chosen = {role.key for role in roles}
    rows: dict[tuple[str, str], dict[str, object]] = {}
    troubles: list[str] = []
    for job in jobs:
        for name, role in job.frozen.items():
            if role.key not in chosen or (job.pair, name) in rows:
                continue
            row: dict[str, object] = {"pair": job.pair, "role": name, "model": role.model.model, "key": role.key}
            state, score, trouble = _state(name, role, task, runs, before, broken)
            if trouble:
                field = f" (pairs.{job.pair}.{name}.{role.model.gate_field})" if state == "below its gate" else ""
                troubles.append(f"{job.pair}: {trouble}{field}")
            rows[job.pair, name] = row | {f"val {task.headline.name}": score, "state": state}
    return list(rows.values()), troubles


def _state(
    name: str, role: FrozenRole, task: Task, runs: Path, before: Collection[str], broken: Mapping[str, str]
) -> tuple[str, str, str]:
    """A word, the score that counts, and a sentence if it may not teach."""
    if role.key in broken:
        return "failed", "", broken[role.key]
    if role.model.answers is not None:
        return "a file of answers", "", ""
    record, _ = teachers.read(teachers.folder_of(runs, role), role.key)
    value = record.scores.get(f"val/{task.headline.name}")
    score = "" if value is None else task.headline.shown(value)
    if missed := gates.missed(role.model, task, record.scores, name):
        return "below its gate", score, missed
    return "was here" if role.key in before else "made", score, ""
