"""Which rows an epoch sees when several files are mixed by weight, as a pure function of the seed.

Weight 0.5 gives half of a file's rows, drawn anew each epoch, 2 each row twice, 1.5 each once and half of
them twice. Rows that are held out for validation are taken away before, so none is ever drawn.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from luthier.spec import weighted_row_count

# A stream of the seed that no other part of the order draws from.
_MIXING_STREAM = 3


@dataclass(frozen=True)
class Source:
    """The rows of one file that are trained on.

    Attributes:
        numbers: row numbers, int64 [n].
        weight: times that an epoch sees a row, on average; > 0.
    """

    numbers: np.ndarray
    weight: float = 1.0

    @property
    def epoch_row_count(self) -> int:
        return weighted_row_count(len(self.numbers), self.weight) if len(self.numbers) else 0

    @property
    def is_drawn(self) -> bool:
        """Whether epochs differ in the rows that they see."""
        return self.epoch_row_count % max(1, len(self.numbers)) != 0


def mix(sources: Sequence[Source], seed: int, epoch: int) -> np.ndarray:
    """The rows of an epoch (from 0), file after file, each as often as its weight says; int64 [n]."""
    return np.concatenate([_of_one(source, (seed, epoch, index)) for index, source in enumerate(sources)])


def _of_one(source: Source, stream: tuple[int, int, int]) -> np.ndarray:
    count, there = source.epoch_row_count, len(source.numbers)
    if not source.is_drawn:
        return np.tile(source.numbers, count // max(1, there))
    whole = math.floor(count / there)
    seed, epoch, index = stream
    shuffled = np.random.RandomState([seed, _MIXING_STREAM, epoch, index]).permutation(there)
    drawn = source.numbers[np.sort(shuffled[: count - whole * there])]
    return np.concatenate([np.tile(source.numbers, whole), drawn])
