"""Results -> the files of the leaderboard: `<suite>.md`, its pictures `<suite>*.svg` and the index `README.md`.

Needs the suite file and the stored results, neither data nor torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from kdbench import files
from kdbench.board import page as render
from kdbench.board import tracks
from kdbench.board.heading import heading
from kdbench.board.rank import rank
from kdbench.board.rows import Board, Unconverged
from kdbench.board.text import gain, plain
from kdbench.errors import UserError, printable
from kdbench.result import Result
from kdbench.run.store import Store, chosen, published
from kdbench.suite import rates, winners
from kdbench.suite.load import Suite

if TYPE_CHECKING:
    from rich.table import Table

    from kdbench.board import rows


def current(suite: Suite, store: Store) -> list[Result]:
    """The stored results of the default track that the suite as it is now asks for, under its labels.

    Where results of several versions of the data are stored, those of the most frequent one.
    """
    return published(suite, store)


def current_tuned(suite: Suite, store: Store) -> list[Result]:
    """The same of the tuned track: results of the winners that are in force now."""
    return chosen(suite, store, winners.current(suite, _root(store))[0])


def _root(store: Store) -> Path:
    """The folder of the boards, from that of a suite's records."""
    return store.folder.parent.parent


def board_of(suite: Suite, store: Store) -> Board:
    """The suite's board with both its tracks, from what is stored.

    Raises:
        UserError: a file of the tuned track is damaged.
    """
    root = _root(store)
    measured = rates.current(suite, root, suite.file.floor)
    unconverged = {pair: Unconverged(*floor.higher) for pair, floor in measured.items() if floor.higher}
    board = rank(replace(heading(suite), unconverged=unconverged), current(suite, store))
    return replace(board, tuned=tracks.tuned_track(suite, store, board, root))


def publish(board: Board, root: Path, *, redraw: bool = True) -> list[Path]:
    """Write the board, its pictures and the index; the paths, the board first.

    Args:
        redraw: even where the page that is there says the same already; else its pictures stay as they are.

    Raises:
        UserError: the folder cannot be written, or holds files of these names that are somebody else's.
    """
    page = f"{board.heading.suite}.md"
    said = render.markdown(board)
    try:
        kept = [] if redraw or _differs(root / page, said) else [root / name for name in _shown(board)]
        pages = {page: said, **({} if kept and all(path.is_file() for path in kept) else _pictures(board))}
        others = _others(root, page)
        for file in pages:
            if owner := next((name for name, text in others.items() if f"]({file})".casefold() in text.casefold()), ""):
                raise UserError(f"{root / file}: belongs to the board {owner}; rename a suite or a pair")
        index = render.index(_summaries({**others, page: pages[page]}))
        files.publish({root / file: text for file, text in pages.items()} | {root / "README.md": index})
    except OSError as error:
        raise UserError(f"{root}: cannot write the board ({error.strerror}); give --results DIR") from error
    return [root / page, *(root / name for name in _shown(board)), root / "README.md"]


def _differs(path: Path, text: str) -> bool:
    try:
        return path.read_text(encoding="utf-8") != text
    except (FileNotFoundError, UnicodeDecodeError):
        return True


def _others(root: Path, page: str) -> dict[str, str]:
    """The pages of the other boards in a folder, by name.

    Raises:
        UserError: the page itself is another suite's, where case does not count in names.
    """
    found = {}
    for path in sorted(root.glob("*.md")):
        text = path.read_text(encoding="utf-8", errors="replace")
        summary = render.Summary.read(text)
        if path.name.casefold() == page.casefold() and summary is not None and f"{summary.suite}.md" != page:
            raise UserError(f"{path}: is the board of the suite '{summary.suite}'; rename one of the suites")
        if path.name != page and summary is not None:
            found[path.name] = text
    return found


def _pictures(board: Board) -> dict[str, str]:
    """File name -> SVG."""
    from kdbench.board import picture, picture_prefixes

    return {
        name: picture.svg(part) if table is None else picture_prefixes.svg(part, table)
        for name, (part, table) in _shown(board).items()
    }


def _shown(board: Board) -> dict[str, tuple[Board, rows.Table | None]]:
    """Picture's file name -> what it shows: a track that has rows, or one of its pairs that has prefixes."""
    found: dict[str, tuple[Board, rows.Table | None]] = {}
    for part in (board, *([board.tuned.board] if board.tuned else [])):
        if part is board or part.has_rows:
            found[part.heading.picture] = (part, None)
        found |= {part.heading.anytime_picture(table.pair): (part, table) for table in part.tables if table.anytime}
    return found


def _summaries(pages: Mapping[str, str]) -> list[render.Summary]:
    """What every board says about itself, by the names of their pages."""
    read = (render.Summary.read(pages[name]) for name in sorted(pages))
    return [summary for summary in read if summary is not None]


def tables(board: Board) -> list[Table]:
    """The board for a terminal: one table for each pair, those of the tuned track last."""
    from rich.table import Table
    from rich.text import Text

    shown = []
    heading, metric, digits = board.heading, board.heading.headline, board.heading.headline.digits
    title_of = f"test {metric.named}{f' {metric.unit}' if metric.unit else ''}"
    parts = [(pair, "") for pair in board.tables]
    parts += [(pair, ", tuned track") for pair in (board.tuned.board.tables if board.tuned else ())]
    for pair, track in parts:
        teacher = (
            f", teacher {metric.shown(pair.teacher.score)}" if pair.teacher and pair.teacher.score is not None else ""
        )
        title = f"{pair.pair}{track}{teacher}"
        table = Table(title=Text(printable(title)), title_justify="left", box=None, header_style="bold", pad_edge=False)
        caption = "\n".join(printable(f"{text}.") for text in pair.told)
        table.caption, table.caption_justify = Text(caption) if caption else None, "left"
        for column in ("method", "n", title_of, f"gain over {heading.floor}", f"over {heading.reference}", ""):
            table.add_column(column, justify="left" if column in ("method", "") else "right")
        for row in pair.rows:
            trouble = "; ".join(text for _, text in row.troubles)
            note = heading.claimed(row) if row.ranked else ": ".join(filter(None, (row.why_unranked, trouble)))
            gains = (gain(found, row.n, digits) for found in (row.gain, row.over_reference))
            cells = (row.label, str(row.n), plain(row.score, digits), *gains, note)
            table.add_row(*(Text(printable(cell)) for cell in cells))
        shown.append(table)
    return shown
