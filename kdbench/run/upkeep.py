"""Looking after runs: what is running, waiting or failed; results of several machines joined; space freed."""

from __future__ import annotations

import contextlib
import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kdbench.errors import UserError
from kdbench.files import set_aside, write_atomically
from kdbench.result import Result
from kdbench.run.log import last_line, path_of
from kdbench.run.store import FINAL, Store, key_of, names, published, read
from kdbench.suite.job import Job, expand
from kdbench.suite.load import Suite
from kdbench.train import lease


# status --------------------------------------------------------------------------------------------------------------
def status(suite: Suite, store: Store, runs: Path) -> tuple[list[dict[str, object]], str]:
    """A row for every job or teacher that runs, and for every job in trouble; and a closing sentence.

    Reads leases, logs and results alone: no data, no torch. A run on another machine shows if it shares a folder.
    """
    found = {(result.pair, result.method, result.seed): result for result in published(suite, store)}
    held = _held([runs / "leases", store.folder / ".leases"])
    rows: list[dict[str, object]] = []
    count: Counter[str] = Counter()
    for job in expand(suite):
        result = found.get((job.pair, job.label, job.seed))
        state: str = "waiting" if result is None else "done" if result.status == "ok" else result.status
        note = result.reason if result else ""
        if state != "done" and job.title in held:
            state, note = "running", _progress(*held[job.title], runs)
        count[state] += 1
        if state not in ("done", "waiting"):
            rows.append({"job": f"{job.name} seed {job.seed}", "state": state, "note": note})
    for what, (key, owner) in held.items():
        if what.startswith("teacher "):
            rows.append({"job": what, "state": "running", "note": _progress(key, owner, runs)})
    rows.sort(key=lambda row: row["state"] != "running")
    order = ("done", "running", "waiting", "failed", "diverged", "skipped", "pruned")
    counts = ", ".join(f"{count[state]} {state}" for state in order if count[state])
    return rows, f"{suite.file.name}: {count.total()} jobs: {counts}"


def _held(folders: Sequence[Path]) -> dict[str, tuple[str, lease.Owner]]:
    """What is being done -> the key and who does it."""
    paths = [path for folder in folders for path in folder.glob("*") if not path.suffix]
    return {owner.what: (path.name, owner) for path in paths if (owner := lease.holder(path))}


def _progress(key: str, owner: lease.Owner, runs: Path) -> str:
    here = owner.machine == lease.machine()
    who = f"process {owner.pid}" + ("" if here else f" on {owner.host}")
    return f"{who}; {last_line(path_of(runs, key)) if here else 'its log is there'}"


# merge ---------------------------------------------------------------------------------------------------------------
@dataclass
class Merged:
    """What `merge` did with the results of other machines."""

    new: int = 0
    same: int = 0
    replaced: int = 0  # unfinished here, finished there
    conflicts: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)
    taught_otherwise: list[str] = field(default_factory=list)  # a second teacher of a pair, a sentence each
    suites: set[str] = field(default_factory=set)


def merge(sources: Sequence[Path], root: Path) -> Merged:
    """Join the results under other folders (`leaderboard` folders, or their `results`) into `root`.

    The same key with the same bytes is the same result. The same key with other bytes (trained on two machines, whose
    clocks never agree) is a conflict: the result that is here stays, the other is kept beside it as
    `<name>.json.conflict-<digest>`. A final result replaces one that failed.

    Raises:
        UserError: a source holds no results, or the folder cannot be written.
    """
    merged, known = Merged(), _Known()
    for source in sources:
        base = source / "results" if (source / "results").is_dir() else source
        paths = sorted(base.glob("*/*.json"))
        if not paths:
            raise UserError(f"{source}: holds no results; give a folder that was some run's --results")
        for path in paths:
            try:
                result = read(path)
            except (ValueError, OSError) as error:
                merged.damaged.append(f"{path}: damaged result ({error}); left out")
                continue
            merged.suites.add(result.suite)
            try:
                _join(path, result, known.of(root / "results" / path.parent.name), merged)
            except OSError as error:
                raise UserError(f"{root}: cannot write results ({error.strerror})") from error
    merged.taught_otherwise = [sentence for folder in known.folders for sentence in _second_teachers(folder)]
    return merged


