"""Records -> Board: every number of a leaderboard, computed from results alone. Pure, and indifferent to their order.

The claim has one rule: within a pair, every ranked row is compared with the reference by a two-sided paired t test over
seeds; the p-values of the pair are corrected together by Holm; "better" and "worse" need a corrected p below 0.05. The
same rule compares with the floor: a row that is better than the reference only says both.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from statistics import median
from typing import Any

from kdbench.board.prefixes import anytime
from kdbench.board.rows import (
    BETTER,
    COSTLIER,
    NO_RESULT,
    NOT_SEPARABLE,
    PRELIMINARY,
    TEACHER,
    WORSE,
    Across,
    Board,
    Heading,
    Overall,
    Row,
    Table,
    TeacherRow,
)
from kdbench.board.statistics import ALPHA, Interval, holm, interval, iqm_interval, mean_ranks, paired, wilcoxon
from kdbench.result import Result

__all__ = ["Board", "Heading", "rank"]


def rank(heading: Heading, results: Iterable[Result]) -> Board:
    """The board of a suite.

    Args:
        results: of the suite's current jobs. Those of other cells or seeds, and those that are not comparable (the
            command line changed the recipe), are left out.

    Raises:
        ValueError: two different results for one cell and seed.
    """
    wanted = {(pair, label, seed) for pair, label in heading.cells for seed in heading.seeds}
    found: dict[tuple[str, str, int], Result] = {}
    for result in results:
        place = (result.pair, result.method, result.seed)
        if not result.comparable or place not in wanted:
            continue
        if found.setdefault(place, result).key != result.key:
            raise ValueError(f"two results for {result.pair}/{result.method} seed {result.seed}")
    ordered = [found[place] for place in sorted(found)]
    tables = tuple(_table(heading, pair, [r for r in ordered if r.pair == pair]) for pair in heading.pairs)
    provenance = [result.provenance for result in ordered]
    packages = sorted({name for p in provenance for name in p.get("versions", {})})
    versions = {name: _distinct(p.get("versions", {}).get(name) for p in provenance) for name in packages}
    return Board(
        heading=heading,
        tables=tables,
        across=_across(heading, tables),
        machines=tuple(sorted({_machine(r) for r in ordered if _machine(r) != ("", "")})),
        fingerprints=_distinct(result.job.get("data", {}).get("fingerprint") for result in ordered),
        splits=_distinct(p.get("split") for p in provenance),
        versions=versions | {"git": _distinct(p.get("git") for p in provenance)},
        finished=sum(row.n for table in tables for row in table.rows),
    )


def _table(heading: Heading, pair: str, results: Sequence[Result]) -> Table:
    labels = [label for cell, label in heading.cells if cell == pair]
    of: dict[str, dict[int, Result]] = {label: {} for label in labels}
    for result in results:
        of[result.method][result.seed] = result
    alarms = _alarms(heading, pair, results)
    teacher = _teacher(heading, pair, results)
    plain = {label: _row(heading, pair, label, of[label], bool(alarms)) for label in labels}
    if not alarms:
        plain = {label: _compared(heading, row, plain, of, teacher) for label, row in plain.items()}
    sign = heading.headline.sign
    ranked = sorted(
        (r for r in plain.values() if not r.why_unranked),
        key=lambda r: -sign * round(r.score.mean, 9),  # type: ignore[union-attr]
    )
    means = [round(row.score.mean, 9) for row in ranked if row.score]
    placed = [replace(row, place=means.index(mean) + 1) for row, mean in zip(ranked, means, strict=True)]
    recipes = _distinct(_recipe(r) for r in results)
    unranked = [row for row in plain.values() if row.why_unranked]
    costly, partial = ([r for r in unranked if (r.why_unranked == r.costlier) is own] for own in (True, False))
    rows = (*_claimed(placed, len(heading.seeds)), *costly, *partial)
    early = (anytime(heading, row.label, of[row.label], row.reported) for row in rows)
    return Table(
        pair=pair,
        teacher=teacher,
        rows=rows,
        alarms=alarms,
        roles=heading.roles.get(pair, {}),
        recipe=json.loads(recipes[0]) if len(recipes) == 1 else None,
        note=heading.notes.get(pair, ""),
        anytime=tuple(found for found in early if found),
        warnings=() if alarms else tuple(_warnings(heading, pair, teacher, rows, of)),
    )


def _warnings(
    heading: Heading, pair: str, teacher: TeacherRow | None, rows: Sequence[Row], of: Mapping[str, Mapping[int, Result]]
) -> Iterator[str]:
    """Sentences about rows that may be compared, without which they would be misread."""
    floor = next((row for row in rows if row.label == heading.floor), None)
    metric = heading.headline
    if floor and floor.score and teacher and teacher.score is not None:
        taught, untaught = teacher.score, floor.score.mean
        if metric.sign * taught < metric.sign * untaught:
            side = "below" if metric.better == "up" else "above"
            yield (
                f"The teacher ({heading.said(taught)}) is {side} the floor {floor.label} ({heading.said(untaught)}), "
                "the student without it"
            )
    for row in rows:
        if not row.sound:
            yield f"{row.label} is {heading.claimed(row)}"
    yield from _unconverged(heading, pair, rows)
    costs = [result.cost for results in of.values() for result in results.values() if result.cost]
    for used in sorted({cost.batch for cost in costs if cost.batch}):
        yield f"Batches are of {used:,} {heading.example}s, all there are to train on: batch_size asks for more"
    same: dict[tuple[tuple[int, str, str], ...], list[str]] = {}
    for label, results in of.items():
        if (found := _digits(heading, results)) and len(results) > 1:
            same.setdefault(found, []).append(label)
    for labels in same.values():
        if len(labels) > 1:
            names = f"{', '.join(labels[:-1])} and {labels[-1]}"
            yield f"{names} are the same run to six digits, seed by seed: what they differ in had no effect"


def _unconverged(heading: Heading, pair: str, rows: Sequence[Row]) -> Iterator[str]:
    """A sentence where a higher learning rate gives the floor more than the smallest gain that is claimed here."""
    found, metric = heading.unconverged.get(pair), heading.headline
    if found is None:
        return
    over_reference = [row.over_reference.mean for row in rows if row.over_reference and row.claim == BETTER]
    over_floor = [row.gain.mean for row in rows if row.gain and row.over_floor == BETTER]
    if found.gain > min([*over_reference, *over_floor], default=metric.gap):
        gained = f"{heading.said(found.gain)}{metric.points}"
        yield f"The floor's learning rate is not converged: x{found.factor:g} gains {gained} on validation"


def _digits(heading: Heading, results: Mapping[int, Result]) -> tuple[tuple[int, str, str], ...]:
    """(seed, metric, value) to six digits of what tells two trained students apart."""
    found = [
        (seed, name, result.scores.get(f"test/{name}"))
        for seed, result in sorted(results.items())
        for name in heading.followed
    ]
    return tuple((seed, name, f"{value:.6g}") for seed, name, value in found if value is not None)


def _alarms(heading: Heading, pair: str, results: Sequence[Result]) -> tuple[str, ...]:
    """Sentences where the rows of a pair were not made under the same conditions."""
    alarms = []
    conditions = {
        "teachers (sha256)": _by(results, lambda r: r.teacher.sha256[:12] if r.teacher else None),
        "data": _by(results, lambda r: r.job.get("data", {}).get("fingerprint")),
        "train/validation splits": _by(results, lambda r: r.provenance.get("split")),
        "scan backends": _by(results, lambda r: r.provenance.get("scan")),
        "recipes": _by(results, _recipe),
    }
    if heading.tunings:  # a recipe may be among what was tuned; the budget may not differ
        del conditions["recipes"]
        conditions["tuning budgets"] = _budgets(heading, pair)
        conditions["ways of tuning"] = _ways(heading, pair)
    for what, groups in conditions.items():
        if len(groups) > 1:
            sides = (labels if what == "recipes" else f"{value}: {labels}" for value, labels in groups.items())
            alarms.append(f"{len(groups)} different {what} in one pair ({'; '.join(sides)})")
    return tuple(alarms)


def _recipe(result: Result) -> str | None:
    return json.dumps(result.job["recipe"], sort_keys=True) if "recipe" in result.job else None


def _by(results: Sequence[Result], of: Callable[[Result], Any]) -> dict[str, str]:
    """Value -> the labels that have it; results without one are left out."""
    groups: dict[str, set[str]] = {}
    for result in results:
        if (value := of(result)) is not None:
            groups.setdefault(str(value), set()).add(result.method)
    return {value: ", ".join(sorted(groups[value])) for value in sorted(groups)}


def _budgets(heading: Heading, pair: str) -> dict[str, str]:
    """Budget of tuning -> the labels that had it; where all configurations were tried, more would change nothing.

    A budget in seconds is kept by whoever spent it: the last trial runs past it.
    """
    groups: dict[tuple[float, str], list[str]] = {}
    for (cell, label), tuning in sorted(heading.tunings.items()):
        if cell != pair or tuning.exhausted:
            continue
        if heading.gpu_seconds is None:
            budget = (float(tuning.trials), f"{tuning.trials} trial{'' if tuning.trials == 1 else 's'}")
        else:
            spent = min(tuning.gpu_seconds, heading.gpu_seconds)
            budget = (spent, f"{spent:.0f} s")
        groups.setdefault(budget, []).append(label)
    return {budget[1]: ", ".join(groups[budget]) for budget in sorted(groups)}


def _ways(heading: Heading, pair: str) -> dict[str, str]:
    """Metric, epochs and seeds of tuning -> the labels that were tuned so."""
    groups: dict[str, list[str]] = {}
    for (cell, label), tuning in sorted(heading.tunings.items()):
        if cell == pair and not tuning.exhausted:
            groups.setdefault(tuning.how, []).append(label)
    return {how: ", ".join(groups[how]) for how in sorted(groups)}


def _teacher(heading: Heading, pair: str, results: Sequence[Result]) -> TeacherRow | None:
    taught = [result for result in results if result.teacher]
    costs = [result.cost for result in results if result.cost]
    if not taught or not (first := taught[0].teacher):
        return None
    return TeacherRow(
        model=heading.roles.get(pair, {}).get(TEACHER, ""),
        sha256=first.sha256,
        scores={name: value for name, value in first.scores.items() if value is not None},
        parameters=costs[0].teacher_parameters if costs else None,
        macs=costs[0].teacher_macs if costs else None,
        reported=heading.reported.get((pair, TEACHER)),
        score=first.scores.get(f"test/{heading.headline.name}"),
    )


def _row(heading: Heading, pair: str, label: str, results: Mapping[int, Result], alarmed: bool) -> Row:
    """What the method's own results say."""
    finished = {seed: result for seed, result in sorted(results.items()) if result.status == "ok"}
    name = f"test/{heading.headline.name}"
    done = {seed: result for seed, result in finished.items() if result.scores.get(name) is not None}
    troubles: dict[str, list[int]] = {}
    for seed in sorted(set(heading.seeds) - set(done)):
        troubles.setdefault(_trouble(results.get(seed), heading.headline.words), []).append(seed)
    n, costs = len(done), [result.cost for result in done.values() if result.cost]
    why = ""
    if n < len(heading.seeds):
        why = f"{n} of {len(heading.seeds)} seeds"
    elif n < PRELIMINARY:
        why = f"only {n} seed{'s' if n > 1 else ''}"
    elif alarmed:
        why = "not comparable"
    seeds = {seed: float(result.scores[name]) for seed, result in done.items()}
    return Row(
        label=label,
        seeds=seeds,
        troubles=tuple((tuple(hit), text) for text, hit in troubles.items()),
        why_unranked=why,
        score=interval(list(seeds.values())) if seeds else None,
        metrics=_means([result.scores for result in done.values()]),
        parameters=costs[0].parameters if costs else None,
        macs=costs[0].macs if costs else None,
        queries=costs[0].queries if costs else None,
        sparsity=sum(cost.zeros / max(cost.parameters, 1) for cost in costs) / len(costs) if costs else None,
        trained_parameters=costs[0].learner_parameters + costs[0].head_parameters if costs else None,
        memory_mb=median(cost.peak_memory_mb for cost in costs) if costs else None,
        reported=heading.reported.get((pair, label)),
    )


