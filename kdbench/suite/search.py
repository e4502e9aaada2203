"""What `tune` searches for one cell: the knobs of its method as `knob()` declares them, changed by `tune.space`.

A knob is searched where its range or choices are declared. The suite's own value is where the search starts (the first
trial); a choice that the suite file spells out stays (`{method: opdf, gauge: teacher}` is a variant of its own) unless
`tune.space` names it. A grid is made of what `tune.space` lists alone. Imports Optuna only when something is drawn.
"""

from __future__ import annotations

import itertools
import json
import math
import random
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from kdbench.method import Method, chain, knob_values, knobs
from kdbench.suite.fields import RecipeOverride
from kdbench.suite.job import Job, variant
from kdbench.suite.load import Suite
from kdbench.suite.schema import knob_annotation
from kdbench.suite.sentences import annotation_at, is_whole

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import Trial

LARGEST = 100_000  # configurations of a space, above which it counts as endless


@dataclass(frozen=True)
class Entry:
    """One searched field: a list of choices, or a range from low to high, both inclusive."""

    key: str
    choices: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    step: float | None = None
    integer: bool = False
    when: tuple[tuple[str, tuple[Any, ...]], ...] = ()  # searched only where each key has one of the values

    @property
    def values(self) -> tuple[Any, ...] | None:
        """Every value, or None where the range is continuous."""
        if self.choices:
            return self.choices
        if self.integer and not self.log:
            return tuple(range(int(self.low), int(self.high) + 1, int(self.step or 1)))
        if self.step is None:
            return None
        count = math.floor((self.high - self.low) / self.step + 1e-9) + 1
        return tuple(float(round(self.low + i * self.step, 12)) for i in range(count))

    def holds(self, value: Any) -> bool:
        """Whether the search could propose this value."""
        if self.values is not None:
            return any(same(value, option) for option in self.values)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return number and self.low <= value <= self.high

    def named(self, value: Any) -> Any:
        """What Optuna stores for a value: choices that are no plain scalars as JSON text."""
        if self.choices:
            return value if self.plain else json.dumps(value)
        return int(value) if self.integer else float(value)

    def meant(self, stored: Any) -> Any:
        return json.loads(stored) if self.choices and not self.plain else stored

    def short(self, value: Any) -> Any:
        """Four digits of a number from a continuous range: all that anybody would write into a suite."""
        if self.values is not None or self.integer:
            return value
        return min(max(float(f"{value:.4g}"), self.low), self.high)

    @property
    def plain(self) -> bool:
        """Whether Optuna can tell the choices apart: scalars of which no two compare equal (1, True and 1.0 do)."""
        scalars = all(isinstance(choice, str | int | float | bool | None) for choice in self.choices)
        return scalars and len(set(self.choices)) == len(self.choices)

    def distribution(self) -> BaseDistribution:
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        if self.choices:
            return CategoricalDistribution([self.named(choice) for choice in self.choices])
        if self.integer:
            top = self.high if self.log else self.values[-1]  # type: ignore[index]
            return IntDistribution(int(self.low), int(top), log=self.log, step=int(self.step or 1))
        top = self.high if self.values is None else self.values[-1]
        return FloatDistribution(self.low, top, log=self.log, step=self.step)

    def content(self) -> dict[str, Any]:
        return {
            "key": self.key,
            "choices": list(self.choices),
            "range": [self.low, self.high, self.log, self.step, self.integer],
            "when": [[key, list(values)] for key, values in self.when],
        }


@dataclass(frozen=True)
class Space:
    """The entries in an order in which every condition looks back, and the cell's own values."""

    entries: tuple[Entry, ...]
    defaults: Mapping[str, Any]  # of every key that an entry or a condition names

    def active(self, entry: Entry, chosen: Mapping[str, Any]) -> bool:
        now = {**self.defaults, **chosen}
        return all(any(same(now.get(key), value) for value in values) for key, values in entry.when)

    def draw(self, trial: Trial) -> dict[str, Any]:
        """A configuration proposed by the trial's sampler: dotted path -> value."""
        chosen: dict[str, Any] = {}
        for entry in self.entries:
            if self.active(entry, chosen):
                chosen[entry.key] = entry.short(entry.meant(_suggest(trial, entry)))
        return chosen

    def params(self, chosen: Mapping[str, Any]) -> dict[str, Any]:
        """A configuration as Optuna's parameters; values outside of the space are left out."""
        full = {**self.defaults, **chosen}
        found: dict[str, Any] = {}
        for entry in self.entries:
            if self.active(entry, chosen) and entry.holds(full.get(entry.key)):
                found[entry.key] = entry.named(full[entry.key])
        return found

    def distributions(self, params: Mapping[str, Any]) -> dict[str, BaseDistribution]:
        return {entry.key: entry.distribution() for entry in self.entries if entry.key in params}

    def configurations(self, seed: int, limit: int) -> list[dict[str, Any]] | None:
        """All configurations where there are few, the cell's own first and the rest shuffled; None where endless.

        At most `limit` are returned.
        """
        choices = [entry.values for entry in self.entries]
        if any(values is None for values in choices):
            return None
        size = math.prod(len(values) for values in choices if values is not None)
        if size > LARGEST:
            return None
        own = json.dumps(self._effective({}), sort_keys=True)
        found: dict[str, dict[str, Any]] = {own: {}}
        for point in itertools.product(*(values for values in choices if values is not None)):
            chosen: dict[str, Any] = {}
            for entry, value in zip(self.entries, point, strict=True):
                if self.active(entry, chosen):
                    chosen[entry.key] = value
            found.setdefault(json.dumps(self._effective(chosen), sort_keys=True), chosen)
        first, *rest = found.values()
        random.Random(seed).shuffle(rest)  # a grid cut short is then a sample of it, not a corner
        return [first, *rest][:limit]

    def _effective(self, chosen: Mapping[str, Any]) -> dict[str, Any]:
        """What counts in the end, so that two ways to say the same are one; 4 is 4.0 here."""
        full = {**self.defaults, **chosen}
        return {entry.key: _plain(full[entry.key]) for entry in self.entries}

    def content(self) -> list[dict[str, Any]]:
        return [entry.content() for entry in self.entries]


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def same(one: Any, other: Any) -> bool:
    """Equal, where true is not 1 and a list is a tuple."""
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other and isinstance(one, bool) == isinstance(other, bool)


