from __future__ import annotations

import pytest
from pydantic import BaseModel, ValidationError

from kdbench.suite.fields import Model, Pair, Recipe, RecipeOverride, Reported, SuiteFile, optional, patched

RECIPE = Recipe.model_validate(
    {"epochs": 10, "optimizer": {"lr": 0.1}, "schedule": {"name": "multistep", "milestones": [4, 8], "gamma": 0.2}}
)


def override(**values: object) -> BaseModel:
    return RecipeOverride.model_validate(values)


def test_an_override_changes_what_it_names_and_nothing_else() -> None:
    got = patched(RECIPE, override(epochs=9, optimizer={"momentum": 0.5}))
    assert got == RECIPE.model_copy(
        update={"epochs": 9, "optimizer": RECIPE.optimizer.model_copy(update={"momentum": 0.5})}
    )
    assert patched(RECIPE, None) is RECIPE
    assert patched(RECIPE, override()) == RECIPE


def test_a_renamed_part_starts_from_its_defaults() -> None:
    schedule = patched(RECIPE, override(schedule={"name": "cosine"})).schedule
    assert (schedule.milestones, schedule.gamma) == ((), 0.1)
    optimizer = patched(RECIPE, override(optimizer={"name": "adamw"})).optimizer
    assert (optimizer.name, optimizer.lr) == ("adamw", 0.05)
    kept = patched(RECIPE, override(optimizer={"name": "sgd", "momentum": 0.5})).optimizer
    assert (kept.lr, kept.momentum) == (0.1, 0.5)  # the same name renames nothing


def test_the_merged_recipe_is_checked_as_a_whole() -> None:
    with pytest.raises(ValidationError, match="milestone 8 is not before the last epoch"):
        patched(RECIPE, override(epochs=8))


def test_an_override_has_the_fields_and_bounds_of_the_recipe() -> None:
    assert set(RecipeOverride.model_fields) == set(Recipe.model_fields)
    for values in ({"epochs": 0}, {"epochs": 1.0}, {"optimizer": {"momentum": 1.0}}, {"epohcs": 3}):
        with pytest.raises(ValidationError):
            override(**values)
    assert override().model_dump(exclude_unset=True) == {}
    assert optional(Recipe)().model_dump(exclude_unset=True) == {}  # type: ignore[call-arg]


@pytest.mark.parametrize("value", ["10", True, 10.0, None])
def test_whole_numbers_are_strict(value: object) -> None:
    with pytest.raises(ValidationError):
        Recipe.model_validate({"epochs": value})


def test_short_forms_mean_the_long_ones() -> None:
    short = Pair.model_validate({"teacher": "a", "student": "b", "ta": "c", "reported": {"kd": 70}})
    long = Pair.model_validate(
        {"teacher": {"model": "a"}, "student": {"model": "b"}, "ta": {"model": "c"}, "reported": {"kd": {"top1": 70}}}
    )
    assert short == long
    assert list(short.roles.items()) == [(r, Model(model=m)) for r, m in zip(("teacher", "student", "ta"), "abc")]  # noqa: B905
    assert short.reported["kd"] == Reported(top1=70.0)


def test_a_claim_may_have_prefixes_by_their_number() -> None:
    claim = Reported.model_validate({"top1": 98, "macs_percent": 63, "prefixes": {"1": 72, "2": 93.5}})
    assert (claim.prefixes, claim.macs_percent) == ({1: 72.0, 2: 93.5}, 63.0)
    assert Reported.model_validate({"prefixes": {"1": 50}}).top1 is None
    with pytest.raises(ValidationError, match="needs `top1`"):
        Reported.model_validate({"macs_percent": 63})
    for wrong in ({"0": 72}, {"a": 72}, {"1": 101}, {"1": "72"}, [72]):
        with pytest.raises(ValidationError):
            Reported.model_validate({"top1": 98, "prefixes": wrong})


def test_train_is_a_flag_or_an_override() -> None:
    assert Model(model="a").train is True
    assert Model.model_validate({"model": "a", "train": False}).train is False
    train = Model.model_validate({"model": "a", "train": {"epochs": 3}}).train
    assert isinstance(train, RecipeOverride)
    assert train.epochs == 3  # type: ignore[attr-defined]
    for wrong in (1, "yes"):
        with pytest.raises(ValidationError) as caught:
            Model.model_validate({"model": "a", "train": wrong})
        assert len(caught.value.errors()) == 1  # of the form that was meant, not of both


def test_everything_is_frozen_and_closed() -> None:
    with pytest.raises(ValidationError):
        RECIPE.epochs = 3  # type: ignore[misc]
    with pytest.raises(ValidationError):
        SuiteFile.model_validate(
            {"name": "a", "data": {"name": "d"}, "recipe": {"epochs": 1}, "pairs": {}, "methods": {"kd": None}}
        )