def _trouble(result: Result | None, score: str) -> str:
    if result is None:
        return NO_RESULT
    if result.status == "ok":
        return f"finished without a test {score}"
    return f"{result.status}: {result.reason or 'no reason given'}"


def _compared(
    heading: Heading,
    row: Row,
    rows: Mapping[str, Row],
    of: Mapping[str, Mapping[int, Result]],
    teacher: TeacherRow | None,
) -> Row:
    """The row with what needs other rows."""
    floor, reference = rows.get(heading.floor), rows.get(heading.reference)
    metric = heading.headline
    gain = paired(row.seeds, floor.seeds, metric.sign) if floor and floor.label != row.label else None
    recovered = None
    if gain and gain.n == len(heading.seeds) and floor and floor.score and teacher and teacher.score is not None:
        gap = metric.sign * (teacher.score - floor.score.mean)
        recovered = gain.mean / gap if gap >= metric.gap and gap > 0 else None
    costlier = _costlier(row, next((plain for plain in (floor, reference) if plain and plain.macs), None))
    return replace(
        row,
        gain=gain,
        over_reference=(
            paired(row.seeds, reference.seeds, metric.sign) if reference and reference.label != row.label else None
        ),
        recovered=recovered,
        relative_time=_relative_time(of[row.label], of.get(heading.floor, {})),
        costlier=costlier,
        why_unranked=row.why_unranked or costlier,
    )


