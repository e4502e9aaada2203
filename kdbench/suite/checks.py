"""What a suite file must satisfy beyond its fields: names exist, files are there, plans fit their pairs.

The checks read the file's nodes, so that they run and report even where other parts of the file are wrong.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from kdbench import plugins
from kdbench.errors import did_you_mean, near
from kdbench.files import is_file
from kdbench.method import Method, Plan, Refusal
from kdbench.suite.fields import Augment, Pair, Recipe, RecipeOverride, SuiteFile, Tune, patched, rung_role
from kdbench.suite.nodes import Node, Problems, kind
from kdbench.suite.search_checks import student_models
from kdbench.suite.sentences import report

_PAIR_FIELDS = tuple(name for name in Pair.model_fields if name not in ("teacher", "student"))
_GLOB = frozenset("*?[")
MOST = 1_000_000  # of a width, a depth and the like; what they make together is bounded when it is built


@dataclass(frozen=True)
class RoleNode:
    """A role of a pair; `rung` is its place in the pair's ladder, where it has its options and perhaps a model."""

    pair: str
    role: str
    node: Node
    rung: int | None = None

    @property
    def path(self) -> tuple[str | int, ...]:
        return ("pairs", self.pair, self.role) if self.rung is None else ("pairs", self.pair, "ladder", self.rung)

    def field(self, name: str) -> Node | None:
        if not isinstance(self.node.value, dict) or (self.rung is not None and name != "model"):
            return None
        return self.node.get(name)

    @property
    def model(self) -> Node | None:
        return self.node if isinstance(self.node.value, str) else self.field("model")


def entries(root: Node, *path: str) -> dict[str, Node]:
    """The map at `path`, or an empty one where it is absent or not a map."""
    node = root.at(path)
    return node.value if node is not None and isinstance(node.value, dict) else {}


def roles(root: Node) -> Iterator[RoleNode]:
    """In the order of `Pair.roles`, but for teacher and student."""
    for pair in entries(root, "pairs"):
        ladder = root.at(("pairs", pair, "ladder"))
        for index, node in enumerate(ladder.value if ladder is not None and isinstance(ladder.value, list) else ()):
            yield RoleNode(pair, rung_role(index), node, index)
        for role, node in entries(root, "pairs", pair).items():
            if role not in _PAIR_FIELDS:
                yield RoleNode(pair, role, node)


def _text(node: Node | None) -> str | None:
    return node.value if node is not None and isinstance(node.value, str) else None


# cells ---------------------------------------------------------------------------------------------------------------
def cells(root: Node, problems: Problems) -> tuple[tuple[str, str], ...]:
    """(pair, label) of every cell: all of them or `triples`, without `exclude`; pairs and labels in file order."""
    pairs, labels = list(entries(root, "pairs")), list(entries(root, "methods"))
    triples = root.get("triples")
    chosen = {(pair, label) for pair in pairs for label in labels}
    if triples is not None and isinstance(triples.value, list):
        chosen = set().union(*_matches(root, "triples", pairs, labels, problems))
    for index, found in enumerate(_matches(root, "exclude", pairs, labels, problems)):
        node = root.at(("exclude", index))
        if found and not found & chosen and node is not None:
            problems.add(node.mark, ("exclude", index), "excludes nothing: no triple is left that it matches")
        chosen -= found
    ordered = tuple((pair, label) for pair in pairs for label in labels if (pair, label) in chosen)
    if pairs and labels and not ordered and not problems.touch(("triples",)) and not problems.touch(("exclude",)):
        node = root.get("exclude") or root.get("triples") or root
        problems.add(node.where, ("exclude",) if root.get("exclude") else ("triples",), "nothing is left to train")
    return ordered


def _matches(
    root: Node, section: str, pairs: list[str], labels: list[str], problems: Problems
) -> Iterator[set[tuple[str, str]]]:
    @cache
    def select(pattern: str, sort: str) -> tuple[str, ...]:
        names = pairs if sort == "pair" else labels
        if _GLOB.isdisjoint(pattern):
            return (pattern,) if pattern in names else ()
        return tuple(name for name in names if fnmatch.fnmatchcase(name, pattern))

    node = root.get(section)
    for index, item in enumerate(node.value if node is not None and isinstance(node.value, list) else ()):
        selected = []
        for sort, names in (("pair", pairs), ("method", labels)):
            field = item.get(sort) if isinstance(item.value, dict) else None
            pattern = _text(field)
            found = select(pattern, sort) if pattern is not None else ()
            if field is not None and pattern is not None and not found:
                sentence = f"no {sort} matches '{pattern}'{did_you_mean(pattern, names)}"
                problems.add(field.mark, (section, index, sort), sentence)
            selected.append(found)
        yield {(pair, label) for pair in selected[0] for label in selected[1]}


