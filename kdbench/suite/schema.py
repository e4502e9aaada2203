"""A method's knobs as a pydantic model, and the JSON Schema of suite files for editors.

Regenerate the published schema with `kdbench schema > docs/suite.schema.json`.
"""

from __future__ import annotations

import ast
import json
from inspect import cleandoc
from itertools import pairwise
from pathlib import Path
from typing import Any

from kdbench import plugins
from kdbench.method import Method, chain
from kdbench.suite import fields
from kdbench.suite.fields import SuiteFile
from kdbench.suite.knobs import method_model


def knob_annotation(method: Method, key: str) -> Any:
    """The type of `temperature`, or of `over.temperature` of what it wraps; None where there is no such knob."""
    for prefix, link in chain(method):
        field = method_model(type(link)).model_fields.get(key.removeprefix(prefix))
        if key.startswith(prefix) and field is not None:
            return field.annotation
    return None


def schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of a suite file, the knobs of kdbench's own methods included.

    It does not depend on what else is installed: other methods are accepted with any knobs.
    """
    document = SuiteFile.model_json_schema()
    definitions = document["$defs"]
    _describe({"SuiteFile": document, **definitions})
    builtin = plugins.builtin_methods()
    any_method: dict[str, Any] = {"$ref": "#/$defs/method"}
    for name in builtin:
        definitions[f"method.{name}"] = _method_schema(name)
    explicit = [{"$ref": f"#/$defs/method.{name}", "required": ["method"]} for name in builtin]
    other = {
        "description": "A method of an installed package, or of a Python file (`./mine.py`).",
        "type": "object",
        "properties": {"method": {"type": "string", "not": {"enum": list(builtin)}}, "over": any_method},
        "required": ["method"],
    }
    definitions["method"] = {"anyOf": [{"type": "null"}, *explicit, other]}
    methods = document["properties"]["methods"]
    (pattern,) = methods["patternProperties"]
    for part in (document, definitions["Pair"]):  # pydantic leaves other names open
        for rule in part["properties"].values():
            if "patternProperties" in rule:
                rule["additionalProperties"] = False
    document["properties"]["methods"] = {
        "description": methods["description"],
        "type": "object",
        "minProperties": 1,
        "propertyNames": {**methods["propertyNames"], "pattern": pattern},
        "properties": {name: {"anyOf": [any_method, {"$ref": f"#/$defs/method.{name}"}]} for name in builtin},
        # A label may be the name of an installed method: then it needs no `method`.
        "additionalProperties": {"anyOf": [any_method, {"type": "object", "not": {"required": ["method"]}}]},
    }
    required = document.pop("required")
    document["anyOf"] = [{"required": required}, {"required": ["extends"]}]  # the rest may come from the other file
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **document}


def _describe(classes: dict[str, Any]) -> None:
    """Add the text below each field in the source. pydantic can (`use_attribute_docstrings`), but at every import."""
    source = ast.parse(Path(fields.__file__).read_bytes())
    bodies = {node.name: node.body for node in source.body if isinstance(node, ast.ClassDef)}
    for title, part in classes.items():
        for above, below in pairwise(bodies.get(title.removesuffix("Override"), ())):
            match above, below:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                    known = getattr(fields, title.removesuffix("Override")).model_fields.get(name)
                    if known and (rule := part["properties"].get(known.alias or name)):
                        rule["description"] = cleandoc(text)


def _method_schema(name: str) -> dict[str, Any]:
    cls = plugins.method_class(name, Path())
    document = method_model(cls).model_json_schema()
    properties: dict[str, Any] = {"method": {"const": name}, **document.get("properties", {})}
    if plugins.is_wrapper(cls):
        properties["over"] = {"$ref": "#/$defs/method", "description": "The method that this one wraps."}
    heading = (cls.__doc__ or "").strip().partition("\n")[0]
    return {
        "type": "object",
        "description": heading,
        "properties": properties,
        "additionalProperties": False,
    }


def schema_text() -> str:
    """What `kdbench schema` prints and `docs/suite.schema.json` holds."""
    return json.dumps(schema(), indent=2, sort_keys=True, ensure_ascii=False) + "\n"