def _costlier(row: Row, plain: Row | None) -> str:
    """How much more the deployed student costs than the plain one; "" where it does not."""
    if plain is None:
        return ""
    sizes = {"parameters": (row.parameters, plain.parameters), "MACs": (row.macs, plain.macs)}
    times = {what: own / usual for what, (own, usual) in sizes.items() if own and usual and own > COSTLIER * usual}
    if not times:
        return ""
    return "costs " + " and ".join(f"{_times(ratio)} the plain student's {what}" for what, ratio in times.items())


def _times(ratio: float) -> str:
    return f"{ratio:.2f}×" if ratio < 1.95 else f"{ratio:.1f}×" if ratio < 9.95 else f"{ratio:.0f}×"


def _relative_time(results: Mapping[int, Result], floor: Mapping[int, Result]) -> float | None:
    """Median over seeds of the ratio of training seconds, where both ran on one kind of device in one precision.

    On a CPU the processor's seconds where both have them: other work on the machine hardly lengthens those.
    """
    ratios = []
    for seed in sorted(set(results) & set(floor)):
        own, base = results[seed], floor[seed]
        if own.cost and base.cost and base.cost.train_seconds > 0 and _machine(own) == _machine(base):
            on_cpu = own.provenance.get("device") == "cpu" and own.cost.cpu_seconds and base.cost.cpu_seconds
            name = "cpu_seconds" if on_cpu else "train_seconds"
            ratios.append(getattr(own.cost, name) / getattr(base.cost, name))
    return median(ratios) if ratios else None