# numbers -------------------------------------------------------------------------------------------------------------
def numbers(root: Node, problems: Problems) -> None:
    """Numbers are finite wherever they stand, and whole ones in options of models are of a size that can be built."""
    places: list[tuple[tuple[str | int, ...], Node]] = [((), root)]
    while places:
        path, node = places.pop()
        if isinstance(node.value, dict):
            places += [((*path, name), item) for name, item in node.value.items()]
        elif isinstance(node.value, list):
            places += [((*path, index), item) for index, item in enumerate(node.value)]
        elif isinstance(node.value, float) and not math.isfinite(node.value):
            problems.add(node.mark, path, f"expects a finite number, got {kind(node.value)}")
        elif type(node.value) in (int, float) and abs(node.value) > MOST and _of_a_model(path):
            problems.add(node.mark, path, f"must be at most {MOST:,} in size, got {kind(node.value)}")


def _of_a_model(path: tuple[str | int, ...]) -> bool:
    """Whether a value is an option of a model: a role's, a rung's, or one that `tune` gives the student."""
    if path[:2] == ("tune", "space"):
        return str(path[2:3]).startswith("('student.options.")
    return path[:1] == ("pairs",) and ("options" in path[3:4] or "ladder" in path[2:3])


# names and files -----------------------------------------------------------------------------------------------------
def file_names(root: Node, problems: Problems) -> None:
    """Suites, pairs and labels name files: none may take a name that is another's, nor differ from it in case alone."""
    name = _text(root.get("name")) or ""
    if name.casefold() == "readme":
        _taken(root.get("name"), ("name",), f"'{name}' is the name of the boards' index: choose another", problems)
    if name.casefold().endswith((".tuned", ".anytime")):
        _taken(root.get("name"), ("name",), "ends like a picture of another suite's board: choose another", problems)
    for pair, node in entries(root, "pairs").items():
        if pair.casefold().endswith(".tuned") or pair.casefold() == "readme.md":
            _taken(node, ("pairs", pair), "is the name of another file of a board: choose another", problems)
    for label, node in entries(root, "methods").items():
        if label.casefold() == "expected-best":
            _taken(node, ("methods", label), "is the name of a pair's picture: choose another", problems)
    for section in ("pairs", "methods"):
        seen: dict[str, str] = {}
        for key, node in entries(root, section).items():
            first = seen.setdefault(key.casefold(), key)
            if first != key:
                sentence = f"differs from '{first}' in upper and lower case alone: their files would share a name"
                _taken(node, (section, key), sentence, problems)


def _taken(node: Node | None, path: tuple[str | int, ...], sentence: str, problems: Problems) -> None:
    if node is not None:
        problems.add(node.key or node.mark, path, sentence)


def references(root: Node, folder: Path, problems: Problems) -> None:
    """Data sets, models, weights, optimisers and the labels of `reported`."""
    _name(root.at(("data", "name")), ("data", "name"), "data set", plugins.names("data"), folder, problems)
    optimizers = plugins.optimizer_names()
    for path, node in _optimizers(root):
        name = _text(node) or ""
        if optimizers and name and name.lower().removeprefix("lookahead_") not in optimizers:
            problems.add(node.mark, path, f"unknown optimiser '{name}'{did_you_mean(name, optimizers)}")
    rungs = {(item.pair, item.role) for item in roles(root) if item.rung is not None}
    for item in roles(root):
        if item.rung is None and (item.pair, item.role) in rungs:
            sentence = "is a rung of the pair's `ladder` already: remove one of them"
            problems.add(item.node.key or item.node.mark, item.path, sentence)
        _role(item, folder, problems)
    for path_, node in student_models(root):
        _model(node, path_, folder, problems)
    labels = [*entries(root, "methods"), "teacher"]
    for pair in entries(root, "pairs"):
        for label, node in entries(root, "pairs", pair, "reported").items():
            if label not in labels:
                sentence = f"no method has the label '{label}'{did_you_mean(label, labels)}"
                problems.add(node.key or node.mark, ("pairs", pair, "reported", label), sentence)


