"""What is searched: the knobs as declared, what `tune.space` makes of them, and how Optuna gets to see it."""

from __future__ import annotations

from pathlib import Path

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from kdbench.errors import UserError
from kdbench.suite.cell import cell_of
from kdbench.suite.fields import Model, Recipe
from kdbench.suite.job import variant
from kdbench.suite.load import load
from kdbench.suite.overrides import with_fields, with_knobs, with_student
from kdbench.suite.search import Entry, Space, ordered, space_of

METHOD = """
from dataclasses import dataclass
from kdbench.method import Method, knob

@dataclass(frozen=True)
class Odd(Method):
    heat: float = knob(4.0, low=1, high=16, log=True)
    layers: int = knob(3, low=1, high=9)
    mode: str = knob("mean", choices=["mean", "sum"])
    flag: bool = knob(True)
    places: tuple[int, ...] = knob((1, 2))
    open: float = knob(1.0, low=0)

    def loss(self, learner, teachers, batch, heads): ...
"""
SUITE = """
name: s
data: {name: digits}
recipe: {epochs: 10, optimizer: {lr: 0.05}, schedule: {warmup_epochs: 2}}
pairs:
  p: {teacher: {model: cnn}, ta: {model: mlp}, student: {model: cnn, options: {widths: [4, 8, 8]}}}
methods:
  odd: {method: ./odd.py}
  variant: {method: ./odd.py, mode: sum, heat: 2.0}
  none:
  chained: {method: chain, over: {method: kd, temperature: 3.0}}
"""


@pytest.fixture
def suite(tmp_path: Path):
    (tmp_path / "odd.py").write_text(METHOD)

    def of(space: str = "{}", **tune: object):
        rest = "".join(f"  {key}: {value}\n" for key, value in tune.items())
        (tmp_path / "s.yaml").write_text(f"{SUITE}tune:\n{rest}  space: {space}\n")
        return load(tmp_path / "s.yaml")

    return of


def keys(space: Space) -> list[str]:
    return [entry.key for entry in space.entries]


def test_every_knob_with_a_range_is_searched_and_a_choice_that_the_suite_spells_out_stays(suite) -> None:
    assert keys(space_of(suite(), "p", "odd")) == ["heat", "layers", "mode", "flag"]
    assert keys(space_of(suite(), "p", "variant")) == ["heat", "layers", "flag"]
    assert space_of(suite(), "p", "variant").defaults["heat"] == 2.0
    assert keys(space_of(suite("{mode: [mean, sum]}"), "p", "variant")) == ["heat", "layers", "flag", "mode"]
    assert keys(space_of(suite(), "p", "none")) == []
    assert keys(space_of(suite(), "p", "chained")) == ["share", "over.temperature", "over.ce_weight", "over.kd_weight"]


def test_entries_become_optunas_distributions(suite) -> None:
    text = """
    heat: {low: 1, high: 3}
    layers: {low: 1, high: 9, step: 3}
    places: [[1, 2], [3]]
    recipe.optimizer.lr: {low: 1e-4, high: 1e-1, log: true}
    recipe.batch_size: {low: 16, high: 64, step: 16}
    student.options.depth: {low: 2, high: 4}
    recipe.optimizer.momentum: {low: 0.5, high: 0.95, step: 0.2}
    """
    found = {entry.key: entry.distribution() for entry in space_of(suite(f"\n{text}"), "p", "odd").entries}
    assert found == {
        "mode": CategoricalDistribution(["mean", "sum"]),
        "flag": CategoricalDistribution([False, True]),
        "heat": FloatDistribution(1, 3),
        "layers": IntDistribution(1, 7, step=3),
        "places": CategoricalDistribution(["[1, 2]", "[3]"]),
        "recipe.optimizer.lr": FloatDistribution(1e-4, 1e-1, log=True),
        "recipe.batch_size": IntDistribution(16, 64, step=16),
        "student.options.depth": IntDistribution(2, 4),
        "recipe.optimizer.momentum": FloatDistribution(0.5, 0.9, step=0.2),
    }