def _claimed(ranked: Sequence[Row], seeds: int) -> list[Row]:
    """Ranked rows with their claims. None is made where the reference, or the floor, is incomplete."""
    claims = _claims({row.label: row.over_reference for row in ranked}, seeds)
    over_floor = _claims({row.label: row.gain for row in ranked}, seeds)
    nothing: tuple[float | None, str] = (None, "")
    rows = []
    for row in ranked:
        p, claim = claims.get(row.label, nothing)
        rows.append(replace(row, p_holm=p, claim=claim, over_floor=over_floor.get(row.label, nothing)[1]))
    return rows


def _claims(gains: Mapping[str, Interval | None], seeds: int) -> dict[str, tuple[float, str]]:
    """Corrected p-value and claim of each label whose gain is over every seed: one family of tests."""
    tested = {label: gain for label, gain in gains.items() if gain and gain.n == seeds}
    corrected = zip(tested.items(), holm([gain.p for gain in tested.values()]), strict=True)
    return {
        label: (p, NOT_SEPARABLE if p >= ALPHA else BETTER if gain.mean > 0 else WORSE)
        for (label, gain), p in corrected
    }


def _across(heading: Heading, tables: Sequence[Table]) -> Across | None:
    """Over the pairs that have ranked rows; methods that are ranked in all of them."""
    settings = [table for table in tables if any(row.ranked for row in table.rows)]
    if len(settings) < 2:
        return None
    rows = [{row.label: row for row in table.rows if row.ranked} for table in settings]
    labels = [label for label in heading.methods if all(label in ranked for ranked in rows)]
    if not labels:
        return None
    sign = heading.headline.sign
    ranks = mean_ranks([[sign * ranked[label].score.mean for label in labels] for ranked in rows])  # type: ignore[union-attr]
    iqms = {}
    if (floor := heading.floor) in labels:
        for label in labels:
            gains = [
                [sign * (score - ranked[floor].seeds[s]) for s, score in ranked[label].seeds.items()] for ranked in rows
            ]
            iqms[label] = iqm_interval(gains) if label != floor else None
    p_values: dict[str, float] = {}
    if heading.reference in labels:
        for label in labels:
            p = wilcoxon([ranked[label].over_reference.mean for ranked in rows if ranked[label].over_reference])  # type: ignore[union-attr]
            if p is not None:
                p_values[label] = p
    corrected = dict(zip(p_values, holm(list(p_values.values())), strict=True))
    overall = [
        Overall(label, mean_rank, iqms.get(label), corrected.get(label))
        for label, mean_rank in zip(labels, ranks, strict=True)
    ]
    return Across(
        settings=tuple(table.pair for table in settings),
        rows=tuple(sorted(overall, key=lambda row: (row.mean_rank, -row.iqm[0] if row.iqm else 0.0))),
        left_out=tuple(label for label in heading.methods if label not in labels),
    )


def _means(scores: Sequence[Mapping[str, float | None]]) -> dict[str, float]:
    """Means of the test metrics that every seed has."""
    names = sorted({name for seed in scores for name in seed if name.startswith("test/")})
    values = {name: [seed.get(name) for seed in scores] for name in names}
    whole = {name: [v for v in column if v is not None] for name, column in values.items() if None not in column}
    return {name.removeprefix("test/"): sum(column) / len(column) for name, column in whole.items()}


def _machine(result: Result) -> tuple[str, str]:
    return str(result.provenance.get("device_name", "")), str(result.provenance.get("precision", ""))


def _distinct(values: Iterable[Any]) -> tuple[str, ...]:
    return tuple(sorted({str(value) for value in values if value}))
