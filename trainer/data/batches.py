"""Rows as tensors, and the two splits of a run behind one door.

A batch is padded to its longest row; a packed one is laid end to end, each example with its own positions.
Labels are those of `Rows.labels`; the model predicts the next token, so the first token of an example is
never a target.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from luthier.errors import ExitCode, JobFailure
from luthier.spec import TrainSpec
from trainer.data.mixing import Source
from trainer.data.order import Packing, StepOrder, split_rows
from trainer.data.rows import IGNORED_LABEL, Rows, joined, open_rows

_PADDING_ID = 0


@dataclass(frozen=True)
class Batch:
    """Some rows, ready for the model.

    Attributes:
        inputs: padded: `input_ids`, `attention_mask` and `labels`, each int64 [rows, longest]; packed:
            `input_ids`, `position_ids` and `labels`, each int64 [1, tokens].
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
        train: all rows of the training files, those that are held out included.
        order: which rows of `train` go into which step.
        batch_size: rows in a micro-batch.
        validation_numbers: the rows of `validation` to evaluate on; empty where there is no such split.
    """

    train: Rows
    order: StepOrder
    batch_size: int
    validation: Rows
    validation_numbers: np.ndarray

    def micro_batches(self, step: int) -> list[Batch]:
        """The micro-batches of a step, counted from 1."""
        rows = self.order.rows(step)
        return [
            self._batch(rows[start : start + self.batch_size])
            for start in range(0, len(rows), self.batch_size)
        ]

    def validation_batches(self) -> Iterator[Batch]:
        """The validation split in file order, padded, in batches of the size that training uses."""
        for start in range(0, len(self.validation_numbers), self.batch_size):
            yield collate(self.validation, self.validation_numbers[start : start + self.batch_size])

    def heaviest_batch(self, first_step: int, last_step: int) -> Batch:
        """The micro-batch of these steps (counted from 1) with most tokens, padding included."""
        rows = max(self._heaviest_of_epochs(first_step, last_step), key=self._weight)
        return self._batch(rows)

    def longest_row_tokens(self, step: int) -> int:
        """Tokens of the longest example of a step."""
        return int(self.train.lengths[np.concatenate(self.order.rows(step))].max())

    def with_batch_size(self, batch_size: int) -> "TrainingData":
        """The same steps over the same rows in the same order, cut into micro-batches of another size."""
        return replace(self, batch_size=batch_size)

    @property
    def max_token_id(self) -> int:
        return max(self.train.max_token_id, self.validation.max_token_id)

    @property
    def packing_efficiency(self) -> float | None:
        """Share of the room in the packed rows of the first epoch that holds tokens; None without packing."""
        if self.order.packing is None:
            return None
        rows = self.order.epoch_rows(0)
        tokens = self.train.lengths[np.concatenate(rows)].sum()
        return float(tokens / (len(rows) * self.order.packing.capacity))

    def _batch(self, rows: Sequence[np.ndarray]) -> Batch:
        numbers = np.concatenate(rows)
        return collate(self.train, numbers) if self.order.packing is None else flatten(self.train, numbers)

    def _heaviest_of_epochs(self, first_step: int, last_step: int) -> Iterator[Sequence[np.ndarray]]:
        for epoch, steps in self.order.epochs_of(first_step, last_step):
            rows = self.order.epoch_rows(epoch)
            starts = self._starts(len(rows))
            is_asked = np.isin(starts // self.order.rows_per_step, np.arange(steps.start, steps.stop))
            ends = np.append(starts[1:], len(rows))
            tokens = self._tokens(rows, starts)
            at = int(np.argmax(np.where(is_asked, tokens, -1)))
            yield rows[starts[at] : ends[at]]

    def _starts(self, row_count: int) -> np.ndarray:
        """Where each micro-batch of an epoch begins; the last one of a step may be short."""
        every = self.order.rows_per_step
        within = np.arange(0, every, self.batch_size)
        starts = (np.arange(0, row_count, every)[:, None] + within).ravel()
        return starts[starts < row_count]

    def _tokens(self, rows: Sequence[np.ndarray], starts: np.ndarray) -> np.ndarray:
        """Tokens of each micro-batch as the model gets it."""
        if self.order.packing is not None:
            lengths = np.array([self.train.lengths[row].sum() for row in rows])
            return np.add.reduceat(lengths, starts)
        longest = np.maximum.reduceat(self.train.lengths[np.concatenate(rows)], starts)
        return longest * np.diff(np.append(starts, len(rows)))

    def _weight(self, rows: Sequence[np.ndarray]) -> int:
        lengths = self.train.lengths[np.concatenate(rows)]
        return int(lengths.sum() if self.order.packing is not None else lengths.max() * len(lengths))


def open_data(spec: TrainSpec, scratch: Path) -> TrainingData:
    """Open the prepared files of a run and split them.

    Without a validation file, `validation_split` of the rows of all training files together is held out,
    before the files are mixed.

    Raises:
        JobFailure: see `open_rows`; or no row of a split has a token to learn.
    """
    settings = spec.hyperparameters
    files = [open_rows(split, scratch, "training_file") for split in spec.data.train]
    train = joined(files)
    if spec.data.validation is None:
        numbers, held_out = split_rows(
            len(train), settings.validation_split, settings.validation_rows, settings.seed
        )
        validation = train
    else:
        numbers = np.arange(len(train))
        validation = open_rows(spec.data.validation, scratch, "validation_file")
        held_out = np.arange(len(validation))
    if not train.target_counts[numbers].any():
        raise _nothing_to_learn("training", "training_file")
    if len(held_out) and not validation.target_counts[held_out].any():
        raise _nothing_to_learn("validation", "validation_file" if spec.data.validation else "training_file")
    order = _order(spec, numbers, [len(rows) for rows in files], train.lengths)
    return TrainingData(train, order, settings.batch_size, validation, held_out)


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
        labels[index, : len(ids)] = rows.labels(ids, mask)
    inputs = {"input_ids": input_ids, "attention_mask": attention, "labels": labels}
    return _batch(inputs, int(attention.sum()))


def flatten(rows: Rows, numbers: Sequence[int] | np.ndarray) -> Batch:
    """Examples end to end in one row; where a position is 0, another example begins."""
    examples = [rows[int(number)] for number in numbers]
    input_ids = np.concatenate([ids for ids, _ in examples]).astype(np.int64)
    positions = np.concatenate([np.arange(len(ids)) for ids, _ in examples])
    labels = rows.labels(input_ids, np.concatenate([mask for _, mask in examples]))
    labels[positions == 0] = IGNORED_LABEL
    inputs = {"input_ids": input_ids, "position_ids": positions, "labels": labels}
    return _batch({name: array[None] for name, array in inputs.items()}, len(input_ids))


def _batch(inputs: dict[str, np.ndarray], token_count: int) -> Batch:
    targets = int((inputs["labels"][:, 1:] != IGNORED_LABEL).sum())
    return Batch({name: torch.from_numpy(array) for name, array in inputs.items()}, token_count, targets)


def _nothing_to_learn(split: str, param: str) -> JobFailure:
    return JobFailure(
        f"No row of the {split} split has a token to learn: every answer is masked or cut off. Look at the "
        "file's preview, raise qlora.max_seq_length, or set dataset.train_on",
        f"invalid_{param}",
        ExitCode.BAD_DATA,
        param,
    )


def _order(spec: TrainSpec, numbers: np.ndarray, row_counts: list[int], lengths: np.ndarray) -> StepOrder:
    settings = spec.hyperparameters
    file_of = np.repeat(np.arange(len(row_counts)), row_counts)[numbers]
    return StepOrder(
        [Source(numbers[file_of == index], split.weight) for index, split in enumerate(spec.data.train)],
        rows_per_step=settings.batch_size * settings.gradient_accumulation,
        seed=settings.seed,
        packing=Packing(lengths, settings.max_seq_length) if settings.packing else None,
    )
