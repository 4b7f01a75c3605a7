"""Which rows go into which step: a pure function of the seed, so that any step can be taken up again.

Permutations come from `numpy.random.RandomState`, whose stream is frozen by NEP 19, unlike that of
`Generator`: a checkpoint stays good across numpy versions and machines. With packing the unit of the order is
a packed row of several examples, else it is one example.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from luthier.planning import split_row_counts
from trainer.data.mixing import Source, mix
from trainer.data.packing import pack

# Streams of the same seed that must not repeat each other; 3 is `mixing`'s.
_SPLIT_STREAM, _EPOCH_STREAM, _PACKED_STREAM = 1, 2, 4


def split_rows(
    row_count: int, validation_split: float, validation_rows: int | None, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers (int64, ascending) for training and for validation.

    Their counts are those of `planning.split_row_counts`, from which the number of steps was planned.
    """
    train_count, _ = split_row_counts(row_count, validation_split, validation_rows)
    shuffled = np.random.RandomState([seed, _SPLIT_STREAM]).permutation(row_count)
    return np.sort(shuffled[:train_count]), np.sort(shuffled[train_count:])


@dataclass(frozen=True)
class Packing:
    """That examples are packed.

    Attributes:
        lengths: tokens of every row by its number, int64.
        capacity: tokens of a packed row.
    """

    lengths: np.ndarray
    capacity: int


class StepOrder:
    """The rows of every step, epoch after epoch.

    Args:
        sources: the rows that are trained on, a file each.
        rows_per_step: rows (packed ones with `packing`) of an optimizer update; the last step of an epoch may
            have fewer.
    """

    def __init__(
        self, sources: Sequence[Source], *, rows_per_step: int, seed: int, packing: Packing | None = None
    ) -> None:
        self.rows_per_step = rows_per_step
        self.packing = packing
        self._sources, self._seed = sources, seed
        self._newest: tuple[int, Sequence[np.ndarray]] | None = None
        self._row_counts: list[int] = []

    @property
    def example_count(self) -> int:
        """Examples of an epoch."""
        return sum(source.epoch_row_count for source in self._sources)

    def steps_of_epochs(self, count: float) -> int:
        """The steps of the first `count` epochs, exactly; of a part of one, its share of them, rounded up."""
        whole = int(count)
        steps = sum(self._steps_in(epoch) for epoch in range(whole))
        # Rounded first, since 2.1 - 2 is a little more than 0.1.
        part = round((count - whole) * self._steps_in(whole), 6) if count > whole else 0
        return steps + math.ceil(part)

    def epoch_at(self, step: int) -> float:
        """How many passes over the split are complete after `step` steps, with its fraction."""
        epoch, within = self._locate(step)
        return epoch + within * self.rows_per_step / self._row_count(epoch)

    def rows(self, step: int) -> Sequence[np.ndarray]:
        """The rows of a step, counted from 1: the numbers of the examples in each, int64."""
        epoch, within = self._locate(step - 1)
        return self.epoch_rows(epoch)[within * self.rows_per_step : (within + 1) * self.rows_per_step]

    def epochs_of(self, first_step: int, last_step: int) -> Iterator[tuple[int, range]]:
        """The epochs (from 0) of these steps (from 1), and which of each epoch's own (from 0) they are."""
        epoch, within = self._locate(first_step - 1)
        left = last_step - first_step + 1
        while left > 0:
            steps = range(within, min(within + left, self._steps_in(epoch)))
            yield epoch, steps
            left, epoch, within = left - len(steps), epoch + 1, 0

    def epoch_rows(self, epoch: int) -> Sequence[np.ndarray]:
        """All rows of an epoch (from 0) in their order; the newest one asked for is remembered.

        Without packing it is one array, int64 [n, 1].
        """
        if self._newest is None or self._newest[0] != epoch:
            self._newest = (epoch, self._order(epoch))
        return self._newest[1]

    def _order(self, epoch: int) -> Sequence[np.ndarray]:
        numbers = mix(self._sources, self._seed, epoch)
        numbers = numbers[_permutation(len(numbers), self._seed, _EPOCH_STREAM, epoch)]
        if self.packing is None:
            return numbers.reshape(-1, 1)
        packed = pack(self.packing.lengths[numbers], self.packing.capacity)
        order = _permutation(len(packed), self._seed, _PACKED_STREAM, epoch)
        return [numbers[packed[index]] for index in order]

    def _locate(self, step: int) -> tuple[int, int]:
        """The epoch that `step` complete steps lead into, and the steps of it that are done."""
        if not self._epochs_differ:
            return divmod(step, self._steps_in(0))
        epoch = 0
        while step >= (steps := self._steps_in(epoch)):
            step, epoch = step - steps, epoch + 1
        return epoch, step

    def _steps_in(self, epoch: int) -> int:
        return math.ceil(self._row_count(epoch) / self.rows_per_step)

    @property
    def _epochs_differ(self) -> bool:
        """Only packed rows of examples that are drawn differ in number from epoch to epoch.

        Best-fit counts depend on the lengths alone, not on the order of the examples.
        """
        return self.packing is not None and any(source.is_drawn for source in self._sources)

    def _row_count(self, epoch: int) -> int:
        if self.packing is None:
            return self.example_count
        epoch = epoch if self._epochs_differ else 0
        while len(self._row_counts) <= epoch:
            self._row_counts.append(len(self.epoch_rows(len(self._row_counts))))
        return self._row_counts[epoch]


def _permutation(count: int, seed: int, stream: int, epoch: int) -> np.ndarray:
    return np.random.RandomState([seed, stream, epoch]).permutation(count)