def _second_teachers(folder: Path) -> list[str]:
    """A sentence for each pair whose results were taught by several trainings of what should be one teacher."""
    weights: dict[tuple[str, str], Counter[str]] = {}
    for result in Store(folder.parent.parent, folder.name).results.values():
        if result.teacher is not None:
            weights.setdefault((result.pair, result.teacher.key), Counter())[result.teacher.sha256] += 1
    return [
        f"{folder.name}/{pair}: {len(found)} teachers that differ in their weights have taught its results ("
        + ", ".join(f"sha256 {sha[:12]}: {count}" for sha, count in found.most_common())
        + "): they are not comparable. Next time make them once (`run --teachers-only`) and take them along "
        "(`merge --teachers`)"
        for (pair, _), found in sorted(weights.items())
        if len(found) > 1
    ]


class _Known:
    """The result files of the folders that are merged into, by key; each folder is listed once."""

    def __init__(self) -> None:
        self.folders: dict[Path, _Folder] = {}

    def of(self, path: Path) -> _Folder:
        if path not in self.folders:
            by_key: dict[str, list[Path]] = {}
            for name in sorted(names(path)):
                by_key.setdefault(key_of(name), []).append(path / name)
            self.folders[path] = _Folder(path, by_key)
        return self.folders[path]


@dataclass(frozen=True)
class _Folder:
    path: Path
    by_key: dict[str, list[Path]]


def _join(path: Path, result: Result, folder: _Folder, merged: Merged) -> None:
    payload = path.read_bytes()
    here = folder.by_key.get(result.key, [])
    if any(other.read_bytes() == payload for other in here):
        merged.same += 1
        return
    final = result.status in FINAL
    sound = [other for other in here if not _damaged(other)]
    if here and final and all(_unfinished(other) for other in sound):
        merged.replaced += 1
    elif not here:
        merged.new += 1
    elif not final:
        merged.same += 1  # nothing that this one could add
        return
    else:
        kept = folder.path / f"{path.name}.conflict-{hashlib.sha256(payload).hexdigest()[:8]}"
        merged.conflicts.append(f"{here[0].name}: another result of the same job is kept as {kept.name}")
        write_atomically(kept, payload)
        return
    target = folder.path / path.name
    if target in here and target not in sound:
        set_aside(target)
    write_atomically(target, payload)
    for other in sound:  # the new one is safe
        if other != target:
            other.unlink()
    folder.by_key[result.key] = [target]


def _damaged(path: Path) -> bool:
    try:
        read(path)
    except (ValueError, OSError):
        return True
    return False


def _unfinished(path: Path) -> bool:
    return read(path).status not in FINAL


# clean ---------------------------------------------------------------------------------------------------------------
def clean(jobs: Iterable[Job], stores: Sequence[Store], runs: Path) -> list[tuple[Path, int]]:
    """Checkpoints that none of these jobs needs any more, drafts of killed writers and dead leases: (path, bytes).

    A checkpoint is needed by a job without a final result, or by a frozen role that is not made yet; what somebody is
    training just now is never listed. Answers that a teacher has stored are needed by jobs without a final result.
    """
    from kdbench.train.checkpoint import folder_of
    from kdbench.train.table import tables

    needed: set[str] = set()
    for job in jobs:
        if not any(store.done(job.key) for store in stores):
            needed.add(job.key)
            needed |= {role.key for role in job.frozen.values()}
    leases = list((runs / "leases").glob("*"))
    live = {path.name for path in leases if lease.holder(path)}
    needed |= live
    useless = [path for path in folder_of(runs).glob("[!.]*.pt*") if path.name.partition(".")[0] not in needed]
    if not live:  # else a draft may be somebody's who is just writing, and a table somebody's whose suite is not here
        useless += runs.rglob(".*.tmp")
        stored = tables(runs / "teachers")
        useless += [path for path in stored if path.parents[1].name not in needed or path.suffix != ".rows"]
    useless += [path for path in leases if not path.suffix and not lease.holder(path)]
    sizes = []
    for path in sorted(set(useless)):
        with contextlib.suppress(FileNotFoundError):
            sizes.append((path, path.stat().st_size))
    return sizes
