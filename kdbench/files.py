"""Whole files or none: a kill at any moment leaves the old file or the new one."""

from __future__ import annotations

import contextlib
import os
import uuid
from pathlib import Path


def write_atomically(path: Path, payload: bytes, *, durable: bool = True) -> None:
    """Write beside the target, then rename. `durable` also waits for the disk (survives a power cut)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with draft.open("wb") as file:
            file.write(payload)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        draft.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)
        raise


def is_file(path: Path) -> bool:
    """As of pathlib; a name that the file system does not allow is no file either."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def cache() -> Path:
    """Where what can be made again is kept: $KDBENCH_CACHE, else $XDG_CACHE_HOME/kdbench, else ~/.cache/kdbench."""
    if own := os.environ.get("KDBENCH_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kdbench"


def set_aside(path: Path) -> Path:
    """Rename a damaged file so that it is neither used nor lost; returns its new name."""
    number = 0
    while (target := path.with_name(f"{path.name}.damaged{number or ''}")).exists():
        number += 1
    return path.rename(target)
