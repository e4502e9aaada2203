"""Results -> the files of the leaderboard: `<suite>.md`, its pictures `<suite>*.svg` and the index `README.md`.

Needs the suite file and the stored results, neither data nor torch.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from kdbench.board import page, tracks
from kdbench.board.heading import heading
from kdbench.board.rank import rank
from kdbench.board.rows import Board
from kdbench.board.text import gain, plain
from kdbench.errors import UserError
from kdbench.files import write_atomically
from kdbench.pairing import pairing
from kdbench.result import Result
from kdbench.run.store import Store
from kdbench.suite import winners
from kdbench.suite.load import Suite

if TYPE_CHECKING:
    from rich.table import Table


def current(suite: Suite, store: Store) -> list[Result]:
    """The stored results of the default track that the suite as it is now asks for, under its labels.

    Where results of several versions of the data are stored, those of the most frequent one.
    """
    return tracks.published(suite, store)


def current_tuned(suite: Suite, store: Store) -> list[Result]:
    """The same of the tuned track: results of the winners that are in force now."""
    return tracks.chosen(suite, store, winners.current(suite, _root(store))[0])


def _root(store: Store) -> Path:
    """The folder of the boards, from that of a suite's records."""
    return store.folder.parent.parent


def _unpaired(suite: Suite) -> dict[str, str]:
    """Label -> what it does not share with the other methods, on any of its pairs."""
    found: dict[str, str] = {}
    for pair, label in suite.cells:
        if words := pairing(suite.methods[label], tuple(suite.file.pairs[pair].roles)).words:
            found.setdefault(label, words)
    return found


def board_of(suite: Suite, store: Store) -> Board:
    """The suite's board with both its tracks, from what is stored.

    Raises:
        UserError: a file of the tuned track is damaged.
    """
    board = rank(heading(suite), current(suite, store))
    return replace(board, tuned=tracks.tuned_track(suite, store, board, _root(store)))


def publish(board: Board, root: Path) -> list[Path]:
    """Write the board, its pictures and the index; the paths, the board first.

    Raises:
        UserError: the folder cannot be written.
    """
    pages = {f"{board.heading.suite}.md": page.markdown(board), **_pictures(board)}
    try:
        for file, text in pages.items():
            _write(root / file, text)
        _write(root / "README.md", page.index(_summaries(root)))
    except OSError as error:
        raise UserError(f"{root}: cannot write the board ({error.strerror}); give --results DIR") from error
    return [*(root / file for file in pages), root / "README.md"]


def _pictures(board: Board) -> dict[str, str]:
    """File name -> SVG: one of each track that has rows, and one of each pair that has prefixes."""
    from kdbench.board import picture, picture_prefixes

    drawn = {}
    for part in (board, *([board.tuned.board] if board.tuned else [])):
        if part is board or part.has_rows:
            drawn[part.heading.picture] = picture.svg(part)
        for table in part.tables:
            if table.anytime:
                drawn[part.heading.anytime_picture(table.pair)] = picture_prefixes.svg(part, table)
    return drawn


def _write(path: Path, text: str) -> None:
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        write_atomically(path, text.encode())


def _summaries(root: Path) -> list[page.Summary]:
    """What every board in the folder says about itself."""
    read = (page.Summary.read(path.read_text(encoding="utf-8")) for path in sorted(root.glob("*.md")))
    return [summary for summary in read if summary is not None]


def tables(board: Board) -> list[Table]:
    """The board for a terminal: one table for each pair, those of the tuned track last."""
    from rich.markup import escape
    from rich.table import Table

    shown = []
    heading = board.heading
    parts = [(pair, "") for pair in board.tables]
    parts += [(pair, ", tuned track") for pair in (board.tuned.board.tables if board.tuned else ())]
    for pair, track in parts:
        teacher = f", teacher {pair.teacher.top1:.2f}%" if pair.teacher and pair.teacher.top1 is not None else ""
        title = f"{pair.pair}{track}{teacher}"
        table = Table(title=title, title_justify="left", box=None, header_style="bold", pad_edge=False)
        table.caption, table.caption_justify = "\n".join(escape(f"{text}.") for text in pair.told) or None, "left"
        for column in ("method", "n", "test top-1 %", f"gain over {heading.floor}", f"over {heading.reference}", ""):
            table.add_column(column, justify="left" if column in ("method", "") else "right")
        for row in pair.rows:
            trouble = "; ".join(text for _, text in row.troubles)
            note = heading.claimed(row) if row.ranked else ": ".join(filter(None, (row.why_unranked, trouble)))
            table.add_row(row.label, str(row.n), plain(row.top1), gain(row.gain, row.n), gain(row.over_kd, row.n), note)
        shown.append(table)
    return shown
