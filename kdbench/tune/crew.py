"""`tune --workers N`: N processes that each do what a lone `tune` does. One that dies is replaced, its trial redone."""

from __future__ import annotations

import contextlib
import signal
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess

from kdbench.errors import UserError
from kdbench.run import processes
from kdbench.tune.order import Order
from kdbench.tune.screen import Screen

SAY, STOP, DONE = "say", "stop", "done"  # events: (SAY, text, counts), (STOP, sentence), (DONE,)
PATIENCE = 10.0  # seconds that workers have to put a trial down
DEATHS = 5  # of one worker's successors in a row without a finished trial


@dataclass(eq=False)
class Hand:
    process: SpawnProcess
    connection: Connection
    device: str
    deaths: int = 0  # of those it replaces


@dataclass
class Workers:
    """`devices` are dealt out in turn."""

    order: Order
    count: int
    devices: tuple[str, ...]
    screen: Screen
    hands: list[Hand] = field(default_factory=list)

    def run(self) -> None:
        """Until every worker has found nothing more to do.

        Raises:
            UserError: what a worker found wrong, or workers that die one after the other.
            KeyboardInterrupt: the user stopped; the workers have put their trials down.
        """
        try:
            for number in range(self.count):
                self.hands.append(self._hire(self.devices[number % len(self.devices)], 0))
            while self.hands:
                for ready in wait([hand.connection for hand in self.hands], timeout=1.0):
                    hand = next(hand for hand in self.hands if hand.connection is ready)
                    self._listen(hand)
        finally:
            processes.end((hand.process for hand in self.hands), PATIENCE)  # SIGTERM is heard as Ctrl-C there

    def _hire(self, device: str, deaths: int) -> Hand:
        process, connection = processes.hire(main, self.order, device, of=self.count)
        return Hand(process, connection, device, deaths)

    def _listen(self, hand: Hand) -> None:
        try:
            name, *arguments = hand.connection.recv()
        except (EOFError, ConnectionResetError, OSError):
            self._died(hand)
            return
        if name == SAY:
            text, counts = arguments
            hand.deaths = 0 if counts else hand.deaths
            self.screen.say(text, counts)
        elif name == STOP:
            raise UserError(*arguments)
        elif name == DONE:
            self.hands.remove(hand)
            processes.leave(hand.process, PATIENCE)

    def _died(self, hand: Hand) -> None:
        processes.leave(hand.process, PATIENCE)
        self.hands.remove(hand)
        said = processes.cause(hand.process.exitcode)
        if hand.deaths + 1 >= DEATHS:
            logs = self.order.setting.runs / "logs"
            raise UserError(f"{DEATHS} workers died one after the other (the last: {said}); see {logs}")
        self.screen.warn(f"a worker died ({said}); another takes its place")
        self.hands.append(self._hire(hand.device, hand.deaths + 1))


def main(connection: Connection, order: Order, device: str, threads: int, parent: int) -> None:
    """A worker's whole life."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches it through its parent
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    processes.follow(parent, patience=PATIENCE)
    with contextlib.suppress(BrokenPipeError, ConnectionResetError, KeyboardInterrupt):
        try:
            _work(connection, order, device, threads)
            connection.send((DONE,))
        except UserError as error:
            connection.send((STOP, *map(str, error.args)))  # line by line


def _work(connection: Connection, order: Order, device: str, threads: int) -> None:
    import torch
    from rich.console import Console

    if threads:
        torch.set_num_threads(threads)
    screen = Screen(Console(stderr=True), lambda text, counts: connection.send((SAY, text, counts)))
    order.open(device, screen.listener()).work()
