"""The user's mistakes: one clear sentence each, exit code 2, no traceback."""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path

# Control characters, lone surrogates, and those that turn the direction of text: a terminal obeys them, or cannot
# print them.
HIDDEN = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def shown(text: str, most: int | None = None) -> str:
    """A user's text, letter by letter, as one line that is safe to print: `\\x1b`, `\\n` and the like are spelt out.

    Args:
        most: characters, where the end does not matter.
    """
    text = text if most is None or len(text) <= most else f"{text[: most - 3]}..."
    return HIDDEN.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


class UserError(Exception):
    """Bad input. The message says what, where (file:line where there is one) and what to do.

    Args:
        lines: one sentence each; control characters in them (a newline too) are told by their escapes.
    """

    def __init__(self, *lines: object) -> None:
        super().__init__(*lines)

    def __str__(self) -> str:
        return "\n".join(shown(str(line)) for line in self.args)


def did_you_mean(word: str, options: Iterable[str]) -> str:
    """' (did you mean 'x'?)', or '' when nothing is close."""
    close = get_close_matches(str(word), [str(option) for option in options], n=1, cutoff=0.6)
    return f" (did you mean '{close[0]}'?)" if close else ""


def printable(text: object) -> str:
    """Prose on one line: white space of any kind is one space, the rest as `shown`."""
    return shown(" ".join(str(text).split()))


SUFFIXES = (".yaml", ".yml")


def near(path: Path, prefix: str = "") -> str:
    """' (did you mean ...?)' among the files beside a path that does not exist; endings do not count."""
    suffixes = SUFFIXES if path.suffix in SUFFIXES else (path.suffix,)
    try:
        beside = {item.stem: item.name for item in path.parent.iterdir() if item.suffix in suffixes}
    except OSError:
        return ""
    close = get_close_matches(path.stem, beside, n=1)
    return f" (did you mean '{prefix}{beside[close[0]]}'?)" if close else ""
