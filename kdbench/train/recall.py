"""A frozen role whose answers are looked up in a table, and made where the table does not have them yet.

With crop and flip an example has a few views (162 with CIFAR's recipe), and which of them a batch has is known
beforehand. So before the steps up to the next report the answers that are missing are made, in batches of the job's own
size: a row of logits then has the bits that it would have in the batch of its step, whoever shares it. A network of
which that is not true runs live. See docs/adr/0015-stored-views.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median

import torch
from torch import Tensor

from kdbench.batch import Batch, Out
from kdbench.data import DataSet
from kdbench.data.augment import choices, drawn
from kdbench.data.batches import fetch
from kdbench.files import set_aside
from kdbench.method import Method, changes
from kdbench.suite.fields import Recipe
from kdbench.train.clock import Seconds, timed
from kdbench.train.frozen import Live, Voice
from kdbench.train.recipe import autocast
from kdbench.train.table import NoTable, Shelf, Table

TIMED = 5  # forward passes, of which the median counts


def views(method: Method, recipe: Recipe) -> int | None:
    """How many views of an example a frozen role is asked about; None where its answers cannot be looked up.

    They can where the role is asked for logits alone, about inputs that crop and flip make.
    """
    needs = method.needs()
    if needs.teacher or needs.draws or changes(method, "batch"):
        return None
    return choices(recipe.augment)


class Recalled(Voice):
    """Answers as `live` does, with the same bits."""

    def __init__(self, live: Live, data: DataSet, recipe: Recipe, precision: str, views: int, shelf: Shelf) -> None:
        """`views`: augmented views of each batch that the method asks for."""
        self.live, self.data, self.recipe, self.precision, self.views = live, data, recipe, precision, views
        self.shelf = shelf
        self.table: Table | None = None
        self.shape: tuple[int, ...] = ()  # of one example's answer
        self.tried = False
        self.pass_ = Seconds()  # of one batch, live
        self.owed, self.spent = Seconds(), Seconds()
        self.first, self.known = 0, list[Tensor]()  # the number of the first batch whose answers lie ready, and these

    # before the steps ------------------------------------------------------------------------------------------------
    def ready(
        self, batches: Sequence[Tensor], first: int, key: tuple[int, int], stop: Callable[[], bool] = lambda: False
    ) -> bool:
        """Have the answers on these batches of an epoch ready, of which `first` is the first one's number.

        Returns:
            False where `stop` asked to end before all were made; those that were are kept.
        """
        with timed() as spent:
            done = self._ready(batches, first, key, stop)
        self.spent.add(spent)
        return done

    def _ready(self, batches: Sequence[Tensor], first: int, key: tuple[int, int], stop: Callable[[], bool]) -> bool:
        self.first, self.known = first, []
        try:
            if not self.tried:
                self.tried = True
                self.table = self._tried(batches[0], key)
            if self.table is None:
                return True
            index = torch.cat(list(batches))
            known = []
            for view in range(self.views):
                rows = self._rows(self.table, index, len(batches[0]), key, view, stop)
                if rows is None:
                    return False
                known.append(rows.to(index.device).view(len(index), *self.shape))
        except (NoTable, OSError) as error:
            self.table = None
            reason = str(error) if isinstance(error, NoTable) else f"{self.shelf.folder}: {error.strerror or error}"
            self.shelf.warn(f"the {self.live.tapped.role} runs on every batch: {reason}")
            return True
        self.known = known
        return True

    def _rows(
        self, table: Table, index: Tensor, size: int, key: tuple[int, int], view: int, stop: Callable[[], bool]
    ) -> Tensor | None:
        """Answers (n, D) on one view of these examples; what is missing is made and kept. None: somebody said stop."""
        cell, inverse = torch.unique(self._cells(index, key, view), return_inverse=True)
        rows, is_there = table.read(cell)
        missing = (~is_there).nonzero().flatten()
        # In an order of its own, and looked up again: so processes that train side by side share the work.
        shuffle = torch.Generator()
        shuffle.seed()
        missing = missing[torch.randperm(len(missing), generator=shuffle)]
        todo = missing[:0]
        for chunk in missing.split(size):
            if stop():
                return None
            rows[chunk], is_there = table.read(cell[chunk])
            todo = torch.cat([todo, chunk[~is_there]])
            while len(todo) >= size or (len(todo) and chunk[-1] == missing[-1]):
                batch, todo = todo[:size], todo[size:]
                padded = batch.repeat(-(-size // len(batch)))[:size]  # with repetitions
                example = (cell[padded] // self._choices).to(index.device)
                rows[batch] = self._answers(example, key, view)[: len(batch)].flatten(1).cpu()
                table.write(cell[batch], rows[batch])
        return rows[inverse]

    def _cells(self, index: Tensor, key: tuple[int, int], view: int) -> Tensor:
        """The rows of the table where the answers on one view of these examples are (n,), on the CPU."""
        seed, epoch = key
        number = drawn(index, self.recipe.augment, seed=seed, epoch=epoch, view=view)
        return (index * self._choices + number).cpu()

    @property
    def _choices(self) -> int:
        return choices(self.recipe.augment) or 1

    def _answers(self, index_B: Tensor, key: tuple[int, int], view: int = 0) -> Tensor:
        return self._asked(fetch(self.data.train, index_B, self.recipe, key, view))

    def _asked(self, x: Tensor) -> Tensor:
        """As `frozen.say` asks, before the task makes rows of it."""
        with torch.no_grad(), autocast(self.precision, self.data.train.device):
            return self.live.tapped(x).rows.float()

    # trust -----------------------------------------------------------------------------------------------------------
    def _tried(self, index_B: Tensor, key: tuple[int, int]) -> Table | None:
        """The table, if rows of the role's answers are what they are in any other batch of this size.

        What the table has of this batch must be what the role says now: else the table was made by other code, and is
        set aside.
        """
        x = fetch(self.data.train, index_B, self.recipe, key)
        if not isinstance(x, Tensor):
            return None
        size, state = len(x), _state(x.device)
        said = self._asked(x)
        if said.ndim == 0 or len(said) != size:
            return None
        # Every row in another place, among other rows: half of them from behind, then the first one to the end.
        other = torch.cat([torch.arange(size - 1, size // 2 - 1, -1), torch.zeros(size // 2, dtype=torch.int64)])
        other = other.to(x.device)
        moved = x.index_select(0, other)
        if x.ndim == 4:
            moved = moved.contiguous(memory_format=torch.channels_last)
        if not torch.equal(self._asked(moved), said.index_select(0, other)) or _changed(state, x.device):
            return None
        self._time(x)
        self.shape = tuple(said.shape[1:])
        table = self.shelf.table(
            len(self.data.train),
            self._choices,
            said[0].numel(),
            augment=[self.recipe.augment.crop, self.recipe.augment.flip],
            batch=size,
            precision=self.precision,
            compile=self.recipe.compile,
        )
        rows, is_there = table.read(self._cells(index_B, key, 0))
        if not torch.equal(rows[is_there], said.flatten(1).cpu()[is_there]):
            aside = set_aside(table.path)
            self.shelf.warn(
                f"{self.shelf.folder.name}: the {self.live.tapped.role} no longer says what its stored answers say; "
                f"they are set aside as {aside.name} and made again"
            )
        return table

    def _time(self, x: Tensor) -> None:
        passes = []
        for _ in range(TIMED):
            with timed(x.device) as spent:
                self._asked(x)
            passes.append(spent)
        self.pass_ = Seconds(median(one.wall for one in passes), median(one.cpu for one in passes))

    # in a step -------------------------------------------------------------------------------------------------------
    def __call__(self, batch: Batch) -> Out:
        if not self.known:
            return self.live(batch)
        self.owed.add(self.pass_, self.views)
        start = (batch.number - self.first) * len(batch.index_B)
        first, *others = (
            Out(self.live.tapped.role, batch.task.rows(rows[start : start + len(batch.index_B)], batch))
            for rows in self.known
        )
        return Out(first.role, first.rows, views=tuple(others))

    def settle(self) -> tuple[Seconds, Seconds]:
        owed, spent = self.owed, self.spent
        self.owed, self.spent = Seconds(), Seconds()
        return owed, spent

    def close(self) -> None:
        self.known = []
        self.live.close()


def _state(device: torch.device) -> list[Tensor]:
    """Of torch's generators: a network that draws in eval mode answers differently each time."""
    own = [torch.cuda.get_rng_state(device)] if device.type == "cuda" else []
    return [torch.get_rng_state(), *own]


def _changed(state: list[Tensor], device: torch.device) -> bool:
    return not all(torch.equal(one, other) for one, other in zip(state, _state(device), strict=True))
