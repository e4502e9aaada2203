"""Results -> the files of the leaderboard: `<suite>.md`, `<suite>.svg` and the index `README.md`.

Needs the suite file and the stored results, neither data nor torch.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdbench import render
from kdbench.board import rank
from kdbench.errors import UserError
from kdbench.files import write_atomically
from kdbench.job import expand, matches, method_content
from kdbench.result import Result
from kdbench.runner import relabelled
from kdbench.standing import Board, Heading
from kdbench.store import Store
from kdbench.suite import Suite

if TYPE_CHECKING:
    from rich.table import Table


def current(suite: Suite, store: Store) -> list[Result]:
    """The stored results that the suite as it is now asks for, under its labels; stale ones are left out.

    Where results of several versions of the data are stored, those of the most frequent one.
    """
    found: list[Result] = []
    by_cell: dict[tuple[str, int], list[Result]] = {}
    for result in store.results.values():
        by_cell.setdefault((result.job.get("method", {}).get("name", ""), result.seed), []).append(result)
    for job in expand(suite):
        for result in by_cell.get((job.content["method"]["name"], job.seed), ()):
            if matches(job, result.job):
                found.append(relabelled(result, job))
    prints = Counter(_fingerprint(result) for result in found)
    if len(prints) > 1:
        kept = min(prints, key=lambda name: (-prints[name], name))
        found = [result for result in found if _fingerprint(result) == kept]
    return found


def _fingerprint(result: Result) -> str:
    return str(result.job["data"]["fingerprint"])


def heading(suite: Suite) -> Heading:
    """What the board says about the suite: no paths."""
    file = suite.file
    return Heading(
        suite=file.name,
        version=file.version,
        description=file.description,
        data=file.data.model_dump(mode="json", exclude_defaults=True),
        recipe=file.recipe.model_dump(mode="json"),
        pairs=tuple(dict.fromkeys(pair for pair, _ in suite.cells)),
        methods={
            label: describe(method_content(suite.methods[label], suite.method_names[label], suite.folder))
            for label in dict.fromkeys(label for _, label in suite.cells)
        },
        cells=suite.cells,
        seeds=tuple(file.seeds),
        reported={(name, label): claim for name, pair in file.pairs.items() for label, claim in pair.reported.items()},
        roles={
            name: {role: _model(model.model, model.options) for role, model in pair.roles.items()}
            for name, pair in file.pairs.items()
        },
    )


def describe(content: dict[str, Any]) -> str:
    """`kd(temperature=4.0, ...)`, `mixup(alpha=0.2) over none()`."""
    knobs = ", ".join(f"{name}={value}" for name, value in content["knobs"].items())
    over = f" over {describe(content['over'])}" if "over" in content else ""
    return f"{content['name']}({knobs}){over}"


def _model(name: str, options: dict[str, Any]) -> str:
    return f"{Path(name).name}({', '.join(f'{k}={v}' for k, v in options.items())})" if options else Path(name).name


def board_of(suite: Suite, store: Store) -> Board:
    """The suite's board, from what is stored."""
    return rank(heading(suite), current(suite, store))


def publish(board: Board, root: Path) -> list[Path]:
    """Write the board, its picture and the index; the paths, the board first.

    Raises:
        UserError: the folder cannot be written.
    """
    from kdbench import picture  # matplotlib, a second to import

    name = board.heading.suite
    pages = {f"{name}.md": render.markdown(board), f"{name}.svg": picture.svg(board)}
    try:
        for file, text in pages.items():
            _write(root / file, text)
        _write(root / "README.md", render.index(_summaries(root)))
    except OSError as error:
        raise UserError(f"{root}: cannot write the board ({error.strerror}); give --results DIR") from error
    return [*(root / file for file in pages), root / "README.md"]


def _write(path: Path, text: str) -> None:
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        write_atomically(path, text.encode())


def _summaries(root: Path) -> list[render.Summary]:
    """What every board in the folder says about itself."""
    read = (render.Summary.read(path.read_text(encoding="utf-8")) for path in sorted(root.glob("*.md")))
    return [summary for summary in read if summary is not None]


def tables(board: Board) -> list[Table]:
    """The board for a terminal: one table for each pair."""
    from rich.table import Table

    shown = []
    for pair in board.tables:
        teacher = f", teacher {pair.teacher.top1:.2f}%" if pair.teacher and pair.teacher.top1 is not None else ""
        table = Table(
            title=f"{pair.pair}{teacher}", title_justify="left", box=None, header_style="bold", pad_edge=False
        )
        for column in ("method", "n", "test top-1 %", "gain over none", "over kd", ""):
            table.add_column(column, justify="left" if column in ("method", "") else "right")
        for row in pair.rows:
            trouble = "; ".join(text for _, text in row.troubles)
            note = row.claim if row.ranked else ": ".join(filter(None, (row.why_unranked, trouble)))
            table.add_row(
                row.label, str(row.n), render.plain(row.top1), render.signed(row.gain), render.signed(row.over_kd), note
            )
        shown.append(table)
    return shown
