"""Which rows go into which step: a pure function of the seed, so that any step can be taken up again.

A permutation for each epoch comes from `numpy.random.RandomState`, whose stream is frozen by NEP 19, unlike
that of `Generator`: a checkpoint stays good across numpy versions and machines.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from luthier.planning import split_row_counts

# Streams of the same seed that must not repeat each other.
_SPLIT_STREAM, _EPOCH_STREAM = 1, 2


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
class StepOrder:
    """The micro-batches of every step.

    Attributes:
        row_numbers: the rows of the train split, int64 [n].
        batch_size: rows in a micro-batch.
        accumulation: micro-batches in a step; the last step of an epoch may have fewer, and fewer rows.
    """

    row_numbers: np.ndarray
    batch_size: int
    accumulation: int
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(len(self.row_numbers) / (self.batch_size * self.accumulation))

    def epoch_at(self, step: int) -> float:
        """How many passes over the split are complete after `step` steps, with its fraction."""
        epoch, within = divmod(step, self.steps_per_epoch)
        rows = within * self.batch_size * self.accumulation
        return epoch + rows / len(self.row_numbers)

    def micro_batches(self, step: int) -> list[np.ndarray]:
        """Row numbers of each micro-batch of a step, counted from 1."""
        epoch, within = divmod(step - 1, self.steps_per_epoch)
        per_step = self.batch_size * self.accumulation
        order = _permutation(len(self.row_numbers), self.seed, epoch)
        rows = self.row_numbers[order[within * per_step : (within + 1) * per_step]]
        return [rows[start : start + self.batch_size] for start in range(0, len(rows), self.batch_size)]


@lru_cache(maxsize=1)
def _permutation(row_count: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.RandomState([seed, _EPOCH_STREAM, epoch]).permutation(row_count)
