"""The chain of wrappers, which whatever speaks of `over.` knobs goes along."""

from __future__ import annotations

import pytest

from kdbench.errors import UserError
from kdbench.method import chain, knob_values
from kdbench.methods.dkd import DKD
from kdbench.methods.kd import KD
from kdbench.methods.mixup import Mixup
from kdbench.methods.opdf import OPDF
from kdbench.suite.overrides import with_knobs
from kdbench.suite.schema import knob_annotation

INNER = KD(temperature=2.0)
DEEP = OPDF(over=Mixup(over=INNER))


def test_chain_goes_from_the_outside_in_with_the_prefix_of_each() -> None:
    assert chain(INNER) == [("", INNER)]
    assert chain(DEEP) == [("", DEEP), ("over.", DEEP.over), ("over.over.", INNER)]


def test_knob_values_name_every_knob_once() -> None:
    values = knob_values(DEEP)
    assert values["over.over.temperature"] == 2.0
    assert values["over.alpha"] == DEEP.over.alpha  # type: ignore[attr-defined]
    assert "over" not in values
    assert list(knob_values(INNER)) == ["temperature", "ce_weight", "kd_weight"]


def test_knob_annotation_of_each_link() -> None:
    assert knob_annotation(DEEP, "over.over.temperature") is not None
    assert knob_annotation(DEEP, "over.temperature") is None
    assert knob_annotation(DKD(), "over.temperature") is None


def test_with_knobs_changes_what_a_path_names_and_keeps_the_rest() -> None:
    changed = with_knobs(DEEP, {"over.over.temperature": 3.0, "over.alpha": 0.5, "recipe.epochs": 4})
    expected = OPDF(over=Mixup(over=KD(temperature=3.0), alpha=0.5))
    assert changed == expected
    assert with_knobs(DEEP, {"student.model": "cnn"}) is DEEP
    assert with_knobs(DEEP, {"over.alpha": 0.5}).over.over is INNER  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    [
        ("over.over.over.x", 1, "over.over.over.x: KD wraps no method"),
        ("over.over.temprature", 1, "over.over.temprature: KD has no such knob (did you mean 'temperature'?)"),
        ("over", 1, "over: OPDF has no such knob"),
        ("over.over.temperature", 99.0, "KD refuses temperature: Input should be less than or equal to 20"),
    ],
)
def test_with_knobs_refuses_in_one_sentence(path: str, value: object, sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        with_knobs(DEEP, {path: value})
    assert str(caught.value).startswith(sentence)
