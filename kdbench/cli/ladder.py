"""`kdbench ladder`: see kdbench/models/ladder.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, TypeVar

import typer

from kdbench.cli.options import DataRoot, NoPlugins, SuitePath, root_of
from kdbench.errors import UserError

Number = TypeVar("Number", int, float)


def ladder(
    suite: SuitePath,
    pair: Annotated[str, typer.Argument(metavar="PAIR", help="Whose student is widened, and whose teacher is 100%.")],
    fractions: Annotated[
        str,
        typer.Option("--fractions", metavar="LIST", help="Shares of the teacher's MACs, one a rung: 0.01,0.03,0.1."),
    ],
    option: Annotated[
        str, typer.Option("--option", help="The student's option to choose: a number, or a list to scale (widths).")
    ] = "dim",
    no_plugins: NoPlugins = False,
    depths: Annotated[str, typer.Option("--depths", metavar="LIST", help="Option `depth` of each rung: 1,2,2.")] = "",
    data_root: DataRoot = None,
) -> None:
    """Propose a ladder of students for shares of the teacher's MACs, as YAML to paste into the pair."""
    shares = _numbers(fractions, "--fractions", float, "0.01,0.03,0.1")
    deep = _numbers(depths, "--depths", int, "1,2,2") if depths else []
    if not all(0 < share <= 1 for share in shares) or not all(depth > 0 for depth in deep):
        raise UserError("--fractions are above 0 and at most 1, --depths above 0")
    from kdbench import data
    from kdbench.models.ladder import propose, text
    from kdbench.suite.load import load

    loaded = load(suite)
    images = data.load(loaded.file.data, root_of(data_root), loaded.folder, loaded.task_name)
    typer.echo(text(propose(loaded, pair, shares, option, deep, images)))


def _numbers(text: str, what: str, kind: Callable[[str], Number], example: str) -> list[Number]:
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError as error:
        raise UserError(f"{what} {text}: expects numbers such as {example}") from error
