"""Records -> what a ladder of roles is worth if one stops early: answer prefixes and early exits. Pure.

A method has them where its records do; no method is named here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from kdbench.board.rows import Anytime, ExitRow, Heading, PrefixRow, Reported
from kdbench.board.statistics import interval
from kdbench.result import Exit, Prefix, Result

Seeded = Mapping[int, Result]


def anytime(heading: Heading, label: str, results: Seeded, reported: Reported | None) -> Anytime | None:
    """Prefixes and exits of one method on one pair; None where its finished results have no prefixes.

    Args:
        results: seed -> result of this method.
        reported: a paper's numbers; those of the whole answer are the last prefix's.
    """
    done = {seed: result for seed, result in sorted(results.items()) if result.status == "ok" and result.prefixes}
    if not done:
        return None
    longest = max(len(result.prefixes) for result in done.values())
    rows = [_prefix(heading, k, longest, done, reported) for k in range(1, longest + 1)]
    found = tuple(row for row in rows if row is not None)
    return Anytime(label, found, _exits(heading.headline.name, done)) if found else None


def _prefix(heading: Heading, k: int, longest: int, done: Seeded, reported: Reported | None) -> PrefixRow | None:
    having = {seed: result for seed, result in done.items() if len(result.prefixes) >= k}
    pairs = {seed: (result.prefixes[k - 1], result) for seed, result in having.items()}
    name = f"test/{heading.headline.name}"
    together = {seed: prefix.scores.get(name) for seed, (prefix, _) in pairs.items()}
    seeds = {seed: float(value) for seed, value in together.items() if value is not None}
    alone = [float(prefix.alone[name]) for prefix, _ in pairs.values() if prefix.alone.get(name) is not None]
    if not seeds:
        return None
    first = next(prefix for prefix, _ in pairs.values())
    own = {
        seed: prefix.macs - (result.prefixes[k - 2].macs if k > 1 else 0) for seed, (prefix, result) in pairs.items()
    }
    claimed = None
    if reported:
        claimed = reported.prefixes.get(k, reported.top1 if k == longest else None)
    return PrefixRow(
        k=k,
        role=first.role,
        seeds=seeds,
        score=interval(list(seeds.values())),
        alone=interval(alone) if alone else None,
        metrics=_means(heading, [prefix for prefix, _ in pairs.values()]),
        parameters=first.parameters,
        macs=first.macs,
        share=_mean([_share(prefix.macs, result) for prefix, result in pairs.values()]),
        alone_share=_mean([_share(own[seed], result) for seed, (_, result) in pairs.items()]),
        reported=claimed,
        reported_share=reported.macs_percent / 100 if reported and reported.macs_percent and k == longest else None,
    )


def _means(heading: Heading, prefixes: Sequence[Prefix]) -> dict[str, float]:
    """Means over seeds of the test metrics that every seed has, without `test/`."""
    found = {}
    for name in (metric.name for metric in heading.further if not metric.against_teacher):
        value = _mean([prefix.scores.get(f"test/{name}") for prefix in prefixes])
        if value is not None:
            found[name] = value
    return found


def _share(macs: float, result: Result) -> float | None:
    """MACs as a share of the teacher's."""
    return macs / result.cost.teacher_macs if result.cost and result.cost.teacher_macs else None


def _mean(values: Sequence[float | None]) -> float | None:
    """None where there are none, or one is missing."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


def _exits(name: str, done: Seeded) -> tuple[ExitRow, ...]:
    """One row for each threshold, over the seeds; `name` is the headline's.

    Seeds whose thresholds differ (each chose its own on validation) are joined by their order; where they have
    different numbers of them, only thresholds that all have.
    """
    lists = {seed: list(result.exits) for seed, result in done.items() if result.exits}
    if len(lists) < len(done):
        return ()
    if len({len(exits) for exits in lists.values()}) > 1:
        common = set.intersection(*({leave.threshold for leave in exits} for exits in lists.values()))
        lists = {seed: [leave for leave in exits if leave.threshold in common] for seed, exits in lists.items()}
    rows = [_exit(name, dict(zip(lists, column, strict=True)), done) for column in zip(*lists.values(), strict=True)]
    return tuple(row for row in rows if row is not None)


def _exit(name: str, exits: Mapping[int, Exit], done: Seeded) -> ExitRow | None:
    values = [leave.scores.get(f"test/{name}") for leave in exits.values()]
    if any(value is None for value in values):
        return None
    longest = max(len(leave.leaving) for leave in exits.values())
    leaving = [_mean([leave.leaving[i] for leave in exits.values() if i < len(leave.leaving)]) for i in range(longest)]
    return ExitRow(
        thresholds=(min(e.threshold for e in exits.values()), max(e.threshold for e in exits.values())),
        score=interval([float(value) for value in values if value is not None]),
        val_score=_mean([leave.scores.get(f"val/{name}") for leave in exits.values()]),
        share=_mean([_share(e.macs["test"], done[seed]) if "test" in e.macs else None for seed, e in exits.items()]),
        leaving=tuple(share or 0.0 for share in leaving),
    )
