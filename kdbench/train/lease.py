"""Leases: who is training what, among processes of one machine or of several that share a folder.

A lease is a small file that its owner touches every few seconds. Who finds it taken watches it on a monotonic clock of
its own; clocks of two machines are never compared, so that one that is wrong, or jumps, changes nothing. A lease is
taken over at once when its owner was a process of this machine that is gone, else after STALE seconds without a touch.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path

from kdbench.files import STRICT, parsed

BEAT = 5.0  # seconds between touches
STALE = 90.0  # shared folders may show another machine's touch a minute late


@dataclass(frozen=True)
class Owner:
    """What a lease says about who holds it."""

    __pydantic_config__ = STRICT

    token: str  # of this one acquisition
    machine: str  # digest of host, boot and process namespace: only there does `pid` mean something
    pid: int
    started: str  # of the process, so that a reused pid is not mistaken for it
    host: str
    what: str = ""  # for people: what is being trained

    @classmethod
    def me(cls, what: str = "") -> Owner:
        return cls(uuid.uuid4().hex, machine(), os.getpid(), birth(os.getpid()) or "", socket.gethostname(), what)

    @property
    def gone(self) -> bool:
        """Certainly dead: a process of this machine that is no more."""
        return self.machine == machine() and birth(self.pid) != self.started


@dataclass
class Lease:
    """A lease that this process holds. `lost` becomes true if another took it over, as after a long suspension."""

    path: Path
    owner: Owner
    lost: bool = False

    @classmethod
    def acquire(cls, path: Path, what: str = "") -> Lease | None:
        """The lease, or None while somebody else holds it. `what` tells people what is being done.

        Raises:
            OSError: the folder cannot be written.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        lease = cls(path, Owner.me(what))
        if not lease._create(path) and not lease._take_over():
            return None
        _seen.pop(path, None)
        _heart.add(lease)
        return lease

    def release(self) -> None:
        _heart.discard(self)
        with contextlib.suppress(OSError):
            if not self.lost and _read(self.path) == self.owner:
                self.path.unlink()

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, *error: object) -> None:
        self.release()

    def beat(self) -> None:
        """Touch the file; notice when it is another's."""
        try:
            if _read(self.path) != self.owner:
                self.lost = True
            else:
                os.utime(self.path)
        except FileNotFoundError:
            self.lost = True
        except OSError:
            pass  # the shared folder is away for a moment

    def _create(self, path: Path) -> bool:
        try:
            with path.open("x", encoding="utf-8") as file:
                json.dump(asdict(self.owner), file)
        except FileExistsError:
            return False
        return True

    def _take_over(self) -> bool:
        """Replace the lease of an owner that is gone or silent. Exactly one of several takers holds the claim."""
        try:
            dead, touched = _read(self.path), self.path.stat().st_mtime_ns
        except FileNotFoundError:
            return self._create(self.path)
        name = dead.token if dead else "unreadable"
        silent = _unchanged(self.path, (name, touched))
        if not (dead and dead.gone) and silent < STALE:
            return False
        claim = self.path.with_name(f"{self.path.name}.{name[:8]}.claim")
        if not self._create(claim):
            if _unchanged(claim, (name,)) > STALE:  # its taker died half-way
                claim.unlink(missing_ok=True)
            return False
        try:
            if _read(self.path) != dead or self.path.stat().st_mtime_ns != touched:
                return False  # another taker was faster, or the owner woke up
            draft = claim.with_suffix(".draft")
            draft.write_text(json.dumps(asdict(self.owner)), encoding="utf-8")
            draft.replace(self.path)
            return True
        except FileNotFoundError:
            return False
        finally:
            claim.unlink(missing_ok=True)


def holder(path: Path) -> Owner | None:
    """Who holds a lease, as far as can be told at once: None if nobody, or a process of this machine that is gone."""
    try:
        owner = _read(path)
    except OSError:
        return None
    return None if owner is None or owner.gone else owner


@contextmanager
def waited(path: Path, what: str = "", poll: float = 0.5) -> Iterator[Lease]:
    """The lease, once whoever holds it lets it go."""
    while (lease := Lease.acquire(path, what)) is None:
        time.sleep(poll)
    with lease:
        yield lease


# what others do ------------------------------------------------------------------------------------------------------
_seen: dict[Path, tuple[tuple[object, ...], float]] = {}  # what was last seen at a path, and since when


def _unchanged(path: Path, sight: tuple[object, ...]) -> float:
    """Seconds for which this process has seen nothing but `sight` there."""
    now = time.monotonic()
    if path not in _seen or _seen[path][0] != sight:
        _seen[path] = (sight, now)
    return now - _seen[path][1]


def _read(path: Path) -> Owner | None:
    """The owner; None where the file is empty or torn: its writer was killed, or is just writing."""
    try:
        return parsed(Owner, path.read_text(encoding="utf-8"))
    except ValueError:
        return None


@cache
def machine() -> str:
    parts = [socket.gethostname()]
    for source in ("/proc/sys/kernel/random/boot_id", "/proc/self/ns/pid"):
        with contextlib.suppress(OSError):
            path = Path(source)
            parts.append(str(path.readlink()) if path.is_symlink() else path.read_text().strip())
    return hashlib.sha256("|".join(parts).encode()).hexdigest()[:16]


def birth(pid: int) -> str | None:
    """When a process of this machine was started, in the kernel's own ticks; None if there is none ("" if unknown)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:
        if Path("/proc/self/stat").exists():
            return None
    except OSError:
        return None  # it ended while it was read
    else:
        return None if fields[0] in "ZX" else fields[19]
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except OSError:
        pass
    return ""


# the heart -----------------------------------------------------------------------------------------------------------
@dataclass
class _Heart:
    """One thread of this process touches all its leases."""

    leases: list[Lease] = field(default_factory=list)
    guard: threading.Lock = field(default_factory=threading.Lock)
    thread: threading.Thread | None = None
    pid: int = 0  # a forked child has no thread

    def add(self, lease: Lease) -> None:
        with self.guard:
            self.leases.append(lease)
            if self.thread is None or self.pid != os.getpid():
                self.thread, self.pid = threading.Thread(target=self._run, daemon=True, name="leases"), os.getpid()
                self.thread.start()

    def discard(self, lease: Lease) -> None:
        with self.guard:
            self.leases = [held for held in self.leases if held is not lease]

    def _run(self) -> None:
        while True:
            time.sleep(BEAT)
            with self.guard:
                held = list(self.leases)
            for lease in held:
                lease.beat()


_heart = _Heart()