def _optimizers(root: Node) -> Iterator[tuple[tuple[str, ...], Node]]:
    places = [("recipe",), *(("pairs", pair, "recipe") for pair in entries(root, "pairs"))]
    places += [("pairs", item.pair, item.role, "train") for item in roles(root)]
    for place in places:
        path = (*place, "optimizer", "name")
        if (node := root.at(path)) is not None:
            yield path, node


@cache
def _timm_names() -> frozenset[str]:
    from kdbench.plugins import timm_names

    return frozenset(timm_names())


def _model(node: Node | None, path: tuple[str | int, ...], folder: Path, problems: Problems) -> None:
    own, name = plugins.names("models"), _text(node)
    if name is None or name in own:
        return
    known = plugins.is_file(name) or name.partition(".")[0] in _timm_names()
    _name(node, path, "model", (name,) if known else (*own, *_timm_names()), folder, problems)


def _role(item: RoleNode, folder: Path, problems: Problems) -> None:
    if not item.role.replace("_", "").isalnum() or not item.role[0].isalpha():
        sentence = "is not the name of a role: use letters, digits and _, starting with a letter"
        problems.add(item.node.key or item.node.mark, item.path, sentence)
    path = item.path if isinstance(item.node.value, str) else (*item.path, "model")
    name = _text(item.model)
    _model(item.model, path, folder, problems)
    pretrained = item.field("pretrained")
    foreign = name is not None and (name in plugins.names("models") or plugins.is_file(name))
    if pretrained is not None and pretrained.value is True and foreign:
        sentence = f"pretrained weights exist for timm's models only; give '{name}' its `weights`"
        problems.add(pretrained.mark, (*item.path, "pretrained"), sentence)
    for field in ("weights", "answers", "init"):
        given = item.field(field)
        file = _text(given)
        if given is not None and file is not None and not is_file(folder / file):
            sentence = f"no such file: {file} (looked for beside the suite file){near(folder / file)}"
            problems.add(given.mark, (*item.path, field), sentence)


def _name(
    node: Node | None,
    path: tuple[str | int, ...],
    sort: str,
    known: Iterable[str],
    folder: Path,
    problems: Problems,
) -> None:
    name = _text(node)
    if node is None or name is None:
        return
    if plugins.is_file(name):
        if sentence := plugins.missing_in_file(name, folder):
            problems.add(node.mark, path, sentence)
    elif name not in known:
        problems.add(node.mark, path, f"unknown {sort} '{name}'{did_you_mean(name, known)}")


# recipes and seeds ---------------------------------------------------------------------------------------------------
def recipes(root: Node, problems: Problems) -> None:
    """Overrides of pairs and roles, merged over the suite's recipe and checked as a whole."""
    node = root.get("recipe")
    if node is None or problems.touch(("recipe",)):
        return
    recipe = Recipe.model_validate(node.plain())
    inexact = _inexact(recipe, root, ("recipe",), problems)
    for pair in entries(root, "pairs"):
        own = _merged(recipe, root, ("pairs", pair, "recipe"), problems)
        if own is not None and not inexact:
            _inexact(own, root, ("pairs", pair, "recipe"), problems)
        for role in entries(root, "pairs", pair) if own is not None else ():
            _merged(own, root, ("pairs", pair, role, "train"), problems)  # type: ignore[arg-type]


def _inexact(recipe: Recipe, root: Node, path: tuple[str, ...], problems: Problems) -> bool:
    """Whether teachers would be asked once about images that change; reported at `path`."""
    if recipe.teacher_logits == "live" or recipe.augment == Augment():
        return False
    node = root.at((*path, "teacher_logits")) or root.at((*path, "augment")) or root.nearest(path)
    problems.add(
        node.where,
        (*path, "teacher_logits"),
        "`stored` is exact without augmentation only: what teachers say of an image changes with its pixels; "
        "remove `augment`, or let them run (`live`)",
    )
    return True


def _merged(recipe: Recipe, root: Node, path: tuple[str, ...], problems: Problems) -> Recipe | None:
    node = root.at(path)
    if node is None or not isinstance(node.value, dict):
        return recipe
    if problems.touch(path):
        return None
    try:
        return patched(recipe, RecipeOverride.model_validate(node.plain()))
    except ValidationError as error:
        report(error, Recipe, root, problems, at=path)
        return None


