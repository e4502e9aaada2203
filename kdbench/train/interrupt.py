"""Ctrl-C between two steps: where a checkpoint can be written, so that nothing is lost.

Only where a signal means KeyboardInterrupt anyway; a worker of a crew, which its crew ends, is left as it is. A second
Ctrl-C does not wait.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType


class Interrupt:
    """Within the block, the first SIGINT or SIGTERM is only noted in `asked`."""

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.asked = False
        self._held: list[signal.Signals] = []

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():
            self._held = [number for number in self.SIGNALS if signal.getsignal(number) is signal.default_int_handler]
            for number in self._held:
                signal.signal(number, self._note)
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        self._release()
        if kind is None:
            self.raise_if_asked()

    def raise_if_asked(self) -> None:
        """Raises KeyboardInterrupt."""
        if self.asked:
            raise KeyboardInterrupt

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        self._release()

    def _release(self) -> None:
        for number in self._held:
            signal.signal(number, signal.default_int_handler)
        self._held = []
