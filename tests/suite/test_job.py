"""Keys: what changes them and what does not."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdbench.suite.fields import Recipe, Schedule
from kdbench.suite.job import digest, expand, shortened
from kdbench.suite.load import load

SUITE = """
name: demo
data: {name: digits}
recipe: {epochs: 10, batch_size: 64}
pairs:
  a: {teacher: {model: cnn, train: {epochs: 20}}, student: mlp}
  b: {teacher: {model: cnn, train: {epochs: 20}}, student: cnn}
methods:
  none:
  kd:
  soft: {method: kd, temperature: 8}
seeds: [0, 1]
"""


def jobs(tmp_path: Path, text: str = SUITE, fingerprint: str | None = "f", **options):
    path = tmp_path / "demo.yaml"
    path.write_text(text)
    return {(j.pair, j.label, j.seed): j for j in expand(load(path), fingerprint, **options)}


def keys(tmp_path: Path, text: str = SUITE, **options) -> dict:
    return {cell: job.key for cell, job in jobs(tmp_path, text, **options).items()}


def test_seed_by_seed_so_that_comparable_rows_finish_early(tmp_path: Path) -> None:
    order = list(jobs(tmp_path))
    assert len(order) == 12
    assert [seed for *_, seed in order] == [0] * 6 + [1] * 6
    assert len(set(keys(tmp_path).values())) == 12


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("name: demo", "name: other"),
        ("name: demo", "name: demo\nversion: 7\ndescription: words"),
        ("batch_size: 64", "batch_size: 64, compile: true, validate_every: 5"),
        ("  kd:\n", "  kd: {method: kd, temperature: 4.0}\n"),
        ("train: {epochs: 20}", "train: {epochs: 20}, min_top1: 12.5"),
    ],
)
def test_what_does_not_matter_keeps_every_key(tmp_path: Path, old: str, new: str) -> None:
    assert keys(tmp_path, SUITE.replace(old, new)) == keys(tmp_path)


def test_labels_and_pair_names_are_not_content(tmp_path: Path) -> None:
    renamed = keys(tmp_path, SUITE.replace("  kd:\n", "  plain: {method: kd}\n").replace("  a: {", "  z: {"))
    assert renamed["z", "plain", 0] == keys(tmp_path)["a", "kd", 0]


@pytest.mark.parametrize(
    ("old", "new", "changed"),
    [
        ("temperature: 8", "temperature: 9", {("a", "soft"), ("b", "soft")}),
        ("student: mlp", "student: {model: mlp, options: {hidden: [7]}}", {("a", "none"), ("a", "kd"), ("a", "soft")}),
        ("batch_size: 64", "batch_size: 32", None),
        ("train: {epochs: 20}", "train: {epochs: 21}", None),
        ("name: digits", "name: digits, fraction: 0.5", None),
    ],
)
def test_what_matters_changes_exactly_the_keys_it_touches(tmp_path: Path, old: str, new: str, changed) -> None:
    before, after = keys(tmp_path), keys(tmp_path, SUITE.replace(old, new))
    different = {cell[:2] for cell in before if before[cell] != after[cell]}
    assert different == (changed if changed is not None else {cell[:2] for cell in before})


def test_the_data_fingerprint_is_content(tmp_path: Path) -> None:
    known, other, again = (jobs(tmp_path, fingerprint=f) for f in ("f", "g", "f"))
    for cell, job in known.items():
        assert job.key != other[cell].key
        assert job.key == again[cell].key


def test_keys_hold_no_paths_and_do_not_depend_on_the_folder(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    assert keys(tmp_path / "deep") == keys(tmp_path)
    assert all(str(tmp_path) not in str(job.content) for job in jobs(tmp_path).values())


def test_the_text_of_a_users_method_is_content(tmp_path: Path) -> None:
    text = SUITE.replace("  soft: {method: kd, temperature: 8}", "  mine: {method: ./mine.py}")
    source = (
        "from dataclasses import dataclass\nfrom kdbench.method import Method\n\n@dataclass(frozen=True)\n"
        "class Mine(Method):\n    def loss(self, learner, teachers, batch, heads):\n        return {'mine': 0}\n"
    )
    (tmp_path / "mine.py").write_text(source)
    before = keys(tmp_path, text)
    (tmp_path / "mine.py").write_text(source.replace("0", "1"))
    after = keys(tmp_path, text)
    assert {cell[1] for cell in before if before[cell] != after[cell]} == {"mine"}


def test_fewer_epochs_are_marked_and_have_other_keys(tmp_path: Path) -> None:
    short = jobs(tmp_path, epochs=2)
    assert not any(job.comparable for job in short.values())
    assert not set(keys(tmp_path).values()) & {job.key for job in short.values()}
    assert {job.frozen["teacher"].recipe.epochs for job in short.values()} == {2}


def test_a_warm_up_that_ends_inside_a_step_says_that_it_stays_below_the_rate(tmp_path: Path) -> None:
    # Where it may, and nowhere else: results from before the repair are stale there, and all others are current.
    chain = "  chain:\n" + "seeds"
    ladder = SUITE.replace("student: mlp}", "student: mlp, ta: mlp}").replace("student: cnn}", "student: cnn, ta: mlp}")

    def marked(warmup: float) -> set[str]:
        schedule = f"schedule: {{name: cosine, warmup_epochs: {warmup}}}"
        text = ladder.replace("batch_size: 64", f"batch_size: 64, {schedule}").replace("seeds", chain)
        made = jobs(tmp_path, text)
        return {
            label for (_, label, _), job in made.items() if "warmup_at_most" in job.content["recipe"]["schedule"]
        } | {"teacher" for job in made.values() if "warmup_at_most" in str(job.frozen["teacher"].content)}

    assert marked(0) == set()
    assert marked(1) == set()  # chain's stages are of 10 epochs here, as the recipe's
    assert marked(0.3) == {"none", "kd", "soft", "chain", "teacher"}
    uneven = ladder.replace("seeds", "  chain: {method: chain, share: 0.75}\nseeds")
    made = jobs(tmp_path, uneven.replace("batch_size: 64", "batch_size: 64, schedule: {warmup_epochs: 1}"))
    assert {c[1] for c, job in made.items() if "warmup_at_most" in job.content["recipe"]["schedule"]} == {"chain"}


def test_shortening_keeps_the_shape_of_the_schedule() -> None:
    recipe = Recipe(epochs=240, schedule=Schedule(name="multistep", milestones=(150, 180, 210)))
    assert shortened(recipe, 24).schedule.milestones == (15, 18, 21)
    assert shortened(recipe, 2).schedule.milestones == (1,)
    assert shortened(recipe, 1).schedule.milestones == ()


def test_every_job_freezes_the_pairs_teacher_even_without_using_it(tmp_path: Path) -> None:
    for job in jobs(tmp_path).values():
        assert list(job.frozen) == ["teacher"]
    made = jobs(tmp_path)
    assert made["a", "none", 0].frozen["teacher"].key == made["b", "kd", 1].frozen["teacher"].key


def test_digest_is_canonical() -> None:
    assert digest({"a": 1, "b": [1.5]}) == digest({"b": [1.5], "a": 1})


def test_shortening_comes_after_the_teachers_own_overrides(tmp_path: Path) -> None:
    text = SUITE.replace(
        "train: {epochs: 20}",
        "train: {epochs: 20, schedule: {name: multistep, milestones: [10, 15], warmup_epochs: 4}}",
    )
    recipe = next(iter(jobs(tmp_path, text, epochs=2).values())).frozen["teacher"].recipe
    assert recipe.epochs == 2
    assert recipe.schedule.milestones == (1,)
    assert recipe.schedule.warmup_epochs == pytest.approx(0.4)


# ladders and stored logits -------------------------------------------------------------------------------------------
LADDERED = (
    SUITE.replace(
        "a: {teacher: {model: cnn, train: {epochs: 20}}, student: mlp}",
        "a: {teacher: {model: cnn, train: {epochs: 20}}, student: mlp, ladder: [{hidden: [3]}, {hidden: [6]}]}",
    )
    .replace("  soft:", "  grow: {method: progressive}\n  soft:")
    .replace("seeds:", "exclude: [{pair: b, method: grow}]\nseeds:")
)


def test_a_ladder_touches_no_job_that_does_not_use_it(tmp_path: Path) -> None:
    before, after = keys(tmp_path), keys(tmp_path, LADDERED)
    assert {cell: after[cell] for cell in before} == before
    job = jobs(tmp_path, LADDERED)["a", "grow", 0]
    assert {role: model.options for role, model in job.roles.items() if role != "teacher"} == {
        "weak1": {"hidden": [3]},
        "weak2": {"hidden": [6]},
    }
    by_hand = LADDERED.replace(
        "ladder: [{hidden: [3]}, {hidden: [6]}]",
        "weak1: {model: mlp, options: {hidden: [3]}}, weak2: {model: mlp, options: {hidden: [6]}}",
    )
    assert keys(tmp_path, by_hand) == after
    wider = keys(tmp_path, LADDERED.replace("[6]", "[7]"))
    assert {cell[:2] for cell in after if after[cell] != wider[cell]} == {("a", "grow")}


def test_stored_logits_are_content_and_the_default_is_not(tmp_path: Path) -> None:
    plain, live, stored = (
        jobs(tmp_path, SUITE.replace("batch_size: 64", f"batch_size: 64{field}"))
        for field in ("", ", teacher_logits: live", ", teacher_logits: stored")
    )
    for cell, job in plain.items():
        assert job.key == live[cell].key
        assert "teacher_logits" not in job.content["recipe"]
        assert job.key != stored[cell].key
        assert stored[cell].content["recipe"]["teacher_logits"] == "stored"
        assert stored[cell].frozen["teacher"].key == job.frozen["teacher"].key  # it has no teacher itself


def test_asking_for_as_many_epochs_as_the_suite_has_changes_nothing(tmp_path: Path) -> None:
    text = SUITE.replace("train: {epochs: 20}", "train: true")
    asked = jobs(tmp_path, text, epochs=10)
    assert {job.key for job in asked.values()} == set(keys(tmp_path, text).values())
    assert all(job.comparable for job in asked.values())
    assert not any(job.comparable for job in jobs(tmp_path, epochs=10).values())  # its teachers have 20