def seeds(root: Node, problems: Problems) -> None:
    """Seeds are given once, and tuning never sees a final seed (protocol, rule 3)."""
    final = _seeds(root, ("seeds",), problems)
    final = final or list(SuiteFile.model_fields["seeds"].default)
    tune = root.get("tune")
    if tune is not None and isinstance(tune.value, dict) and "seeds" not in tune.value:
        for seed in set(Tune.model_fields["seeds"].default) & {seed for seed in final if isinstance(seed, int)}:
            sentence = f"its default seed {seed} is one of the suite's seeds: give `seeds` that differ from them"
            problems.add(tune.where, ("tune",), sentence)
    for index, seed in enumerate(_seeds(root, ("tune", "seeds"), problems)):
        node = root.at(("tune", "seeds", index))
        if seed in final and node is not None:
            sentence = f"seed {seed} is one of the suite's seeds: tuning and final seeds must differ"
            problems.add(node.mark, ("tune", "seeds", index), sentence)


def _seeds(root: Node, path: tuple[str, ...], problems: Problems) -> list[Any]:
    node = root.at(path)
    found: list[Any] = []
    for index, item in enumerate(node.value if node is not None and isinstance(node.value, list) else ()):
        if item.value in found and not isinstance(item.value, dict | list):
            problems.add(item.mark, (*path, index), f"seed {item.value} is given twice")
        found.append(item.value)
    return found


# plans ---------------------------------------------------------------------------------------------------------------
def plans(root: Node, methods: dict[str, Method], cells: Iterable[tuple[str, str]], problems: Problems) -> None:
    """Every cell's plan names roles that its pair has; fields of a role that nothing reads are refused."""

    @cache
    def plan(label: str, have: tuple[str, ...]) -> Plan | str:
        return _plan(methods[label], have)

    have: dict[str, tuple[str, ...]] = {}
    for item in roles(root):
        have[item.pair] = (*have.get(item.pair, ()), item.role)
    frozen: dict[str, set[str]] = {}
    trained: dict[str, dict[str, tuple[str, ...]]] = {}
    unclear: set[str] = set()
    for pair, label in cells:
        names = have.get(pair, ())
        if label not in methods or "teacher" not in names or "student" not in names:
            unclear.add(pair)
            continue
        names = tuple(dict.fromkeys(["teacher", "student", *names]))  # the order of Pair.roles
        found = plan(label, names)
        sentences = [f"method '{label}' cannot be used here: {found}"] if isinstance(found, str) else []
        if isinstance(found, Plan):
            sentences = _misfits(found, label, pair, names)
            trained.setdefault(pair, {})[label] = found.learners
            frozen.setdefault(pair, set()).update({"teacher", *found.roles} - set(found.learners))
            frozen[pair].update(source for role, source in found.copies.items() if role in found.frozen)
            for role in found.started:
                sentences += _weightless(root, pair, label, role, found)
        node = root.at(("pairs", pair))
        for sentence in sentences:
            unclear.add(pair)
            problems.add(node.where if node else root.where, ("pairs", pair), sentence)
    for item in roles(root):
        source = _text(item.field("from"))
        if source is not None and source in have.get(item.pair, ()) and item.pair in trained:
            for label in [label for label, learners in trained[item.pair].items() if source in learners]:
                sentence = (
                    f"starts from '{source}', which method '{label}' trains: exclude it, or start from another role"
                )
                problems.add(item.field("from").mark, (*item.path, "from"), sentence)  # type: ignore[union-attr]
        if item.pair in frozen and item.pair not in unclear and item.role not in frozen[item.pair]:
            _without_effect(item, problems)
        elif item.pair in frozen and (started := item.field("init")) is not None:
            sentence = "is where a role starts to learn, and a method of this pair uses it as a frozen teacher: give it"
            problems.add(started.where, (*item.path, "init"), f"{sentence} `weights`, or exclude that method")


CONTROLS = {
    "floor": (False, "must learn without a teacher, but its method has one"),
    "reference": (True, "must have a teacher, but its method has none"),
}


