from __future__ import annotations

import json
import re
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

from kdbench import installed, plugins
from kdbench.method import Method, knob, knobs
from kdbench.suite.knobs import method_model
from kdbench.suite.schema import schema, schema_text

PUBLISHED = Path(__file__).parents[2] / "docs" / "suite.schema.json"
TYPES: dict[str, Any] = {
    "object": dict,
    "array": list,
    "string": str,
    "boolean": bool,
    "null": type(None),
    "integer": int,
    "number": (int, float),
}


def accepts(rule: Any, value: Any, root: dict[str, Any]) -> bool:
    """A reference validator for the part of JSON Schema that is used here."""
    if isinstance(rule, bool):
        return rule
    ok = True
    for key, wanted in rule.items():
        if key == "$ref":
            ok &= accepts(root["$defs"][wanted.removeprefix("#/$defs/")], value, root)
        elif key == "anyOf":
            ok &= any(accepts(option, value, root) for option in wanted)
        elif key == "oneOf":
            ok &= sum(accepts(option, value, root) for option in wanted) == 1
        elif key == "not":
            ok &= not accepts(wanted, value, root)
        elif key == "type":
            ok &= isinstance(value, TYPES[wanted]) and not (isinstance(value, bool) and wanted in ("integer", "number"))
        elif key == "const":
            ok &= value == wanted
        elif key == "enum":
            ok &= value in wanted
        elif isinstance(value, dict) and key == "required":
            ok &= set(wanted) <= set(value)
        elif isinstance(value, dict) and key == "properties":
            ok &= all(accepts(inner, value[name], root) for name, inner in wanted.items() if name in value)
        elif isinstance(value, dict) and key == "additionalProperties":
            known, patterns = rule.get("properties", {}), rule.get("patternProperties", {})
            rest = [n for n in value if n not in known and not any(re.search(p, n) for p in patterns)]
            ok &= all(accepts(wanted, value[name], root) for name in rest)
        elif isinstance(value, dict) and key == "patternProperties":
            ok &= all(
                accepts(inner, item, root)
                for pattern, inner in wanted.items()
                for name, item in value.items()
                if re.search(pattern, name)
            )
        elif isinstance(value, dict) and key == "propertyNames":
            ok &= all(accepts(wanted, name, root) for name in value)
        elif isinstance(value, list) and key == "items":
            ok &= all(accepts(wanted, item, root) for item in value)
        elif isinstance(value, str) and key == "pattern":
            ok &= re.search(wanted, value) is not None
        elif isinstance(value, int | float) and key in ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"):
            ok &= {
                "minimum": value >= wanted,
                "maximum": value <= wanted,
                "exclusiveMinimum": value > wanted,
                "exclusiveMaximum": value < wanted,
            }[key]
    return bool(ok)


@dataclass(frozen=True)
class Plain(Method):
    """A plain method.

    More about it.
    """

    temperature: float = knob(4, "softens", low=1, high=16, log=True)
    layers: int = knob(2, low=1)
    mode: str = knob("mean", choices=("mean", "sum"))
    weights: tuple[float, ...] = knob((1.0, 0.5), low=0)

    def loss(self, learner: Any, teachers: Any, batch: Any, heads: Any) -> dict[str, Any]:
        return {}


