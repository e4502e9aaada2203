"""What `kdbench tune` is told, as a value that can be sent to workers."""

from __future__ import annotations

from dataclasses import dataclass

from kdbench.errors import UserError
from kdbench.run.opened import Setting
from kdbench.suite.cell import tune_of
from kdbench.suite.load import load
from kdbench.tune.storage import connect
from kdbench.tune.tuner import Listener, Tuner


@dataclass(frozen=True)
class Order:
    """The command line of `tune`."""

    setting: Setting
    url: str
    extra: int = 0  # trials beyond the suite's

    def open(self, device: str, listener: Listener) -> Tuner:
        """Raises UserError with all that is wrong with the suite, the options, the data, the models or the storage."""
        tune_of(load(self.setting.suite))  # before the data are read
        if self.extra and self.setting.only:
            raise UserError("--trials extends every method alike: omit --only")
        opened = self.setting.open(device, listener.warn)
        tuner = Tuner(opened, connect(self.url), self.url, self.extra, listener)
        tuner.prepare()
        return tuner
