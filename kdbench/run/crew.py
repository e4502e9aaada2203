"""Jobs -> results with worker processes, several on a device: a crash, a fault or a lack of memory costs one job.

The crew keeps no state that matters: results, teachers and checkpoints are on disk, and leases say who is at what.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess

from kdbench.errors import UserError
from kdbench.run import processes, worker
from kdbench.run.opened import Setting
from kdbench.run.roster import DEATHS, Assignment, Roster
from kdbench.run.runner import Listener
from kdbench.run.store import Store
from kdbench.run.summary import Summary
from kdbench.suite.job import FrozenRole, Job


@dataclass(eq=False)
class Hand:
    """One worker process."""

    process: SpawnProcess
    connection: Connection
    device: str
    assignment: Assignment | None = None
    since: float = 0.0
    ready: bool = False


@dataclass
class Crew:
    """`workers` processes over `devices`; `timeout` in seconds for each job or teacher."""

    jobs: Sequence[Job]
    store: Store
    setting: Setting
    workers: int
    devices: tuple[str, ...] = ("cpu",)
    timeout: float | None = None
    listener: Listener = field(default_factory=Listener)
    roles: Sequence[FrozenRole] | None = None  # to be made, and nothing else

    def __post_init__(self) -> None:
        self.roster = Roster(self.jobs, self.store, self.setting.runs, self.listener, self.roles)
        self.hands: list[Hand] = []
        self.room = dict.fromkeys(self.devices, self.workers)  # jobs at a time on a device
        self.died_early = 0  # workers that died before they were ready

    def run(self) -> Summary:
        """Do all that waits.

        Raises:
            UserError: what a worker found wrong with the user's input or disk.
            KeyboardInterrupt: the user stopped; workers are ended, what is finished is stored.
        """
        try:
            while self.roster.waiting or self._busy():
                self._assign()
                self._listen()
                self._check_time()
        finally:
            self._end()
        return self.roster.summary()

    # who does what ---------------------------------------------------------------------------------------------------
    def _busy(self, device: str | None = None) -> list[Hand]:
        return [hand for hand in self.hands if hand.assignment and device in (None, hand.device)]

    def _assign(self) -> None:
        for device in self.devices:
            for hand in [hand for hand in self.hands if hand.device == device and not hand.assignment and hand.ready]:
                if len(self._busy(device)) >= self.room[device]:
                    self._dismiss(hand)  # an idle process holds memory too
                elif (assignment := self.roster.take()) is not None:
                    self._give(hand, assignment)
        idle = sum(hand.assignment is None for hand in self.hands)
        due = sum(map(self.roster.due, self.roster.waiting))
        while len(self.hands) < self.workers and idle < due:
            free = [device for device in self.devices if self._on(device) < self.room[device]]
            if not free:
                return
            self.hands.append(self._hire(min(free, key=self._on)))
            idle += 1

    def _on(self, device: str) -> int:
        return sum(hand.device == device for hand in self.hands)

    def _give(self, hand: Hand, assignment: Assignment) -> None:
        hand.assignment, hand.since = assignment, time.monotonic()
        alone = len(self._busy(hand.device)) <= 1 and self.room[hand.device] == 1
        try:
            hand.connection.send((assignment.kind, assignment.key, alone or self.workers == 1))
        except (BrokenPipeError, ConnectionResetError):
            return  # it died idle: noticed when it is listened to
        if assignment.job:
            self.listener.started(assignment.job)

    def _hire(self, device: str) -> Hand:
        process, connection = processes.hire(worker.main, self.setting, device, of=self.workers)
        return Hand(process, connection, device)

    # what is heard ---------------------------------------------------------------------------------------------------
    def _listen(self) -> None:
        if not self.hands:
            time.sleep(0.05)
            return
        heard = wait([hand.connection for hand in self.hands], timeout=0.2)
        for hand in [hand for hand in self.hands if hand.connection in heard]:
            try:
                event = hand.connection.recv()
            except (EOFError, ConnectionResetError, OSError):
                self._died(hand)
            else:
                self._heard(hand, event)

    def _heard(self, hand: Hand, event: tuple[object, ...]) -> None:
        name, *arguments = event
        assignment = hand.assignment
        if name == worker.READY:
            hand.ready = True
        elif name == worker.EPOCH:
            if assignment:
                assignment.deaths = 0
            self.listener.epoch(*arguments)  # type: ignore[arg-type]
        elif name == worker.WARN:
            self.listener.warn(str(arguments[0]))
        elif name == worker.STOP:
            raise UserError(*arguments)
        elif name == worker.SPENT:
            self._dismiss(hand)
        elif assignment is not None:
            hand.assignment = None
            if name == worker.TAUGHT:
                self.roster.taught(assignment, str(arguments[1]))
            elif name == worker.BUSY:
                self.roster.held(assignment)
            elif name == worker.MEMORY:
                self._make_room(hand, assignment)
            elif name == worker.DONE:
                self.roster.done(assignment, bool(arguments[1]))

    # trouble ---------------------------------------------------------------------------------------------------------
    def _make_room(self, hand: Hand, assignment: Assignment) -> None:
        """Out of memory: tried again with fewer neighbours; alone on its device it is final."""
        self.room[hand.device] = max(1, len(self._busy(hand.device)))  # without this one
        self.listener.warn(
            f"{assignment.name} ran out of memory; {hand.device} now gets {self.room[hand.device]} jobs at a time"
        )
        self.roster.again(assignment)
        self._dismiss(hand)  # its process keeps what it allocated

    def _died(self, hand: Hand) -> None:
        hand.process.join(5)
        code, assignment = hand.process.exitcode, hand.assignment
        self._drop(hand)
        if assignment is None:
            self.died_early += not hand.ready
            if self.died_early >= DEATHS:
                raise UserError(f"workers on {hand.device} die while they open the suite ({processes.cause(code)})")
            return
        if self.roster.died(assignment, processes.cause(code)) and assignment.deaths > 1:
            self.room[hand.device] = max(1, len(self._busy(hand.device)))  # the kernel kills what it has no memory for

    def _check_time(self) -> None:
        if self.timeout is None:
            return
        for hand in self._busy():
            if time.monotonic() - hand.since > self.timeout and (assignment := hand.assignment):
                hand.process.kill()
                hand.process.join(5)
                self._drop(hand)
                self.roster.fail(
                    assignment, f"no result after {self.timeout:g} s (--timeout); the next run continues it"
                )

    # the end ---------------------------------------------------------------------------------------------------------
    def _dismiss(self, hand: Hand) -> None:
        """Let a worker go; what was given to it before it was known that it goes waits again."""
        if hand.assignment:
            self.roster.again(hand.assignment)
        with contextlib.suppress(OSError):
            hand.connection.send(None)
        processes.leave(hand.process, patience=2)
        self._drop(hand)

    def _drop(self, hand: Hand) -> None:
        hand.connection.close()
        self.hands.remove(hand)

    def _end(self) -> None:
        """Checkpoints are whole after every epoch, so that a worker may be ended at any moment."""
        processes.end((hand.process for hand in self.hands), patience=3)
        for hand in self.hands:
            hand.connection.close()
        self.hands = []