def controls(root: Node, methods: dict[str, Method], problems: Problems) -> None:
    """The floor learns without a teacher, the reference with one; a default label that no method has is no mistake."""
    labels, have = entries(root, "methods"), {pair: ["teacher", "student"] for pair in entries(root, "pairs")}
    for item in roles(root):
        have[item.pair].append(item.role)
    for field, (wanted, sentence) in CONTROLS.items():
        node = root.get(field)
        label = SuiteFile.model_fields[field].default if node is None else _text(node)
        if node is not None and label is not None and label not in labels:
            problems.add(node.mark, (field,), f"no method has the label '{label}'{did_you_mean(label, labels)}")
        if label not in methods:
            continue
        plans = [_plan(methods[label], tuple(dict.fromkeys(names))) for names in have.values()]
        taught = [_taught(plan) for plan in plans if isinstance(plan, Plan)]
        if taught and any(taught) is not wanted:
            where, path = (labels[label].where, ("methods", label)) if node is None else (node.mark, (field,))
            hint = f"give another label as `{field}`, or rename this one" if node is None else "give another label"
            problems.add(where, path, f"'{label}' is the suite's {field}: it {sentence}; {hint}")


def _taught(plan: Plan) -> bool:
    return any(teachers for stage in plan.stages for teachers in stage.learners.values())


def _plan(method: Method, names: tuple[str, ...]) -> Plan | str:
    try:
        found = method.plan(names)
    except Refusal as refusal:
        return str(refusal)
    except Exception as error:
        return f"its plan fails: {type(error).__name__}: {error}"
    return found if isinstance(found, Plan) else "its plan is not a Plan"


def _misfits(plan: Plan, label: str, pair: str, names: tuple[str, ...]) -> list[str]:
    sentences = [
        f"method '{label}' needs role '{role}' in pair '{pair}'{did_you_mean(role, names)}: "
        f"add {'a `ladder`' if role == rung_role(0) else 'it'}, or exclude the pair"
        for role in dict.fromkeys([*plan.roles, *plan.copies.values()])
        if role not in names and role not in plan.copies
    ]
    wrong = f"method '{label}' has an impossible plan: "
    sentences += [
        f"{wrong}it makes a copy called '{role}', which the pair has as a role" for role in plan.copies if role in names
    ]
    for role in plan.started:
        source = plan.copies.get(role)
        if source is None or source in plan.learners:
            sentences.append(f"{wrong}'{role}' starts from no frozen role")
    if not plan.stages or any(not stage.learners for stage in plan.stages):
        sentences.append(f"{wrong}a stage trains nobody")
    if any(not (math.isfinite(stage.share) and stage.share > 0) for stage in plan.stages):
        sentences.append(f"{wrong}the share of a stage must be more than 0")
    for role in plan.learners:
        if any(role in stage.learners.get(role, ()) for stage in plan.stages):
            sentences.append(f"{wrong}'{role}' teaches itself")
    if "teacher" in plan.learners:
        sentences.append(
            f"{wrong}it trains 'teacher', which every row of the pair is compared with: train a copy instead, "
            f"`copies={{'coach': 'teacher'}}` in its plan"
        )
    missing = [role for role in plan.answer if role not in plan.learners]
    if missing or not plan.answer:
        who = f"'{missing[0]}'" if missing else "nobody"
        sentences.append(f"{wrong}{who} answers without having been trained")
    return sentences


def _weightless(root: Node, pair: str, label: str, role: str, plan: Plan) -> Iterator[str]:
    """Why a role cannot start from the trained weights of the one that it is a copy of."""
    source = plan.copies.get(role)
    for item in roles(root):
        if item.pair == pair and item.role == source:
            for field, what in (
                ("answers", "is a file of answers and has no weights"),
                ("from", "starts from another"),
            ):
                if item.field(field) is not None:
                    yield f"method '{label}' starts a {role} from '{source}', which {what}: exclude it"


def _without_effect(item: RoleNode, problems: Problems) -> None:
    """Fields that say where a frozen role's weights come from, on a role that the methods train themselves."""
    for name in ("gate", "min_top1", "weights", "answers", "pretrained", "train", "seed"):
        node = item.field(name)
        idle = node is None or node.value is None or (name, node.value) in (("train", True), ("pretrained", False))
        if node is not None and not idle:
            sentence = f"has no effect: no method of the pair uses '{item.role}' as a frozen teacher; remove it"
            problems.add(node.where, (*item.path, name), sentence)
