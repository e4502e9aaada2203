"""What a board says about its suite."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdbench import births
from kdbench.board.rows import Heading
from kdbench.pairing import pairing
from kdbench.suite.fields import Model, Recipe
from kdbench.suite.job import method_content
from kdbench.suite.load import Suite

if TYPE_CHECKING:
    pass


def heading(suite: Suite) -> Heading:
    """What the board says about the suite: no paths."""
    file = suite.file
    return Heading(
        suite=file.name,
        version=file.version,
        description=file.description,
        data=file.data.model_dump(mode="json", exclude_defaults=True),
        recipe=_recipe(file.recipe),
        pairs=tuple(dict.fromkeys(pair for pair, _ in suite.cells)),
        methods={
            label: describe(method_content(suite.methods[label]))
            for label in dict.fromkeys(label for _, label in suite.cells)
        },
        cells=suite.cells,
        seeds=tuple(file.seeds),
        headline=suite.task.headline,
        metrics=suite.task.metrics,
        followed=suite.task.followed,
        example="image" if suite.task.kind == "categorical" else "example",
        floor=file.floor,
        reference=file.reference,
        reported={(name, label): claim for name, pair in file.pairs.items() for label, claim in pair.reported.items()},
        roles={name: {role: _model(model) for role, model in pair.roles.items()} for name, pair in file.pairs.items()},
        unpaired=_unpaired(suite),
        notes={name: pair.note for name, pair in file.pairs.items() if pair.note},
    )


def _recipe(recipe: Recipe) -> dict[str, Any]:
    """The recipe's fields; of those younger than stored results, only the ones that are not at their default."""
    content = births.content(recipe)
    dumped = recipe.model_dump(mode="json", include={*content, *births.outside(Recipe)})
    return {name: content.get(name, value) for name, value in dumped.items() if name in content or value is not None}


def describe(content: dict[str, Any]) -> str:
    """`kd(temperature=4.0, ...)`, `mixup(alpha=0.2) over none()`."""
    knobs = ", ".join(f"{name}={value}" for name, value in content["knobs"].items())
    over = f" over {describe(content['over'])}" if "over" in content else ""
    return f"{content['name']}({knobs}){over}"


def _model(model: Model) -> str:
    name, options = Path(model.model).name, ", ".join(f"{k}={v}" for k, v in model.options.items())
    layers = "" if model.layers is None else f"layers {', '.join(map(str, model.layers))} of "
    start = "" if model.init is None else f" from {layers}the trained {model.init}"
    start += "" if model.initial is None else f" from the weights in {Path(model.initial).name}"
    return (f"{name}({options})" if options else name) + start


def _unpaired(suite: Suite) -> dict[str, str]:
    """Label -> what it does not share with the other methods, on any of its pairs."""
    found: dict[str, str] = {}
    for pair, label in suite.cells:
        if words := pairing(suite.methods[label], tuple(suite.file.pairs[pair].roles)).words:
            found.setdefault(label, words)
    return found
