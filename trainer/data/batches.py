"""Rows padded into tensors, and the two splits of a run behind one door.

A batch is padded to its longest row. Labels repeat the ids where the mask is 1 and are -100 elsewhere; the
model predicts the next token, so the first token of a row is never a target.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from luthier.spec import TrainSpec
from trainer.data.order import StepOrder, split_rows
from trainer.data.rows import Rows, joined, open_rows

IGNORED_LABEL = -100
_PADDING_ID = 0


@dataclass(frozen=True)
class Batch:
    """Some rows, ready for the model.

    Attributes:
        inputs: `input_ids`, `attention_mask` and `labels`, each int64 [rows, longest].
        token_count: tokens without padding.
        target_count: tokens that the loss is taken over.
    """

    inputs: dict[str, torch.Tensor]
    token_count: int
    target_count: int


@dataclass(frozen=True)
class TrainingData:
    """Both splits of a run.

    Attributes:
        order: which rows of `train` go into which step.
        validation_numbers: the rows of `validation` to evaluate on; empty where there is no such split.
    """

    train: Rows
    order: StepOrder
    validation: Rows
    validation_numbers: np.ndarray

    def micro_batches(self, step: int) -> list[Batch]:
        """The micro-batches of a step, counted from 1."""
        return [collate(self.train, numbers) for numbers in self.order.micro_batches(step)]

    def validation_batches(self) -> Iterator[Batch]:
        """The validation split in file order, in batches of the size that training uses."""
        size = self.order.batch_size
        for start in range(0, len(self.validation_numbers), size):
            yield collate(self.validation, self.validation_numbers[start : start + size])

    @property
    def max_token_id(self) -> int:
        return max(self.train.max_token_id, self.validation.max_token_id)


def open_data(spec: TrainSpec, scratch: Path) -> TrainingData:
    """Open the prepared files of a run and split them.

    Without a validation file, `validation_split` of the training file is held out.

    Raises:
        JobFailure: see `open_rows`.
    """
    settings = spec.hyperparameters
    train = joined([open_rows(split, scratch, "training_file") for split in spec.data.train])
    if spec.data.validation is None:
        numbers, held_out = split_rows(
            len(train), settings.validation_split, settings.validation_rows, settings.seed
        )
        validation = train
    else:
        numbers = np.arange(len(train))
        validation = open_rows(spec.data.validation, scratch, "validation_file")
        held_out = np.arange(len(validation))
    order = StepOrder(numbers, settings.batch_size, settings.gradient_accumulation, settings.seed)
    return TrainingData(train, order, validation, held_out)


def collate(rows: Rows, numbers: Sequence[int] | np.ndarray) -> Batch:
    """Rows padded on the right to the longest of them."""
    examples = [rows[int(number)] for number in numbers]
    shape = (len(examples), max(len(ids) for ids, _ in examples))
    input_ids = np.full(shape, _PADDING_ID, dtype=np.int64)
    attention = np.zeros(shape, dtype=np.int64)
    labels = np.full(shape, IGNORED_LABEL, dtype=np.int64)
    for index, (ids, mask) in enumerate(examples):
        input_ids[index, : len(ids)] = ids
        attention[index, : len(ids)] = 1
        labels[index, : len(ids)] = np.where(mask == 1, ids, IGNORED_LABEL)
    inputs = {"input_ids": input_ids, "attention_mask": attention, "labels": labels}
    return Batch(
        inputs={name: torch.from_numpy(array) for name, array in inputs.items()},
        token_count=int(attention.sum()),
        target_count=int((labels[:, 1:] != IGNORED_LABEL).sum()),
    )
