"""Shares of a suite's jobs: together they are all of it, once; each is as long as the others."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from commands import kdbench
from training import LITTLE

from kdbench.errors import UserError
from kdbench.run.opened import Setting
from kdbench.run.runner import first_roles
from kdbench.run.shard import Shard
from kdbench.suite.job import expand
from kdbench.suite.load import load

ROOT = Path(__file__).parents[2]
SUITES = ["digits.yaml", "digits-pkd.yaml", "cifar10-opdf.yaml"]


@pytest.mark.parametrize("name", SUITES)
@pytest.mark.parametrize("of", [1, 2, 3, 4, 7, 1000])
def test_all_shares_together_are_every_job_once(name: str, of: int) -> None:
    jobs = expand(load(ROOT / "suites" / name))
    shares = [Shard(number, of).jobs(jobs) for number in range(of)]
    assert Counter(job.key for share in shares for job in share) == Counter(job.key for job in jobs)
    for share in shares:
        assert share == [job for job in jobs if job in share]  # in the same order
    sizes = [len({job.key for job in share}) for share in shares]
    assert max(sizes) - min(sizes) <= 1
    for cell in {job.name for job in jobs}:
        held = [sum(job.name == cell for job in share) for share in shares]
        assert max(held) - min(held) <= 1, cell
    roles = first_roles(jobs)
    assert Counter(role.key for number in range(of) for role in Shard(number, of).roles(roles)) == Counter(
        role.key for role in roles
    )


def test_methods_that_need_most_go_to_different_shares(tmp_path: Path) -> None:
    """Two pairs, two methods, one seed, two shares: by their place in the file, one would get both students of kd."""
    q = "  q:\n    teacher: {model: cnn}\n    student: {model: cnn, options: {widths: [4, 4, 4]}}\n"
    (tmp_path / "s.yaml").write_text(LITTLE.replace("methods:", q + "methods:"))
    jobs = [job for job in expand(load(tmp_path / "s.yaml")) if job.seed == 0]
    assert [job.label for job in jobs] == ["none", "kd", "none", "kd"]
    for number in range(2):
        assert sorted(job.label for job in Shard(number, 2).jobs(jobs)) == ["kd", "none"]


def test_shares_do_not_depend_on_what_is_known_of_the_data_nor_on_what_is_done() -> None:
    suite = load(ROOT / "suites" / "digits.yaml")
    for number in range(3):
        one, other = (Shard(number, 3).jobs(expand(suite, fingerprint)) for fingerprint in (None, "abc"))
        assert [(job.name, job.seed) for job in one] == [(job.name, job.seed) for job in other]


def test_one_job_under_two_labels_stays_together(tmp_path: Path) -> None:
    text = LITTLE.replace("  kd:\n", "  kd:\n  again: {method: kd}\n")
    (tmp_path / "s.yaml").write_text(text)
    jobs = expand(load(tmp_path / "s.yaml"))
    for number in range(2):
        labels = Counter((job.label, job.seed) for job in Shard(number, 2).jobs(jobs))
        assert [labels["kd", seed] == labels["again", seed] for seed in (0, 1)] == [True, True]


def test_a_role_that_starts_from_another_goes_with_it(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(LITTLE)
    roles = first_roles(expand(load(tmp_path / "s.yaml")))
    derived = replace(roles[0], content={**roles[0].content, "from": 1}, source=roles[0])
    roles = [*roles, derived]
    (holder,) = [number for number in range(5) if derived in Shard(number, 5).roles(roles)]
    assert derived.source in Shard(holder, 5).roles(roles)


@pytest.mark.parametrize("text", ["4/4", "-1/4", "1", "a/b", "1/0", "0/0", "1/4/2", "", "1/9999999", "٣/٤"])
def test_what_is_no_share_is_told(text: str) -> None:
    with pytest.raises(UserError, match="counted from 0"):
        Shard.parse(text)


def test_shares_on_machines_that_share_nothing_make_the_whole_board(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(LITTLE)
    assert kdbench(tmp_path, "run", "s.yaml", "--teachers-only").returncode == 0
    for number in "01":
        folders = ("--results", f"r{number}", "--runs", f"runs{number}")
        assert kdbench(tmp_path, "merge", "--teachers", "runs", "--runs", f"runs{number}").returncode == 0
        done = kdbench(tmp_path, "run", "s.yaml", "--shard", f"{number}/2", *folders)
        assert (done.returncode, "2 jobs trained" in done.stdout) == (0, True), done.stderr
    done = kdbench(tmp_path, "merge", "r0", "r1", "--results", "all")
    assert (done.returncode, done.stderr) == (0, "")
    done = kdbench(tmp_path, "run", "s.yaml", "--results", "all")
    assert "0 jobs trained, 4 were done already" in done.stdout
    assert "not comparable" not in (tmp_path / "all" / "little.md").read_text()
    assert Setting(tmp_path / "s.yaml", shard=Shard(0, 2)).glance().pending != []