def draw(space: Space, count: int, seed: int = 0) -> list[dict]:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    return [space.draw(study.ask()) for _ in range(count)]


def test_draws_are_values_of_the_fields_not_of_optuna(suite) -> None:
    space = space_of(suite("{places: [[1, 2], [3]], heat: {low: 1, high: 2}}"), "p", "odd")
    for chosen in draw(space, 20):
        assert chosen["places"] in ([1, 2], [3])
        assert 1 <= chosen["heat"] <= 2
        assert float(f"{chosen['heat']:.4g}") == chosen["heat"]
        variant(suite("{places: [[1, 2], [3]]}"), "p", "odd", chosen)  # accepted


def test_conditions_look_at_what_was_chosen_or_at_the_suites_own_value(suite) -> None:
    text = "{heat: {when: {mode: sum}}, layers: {low: 1, high: 5, when: {heat: 4.0}}, flag: [true]}"
    space = space_of(suite(text), "p", "odd")
    assert keys(space).index("heat") > keys(space).index("mode")
    assert keys(space).index("layers") > keys(space).index("heat")
    drawn = draw(space, 40)
    for chosen in drawn:
        assert ("heat" in chosen) == (chosen["mode"] == "sum")
        assert ("layers" in chosen) == (chosen.get("heat", 4.0) == 4.0)
    assert any("heat" in chosen for chosen in drawn)
    pinned = space_of(suite("{heat: {when: {mode: mean}}}"), "p", "variant")  # its mode is sum, and stays
    assert "heat" not in keys(pinned)


def test_the_suites_own_configuration_in_optunas_words(suite) -> None:
    space = space_of(suite("{heat: {low: 8, high: 16}, places: [[1, 2], [3]]}"), "p", "odd")
    params = space.params({})
    assert params == {"layers": 3, "mode": "mean", "flag": True, "places": "[1, 2]"}  # 4.0 is outside of 8 to 16
    assert set(space.distributions(params)) == set(params)


def test_few_configurations_are_listed_the_suites_own_first(suite) -> None:
    cell = cell_of(suite("{heat: [4.0, 8.0], layers: [2, 3], mode: [mean], flag: {choices: [true]}}"), "p", "odd")
    assert cell.sampler == "grid"
    assert cell.enumerated[0] == {}
    rest = [(one["heat"], one["layers"]) for one in cell.enumerated[1:]]
    assert sorted(rest) == [(4.0, 2), (8.0, 2), (8.0, 3)]
    assert cell.trials(16) == 4
    assert cell_of(suite(), "p", "none").trials(16) == 1
    conditional = space_of(
        suite("{heat: {choices: [1.0, 4.0], when: {flag: false}}, layers: [3], mode: [mean]}"), "p", "odd"
    )
    assert len(conditional.configurations(0, 99)) == 3  # flag false with two heats, flag true with none
    assert space_of(suite(), "p", "odd").configurations(0, 99) is None


def test_a_grid_is_a_sweep_of_what_the_space_lists_cut_short_to_a_sample(suite) -> None:
    made = suite("{heat: {low: 1, high: 16, step: 1}, layers: {low: 1, high: 9}}", sampler="grid")
    cell = cell_of(made, "p", "odd")
    assert cell.sampler == "grid"
    assert keys(cell.space) == ["heat", "layers"]  # neither mode nor flag
    assert len(cell.enumerated) == 16 * 9
    assert len({one.get("heat", 4.0) for one in cell.enumerated[:16]}) > 4
    assert (cell.trials(16), cell.trials(999)) == (16, 144)
    assert keys(cell_of(made, "p", "chained").space) == []


