"""`tune --executor`: so many calls on the machines of a cluster that each do what a lone `tune` does.

They meet in the storage, as all processes do that tune one suite. One that is lost is launched again.
"""

from __future__ import annotations

import dataclasses
import socket
from collections.abc import Callable
from dataclasses import dataclass

from kdbench.errors import UserError
from kdbench.run.remote import Executor, Lost, anywhere
from kdbench.run.worker import Event
from kdbench.tune import storage as storages
from kdbench.tune.crew import DEATHS, DONE, SAY, STOP
from kdbench.tune.order import Order
from kdbench.tune.screen import Screen


@dataclass(frozen=True)
class Work:
    """One of them, as a call."""

    order: Order
    device: str
    last: bool = True

    def __call__(self) -> list[Event]:
        from rich.console import Console

        said: list[Event] = []
        screen = Screen(Console(stderr=True), lambda text, counts: said.append((SAY, text, counts)))
        try:
            listener = dataclasses.replace(screen.listener(), epoch=lambda what, progress: None)
            self.order.open(self.device, listener).work()
        except UserError as error:
            return [*said, (STOP, *(f"{socket.gethostname()}: {line}" for line in error.args))]
        return [*said, (DONE,)]


def meeting_place(url: str, executor: str) -> str:
    """The storage as every machine can open it.

    Raises:
        UserError: SQLite, whose locks do not hold on shared folders.
    """
    if url.startswith("sqlite"):
        raise UserError(
            f"--executor {executor}: SQLite cannot be shared by machines: give --storage journal:FILE on their shared "
            "folder, or the URL of a database"
        )
    path = storages.file_of(url)
    return url if path is None else f"journal:{path.absolute()}"


@dataclass
class RemoteWorkers:
    """`count` of them on an executor. `left`: how many trials are not done."""

    order: Order
    count: int
    executor: Executor
    screen: Screen
    left: Callable[[], int]

    def run(self) -> None:
        """Until every one has found nothing more to do.

        Raises:
            UserError: what one found wrong, or ones that are lost one after the other.
            KeyboardInterrupt: the user stopped; the trials go on where their checkpoints are.
        """
        order = dataclasses.replace(self.order, setting=anywhere(self.order.setting))
        with self.executor:
            work = Work(order, self.executor.device)
            running = set(self.executor.launch([work] * self.count))
            lost, left = 0, self.left()
            try:
                while running:
                    for handle, answer in self.executor.ended(running).items():
                        running.discard(handle)
                        if isinstance(answer, Lost):
                            now = self.left()
                            lost, left = (lost + 1, left) if now >= left else (1, now)
                            self._lost(answer, lost)
                            running |= set(self.executor.launch([work]))
                        else:
                            self._hear(answer)
            finally:
                self.executor.cancel(running)

    def _lost(self, answer: Lost, lost: int) -> None:
        if lost >= DEATHS * self.count:
            raise UserError(f"{lost} workers were lost one after the other (the last: {answer.cause})")
        self.screen.warn(f"a worker was lost ({answer.cause}); another takes its place")

    def _hear(self, answer: list[Event]) -> None:
        for name, *arguments in answer:
            if name == SAY:
                self.screen.say(*arguments)
            elif name == STOP:
                raise UserError(*arguments)