@pytest.fixture
def one_method(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr(plugins, "builtin_methods", lambda: ("plain",))
    monkeypatch.setattr(plugins, "method_class", lambda name, folder: Plain)
    return schema()


def test_the_published_schema_is_the_generated_one() -> None:
    assert PUBLISHED.read_text(encoding="utf-8") == schema_text(), "run: kdbench schema > docs/suite.schema.json"


def test_the_schema_does_not_depend_on_what_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    before = schema_text()
    monkeypatch.setattr(installed, "entry_points", lambda group: [EntryPoint("extra", "nowhere:X", group)])
    plugins.forget()
    try:
        assert "extra" in plugins.method_names()
        assert schema_text() == before
    finally:
        plugins.forget()


def test_every_method_and_every_knob_is_in_the_schema() -> None:
    document = json.loads(schema_text())
    assert document["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    names = plugins.builtin_methods()
    assert {name for name in document["$defs"] if name.startswith("method.")} == {f"method.{name}" for name in names}
    for name in names:
        properties = document["$defs"][f"method.{name}"]["properties"]
        cls = plugins.method_class(name, Path())
        assert set(properties) - {"method", "over"} == set(knobs(cls))
        assert ("over" in properties) == plugins.is_wrapper(cls)


def test_a_knob_has_type_range_default_and_help(one_method: dict[str, Any]) -> None:
    method = one_method["$defs"]["method.plain"]
    assert method["description"] == "A plain method."
    temperature = method["properties"]["temperature"]
    del temperature["title"]
    assert temperature == {"type": "number", "minimum": 1, "maximum": 16, "default": 4, "description": "softens"}
    assert method["properties"]["mode"]["enum"] == ["mean", "sum"]
    assert method["properties"]["weights"]["items"] == {"type": "number", "minimum": 0}


@pytest.mark.parametrize(
    ("methods", "expected"),
    [
        ({"plain": None}, True),
        ({"plain": {}}, True),
        ({"plain": {"temperature": 3}}, True),
        ({"plain": {"method": "plain", "layers": 3, "mode": "sum", "weights": [1, 2]}}, True),
        ({"soft": {"method": "plain", "temperature": 16}}, True),
        ({"soft": {"method": "plain", "temperature": 17}}, False),
        ({"soft": {"method": "plain", "layers": 1.5}}, False),
        ({"soft": {"method": "plain", "mode": "median"}}, False),
        ({"soft": {"method": "plain", "weights": [-1]}}, False),
        ({"soft": {"method": "plain", "temprature": 3}}, False),
        ({"plain": {"temprature": 3}}, False),
        ({"mine": {"method": "./mine.py", "anything": 3, "over": {"method": "plain"}}}, True),
        ({"mine": {"method": "./mine.py", "over": {"method": "plain", "layers": 0}}}, False),
        ({"installed": None}, True),
        ({"a b": None}, False),
        ({"soft": 3}, False),
    ],
)
def test_the_schema_judges_methods_as_the_loader_does(
    one_method: dict[str, Any], methods: dict[str, Any], expected: bool
) -> None:
    suite = {"name": "s", "data": {"name": "digits"}, "recipe": {"epochs": 1}, "methods": methods}
    suite["pairs"] = {"p": {"teacher": "a", "student": {"model": "b", "train": {"epochs": 2}}, "ta": "c"}}
    assert accepts(one_method, suite, one_method) is expected


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        ({"p": {"teacher": "a", "student": "b", "reported": {"kd": 70, "none": {"top1": 69.5}}}}, True),
        ({"p": {"teacher": "a", "student": {"model": "b", "train": False}, "recipe": {"epochs": 3}}}, True),
        ({"p": {"teacher": "a"}}, False),
        ({"p": {"teacher": "a", "student": 3}}, False),
        ({"p": {"teacher": "a", "student": {"model": "b", "train": {"epochs": 0}}}}, False),
        ({"p": {"teacher": "a", "student": "b", "reported": {"a b": 70}}}, False),
        ({"a b": {"teacher": "a", "student": "b"}}, False),
    ],
)
def test_the_schema_judges_pairs(one_method: dict[str, Any], pairs: dict[str, Any], expected: bool) -> None:
    suite = {"name": "s", "data": {"name": "digits"}, "recipe": {"epochs": 1}, "methods": {"plain": None}}
    assert accepts(one_method, {**suite, "pairs": pairs}, one_method) is expected


def test_a_suite_that_extends_another_needs_little(one_method: dict[str, Any]) -> None:
    assert accepts(one_method, {"extends": "base.yaml"}, one_method)
    assert not accepts(one_method, {"name": "s"}, one_method)


def test_a_method_that_cannot_be_read_is_a_sentence() -> None:
    class Bare(Plain):
        pass

    @dataclass(frozen=True)
    class Unknown(Plain):
        wrong: Nowhere = knob(1)  # type: ignore[name-defined] # noqa: F821

    @dataclass(frozen=True)
    class Taken(Plain):
        method: int = knob(1)

    class NoDataclass(Method):
        def loss(self, learner: Any, teachers: Any, batch: Any, heads: Any) -> dict[str, Any]:
            return {}

    for cls, sentence in [
        (Unknown, "Unknown: the type of a knob cannot be read: name 'Nowhere' is not defined"),
        (Taken, "Taken: a knob cannot be called `method`"),
        (NoDataclass, "NoDataclass is not a dataclass: write @dataclass(frozen=True) above it"),
    ]:
        with pytest.raises(LookupError) as caught:
            method_model(cls)
        assert caught.value.args[0] == sentence
    assert set(method_model(Bare).model_fields) == set(knobs(Plain))