def test_the_hash_tells_spaces_and_recipes_apart_and_forgets_the_budget(suite) -> None:
    base = cell_of(suite(), "p", "odd").hash
    assert cell_of(suite(trials=99), "p", "odd").hash == base
    assert cell_of(suite("{heat: {low: 1, high: 8}}"), "p", "odd").hash != base
    assert cell_of(suite("{over.share: [1]}".replace("over.share", "share")), "p", "odd").hash == base  # not its knob
    for changed in ({"epochs": 3}, {"seeds": "[7]"}, {"metric": "val/nll"}, {"sampler": "random"}):
        assert cell_of(suite(**changed), "p", "odd").hash != base
    assert cell_of(suite(), "p", "variant").hash != base


def test_choices_that_python_confuses_are_kept_apart() -> None:
    entry = Entry("x", choices=(1, True, 1.5))
    assert len(set(entry.distribution().choices)) == 3
    assert [entry.meant(entry.named(choice)) for choice in entry.choices] == [1, True, 1.5]
    assert entry.holds(True)
    assert not entry.holds(False)


def test_order_follows_conditions() -> None:
    a, b, c = Entry("a", when=(("b", (1,)),)), Entry("b", when=(("c", (1,)),)), Entry("c", choices=(1, 2))
    assert [entry.key for entry in ordered([a, b, c])] == ["c", "b", "a"]


# overrides -----------------------------------------------------------------------------------------------------------
def test_a_variant_changes_what_it_names_and_leaves_the_teacher_alone(suite) -> None:
    made = suite()
    own = variant(made, "p", "chained", {})
    other = variant(
        made, "p", "chained",
        {"share": 0.5, "over.temperature": 9.0, "recipe.optimizer.lr": 0.2, "student.options.widths": [2, 2, 2]},
        epochs=5, seed=3,
    )  # fmt: skip
    assert (other.method.share, other.method.over.temperature, other.method.over.kd_weight) == (0.5, 9.0, 0.9)
    assert (other.recipe.optimizer.lr, other.recipe.epochs, other.recipe.schedule.warmup_epochs) == (0.2, 5, 1.0)
    assert other.roles["student"].options == {"widths": [2, 2, 2]}
    assert other.frozen["teacher"].key == own.frozen["teacher"].key
    assert own.key != other.key
    assert variant(made, "p", "chained", {"over.temperature": 3.0}).key == own.key  # the suite's own value


def test_an_override_that_fits_nothing_is_a_sentence(suite) -> None:
    method, recipe = suite().methods["odd"], Recipe(epochs=4)
    for overrides, sentence in (
        ({"heta": 1.0}, "heta: Odd has no such knob (did you mean 'heat'?)"),
        ({"over.heat": 1.0}, "over.heat: Odd wraps no method"),
        ({"heat": 99.0}, "Odd refuses heat: Input should be less than or equal to 16"),
    ):
        with pytest.raises(UserError) as error:
            with_knobs(method, overrides)
        assert str(error.value) == sentence
    for overrides, sentence in (
        ({"recipe.optimizer.rl": 1.0}, "recipe: optimizer.rl"),
        ({"recipe.schedule.warmup_epochs": 9.0}, "warm-up of 9 epochs leaves none of 4"),
    ):
        with pytest.raises(UserError, match=sentence):
            with_fields(recipe, overrides)


def test_options_merge_and_another_name_starts_anew() -> None:
    recipe = Recipe.model_validate({"epochs": 4, "optimizer": {"options": {"eps": 1e-8, "foreach": True}}})
    assert with_fields(recipe, {"recipe.optimizer.options.eps": 1e-6}).optimizer.options == {
        "eps": 1e-6,
        "foreach": True,
    }
    lamb = with_fields(recipe, {"recipe.optimizer.name": "lamb", "recipe.optimizer.options.eps": 1e-6}).optimizer
    assert (lamb.name, lamb.options) == ("lamb", {"eps": 1e-6})
    student = Model.model_validate({"model": "cnn", "options": {"widths": [1], "k": 2}})
    assert with_student(student, {}) is student
    assert with_student(student, {"student.options.k": 3}).options == {"widths": [1], "k": 3}
    assert with_student(student, {"student.model": "mlp", "student.options.h": 1}).options == {"h": 1}