def _suggest(trial: Trial, entry: Entry) -> Any:
    kind = entry.distribution()
    if entry.choices:
        return trial.suggest_categorical(entry.key, kind.choices)  # type: ignore[attr-defined]
    if entry.integer:
        return trial.suggest_int(entry.key, kind.low, kind.high, step=kind.step, log=kind.log)  # type: ignore[attr-defined]
    return trial.suggest_float(entry.key, kind.low, kind.high, step=kind.step, log=kind.log)  # type: ignore[attr-defined]


def space_of(suite: Suite, pair: str, label: str) -> Space:
    """The space of one cell; empty where nothing of it can be tuned."""
    given: Mapping[str, Any] = suite.file.tune.space if suite.file.tune else {}
    method = suite.methods[label]
    own = dict(knob_entries(method))
    pinned = {key for key, entry in own.items() if entry and entry.choices and _spelt_out(suite, label, key)}
    sweep = suite.file.tune is not None and suite.file.tune.sampler == "grid"  # of what the space lists, alone
    entries = [entry for key, entry in own.items() if entry and key not in given and key not in pinned and not sweep]
    for key, value in given.items():
        if key in own:
            entries.append(narrowed(key, value, own[key], is_whole(knob_annotation(method, key))))
        elif key.startswith(("recipe.", "student.")):
            entries.append(narrowed(key, value, None, _is_field_integer(key)))
    job = variant(suite, pair, label, {})
    known = {name for entry in entries for name, _ in entry.when} | {entry.key for entry in entries}
    values = {key: value_at(job, key) for key in sorted(known)}
    possible = [entry for entry in entries if _possible(entry, entries, values)]
    return Space(tuple(ordered(possible)), values)


def _possible(entry: Entry, entries: Sequence[Entry], values: Mapping[str, Any]) -> bool:
    """A condition on a key that is not searched here must hold as things are."""
    searched = {other.key for other in entries}
    return all(
        key in searched or any(same(values.get(key), option) for option in options) for key, options in entry.when
    )


def knob_entries(method: Method) -> Iterator[tuple[str, Entry | None]]:
    """Every knob of a method and of what it wraps; None where its declaration gives nothing to search."""
    for prefix, link in chain(method):
        hints = typing.get_type_hints(type(link))
        for name, field in knobs(link).items():
            meta, kind, key = field.metadata["knob"], hints[name], prefix + name
            if meta["choices"]:
                yield key, Entry(key, choices=tuple(meta["choices"]))
            elif kind is bool:
                yield key, Entry(key, choices=(False, True))
            elif kind in (int, float) and meta["low"] is not None and meta["high"] is not None:
                yield key, Entry(key, low=meta["low"], high=meta["high"], log=meta["log"], integer=kind is int)
            else:
                yield key, None


def narrowed(key: str, value: Any, declared: Entry | None, integer: bool) -> Entry:
    """An entry of `tune.space`, which `tunespace` has checked."""
    if isinstance(value, list | tuple):
        return Entry(key, choices=tuple(value))
    when = tuple(
        (name, tuple(wanted) if isinstance(wanted, list | tuple) else (wanted,))
        for name, wanted in value.get("when", {}).items()
    )
    if "choices" in value:
        return Entry(key, choices=tuple(value["choices"]), when=when)
    if "low" not in value:  # only `when`: the knob's own range
        assert declared is not None
        return replace(declared, when=when)
    low, high, step = value["low"], value["high"], value.get("step")
    whole = integer or (key.startswith("student.options.") and all(isinstance(n, int) for n in (low, high, step or 1)))
    return Entry(key, low=low, high=high, log=value.get("log", False), step=step, integer=whole, when=when)


def ordered(entries: Sequence[Entry]) -> list[Entry]:
    """The entries, each after those that its conditions name."""
    left, done = {entry.key: entry for entry in entries}, []
    while left:
        ready = [entry for entry in left.values() if not any(key in left for key, _ in entry.when)]
        assert ready, "tunespace refuses circles"
        done += ready
        for entry in ready:
            del left[entry.key]
    return done


def value_at(job: Job, key: str) -> Any:
    """What the cell itself has at a dotted path; None where it has nothing there."""
    first, *rest = key.split(".")
    if first == "recipe":
        value: Any = job.recipe.model_dump(mode="json")
        for step in rest:
            value = value.get(step) if isinstance(value, Mapping) else None
        return value
    if first == "student":
        student = job.roles.get("student")
        if student is None:
            return None
        return student.model if rest == ["model"] else student.options.get(rest[-1])
    return knob_values(job.method).get(key)


def _spelt_out(suite: Suite, label: str, key: str) -> bool:
    return suite.says("methods", label, *key.split("."))


def _is_field_integer(key: str) -> bool:
    return key.startswith("recipe.") and is_whole(annotation_at(RecipeOverride, key.split(".")[1:]))
