"""Prepared rows: read whole, split and ordered by the seed alone, padded on the right."""

from pathlib import Path

import numpy as np
import pytest

from luthier.errors import ExitCode, JobFailure
from luthier.spec import END_MARK
from trainer.data.batches import collate, flatten, open_data
from trainer.data.mixing import Source
from trainer.data.order import StepOrder, split_rows
from trainer.data.rows import open_rows


def order_of(numbers, rows_per_step, seed):
    return StepOrder([Source(numbers)], rows_per_step=rows_per_step, seed=seed)


def test_rows_come_back_as_they_were_prepared(make_split, make_rows, tmp_path):
    rows = make_rows(20)

    opened = open_rows(make_split(rows), tmp_path / "scratch", "training_file")

    assert len(opened) == 20
    assert opened.max_token_id == max(max(ids) for ids, _ in rows)
    assert [(ids.tolist(), mask.tolist()) for ids, mask in map(opened.__getitem__, range(20))] == rows
    assert list((tmp_path / "scratch").iterdir()) == []


def test_a_batch_is_padded_and_masked(make_split, tmp_path):
    opened = open_rows(make_split([([5, 6, 7], [1, 0, 1]), ([8], [1])]), tmp_path, "training_file")

    batch = collate(opened, [0, 1])

    assert batch.inputs["input_ids"].tolist() == [[5, 6, 7], [8, 0, 0]]
    assert batch.inputs["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch.inputs["labels"].tolist() == [[5, -100, 7], [8, -100, -100]]
    # The first token of a row has nothing before it to be predicted from.
    assert (batch.token_count, batch.target_count) == (4, 1)


@pytest.mark.parametrize("lay", [collate, flatten])
def test_where_a_row_marks_its_end_the_label_is_the_end_token(make_split, tmp_path, lay):
    rows = open_rows(make_split([([5, 6, 7, 8], [0, 1, END_MARK, 1])]), tmp_path / "scratch", "training_file")

    batch = lay(rows, [0])

    assert batch.inputs["labels"].tolist() == [[-100, 6, 1, 8]]
    assert (batch.target_count, rows.target_counts.tolist()) == (3, [3])


def test_an_epoch_takes_every_row_once_in_another_order():
    order = order_of(np.arange(100, 111), rows_per_step=4, seed=3)

    epochs = [
        np.concatenate([row for step in steps for row in order.rows(step)])
        for steps in (range(1, 4), range(4, 7))
    ]

    assert order.steps_of_epochs(2) == 6
    assert [sorted(epoch) for epoch in epochs] == [list(range(100, 111))] * 2
    assert epochs[0].tolist() != epochs[1].tolist()
    assert order.epoch_at(3) == 1.0


@pytest.mark.parametrize(("epochs", "steps"), [(0.1, 1), (1.1, 11), (1.25, 13), (2.0, 20)])
def test_a_part_of_an_epoch_takes_its_share_of_the_steps_rounded_up(epochs, steps):
    order = order_of(np.arange(100), rows_per_step=10, seed=3)

    assert order.steps_of_epochs(epochs) == steps


def test_how_a_step_is_cut_into_micro_batches_does_not_change_its_rows(make_run, tmp_path):
    data = open_data(make_run(batch_size=3, gradient_accumulation=2).spec, tmp_path)

    def targets_of_step_3(batch_size):
        batches = data.with_batch_size(batch_size).micro_batches(3)
        return [ids for batch in batches for row in batch.inputs["labels"] for ids in row[row >= 0].tolist()]

    assert targets_of_step_3(3) == targets_of_step_3(1) == targets_of_step_3(2)


def test_the_heaviest_batch_is_the_one_with_most_padded_tokens(make_run, tmp_path):
    data = open_data(make_run(batch_size=3, gradient_accumulation=2).spec, tmp_path)

    heaviest = data.heaviest_batch(2, 5).inputs["input_ids"]

    there = [batch.inputs["input_ids"] for step in range(2, 6) for batch in data.micro_batches(step)]
    assert heaviest.numel() == max(ids.numel() for ids in there)
    assert any(heaviest.equal(ids) for ids in there)


def test_a_split_holds_out_the_planned_rows_by_seed():
    train, held_out = split_rows(20, 0.25, None, seed=5)

    assert (len(train), len(held_out)) == (15, 5)
    assert sorted([*train, *held_out]) == list(range(20))
    assert held_out.tolist() == split_rows(20, 0.25, None, seed=5)[1].tolist()
    assert held_out.tolist() != split_rows(20, 0.25, None, seed=6)[1].tolist()


def test_order_is_the_same_on_every_machine():
    """numpy 2.4.6 gave these; another order would break the resuming of old checkpoints."""
    order = order_of(np.arange(6), rows_per_step=3, seed=0)

    assert np.concatenate(order.rows(1)).tolist() == [5, 2, 0]


def test_a_changed_file_is_refused(make_split, make_rows, tmp_path):
    split = make_split(make_rows(3))
    with Path(split.path).open("ab") as file:
        file.write(b"x")

    with pytest.raises(JobFailure, match="SHA-256 differs") as failure:
        open_rows(split, tmp_path, "training_file")

    assert (failure.value.code, failure.value.exit_code) == ("invalid_training_file", ExitCode.BAD_DATA)


def test_a_missing_file_is_told_as_such(make_split, make_rows, tmp_path):
    split = make_split(make_rows(3))
    Path(split.path).unlink()

    with pytest.raises(JobFailure) as failure:
        open_rows(split, tmp_path, "validation_file")

    assert (failure.value.code, failure.value.exit_code) == ("invalid_validation_file", ExitCode.MISSING)


@pytest.mark.parametrize(
    ("rows", "says"),
    [([([1, 2], [1])], "differ in length"), ([([], [])], "without tokens")],
)
def test_rows_that_cannot_be_trained_on_are_refused(make_split, tmp_path, rows, says):
    with pytest.raises(JobFailure, match=says):
        open_rows(make_split(rows), tmp_path, "training_file")


def test_a_split_without_a_token_to_learn_is_refused(make_run):
    # The first token of a row is never learnt, whatever its mask says.
    run = make_run(rows=[([1, 2, 3], [1, 0, 0])] * 4)

    with pytest.raises(JobFailure, match="No row of the training split") as failure:
        run.train()

    assert (failure.value.code, failure.value.exit_code) == ("invalid_training_file", ExitCode.BAD_DATA)


@pytest.mark.parametrize(
    ("is_own_file", "code"), [(True, "invalid_validation_file"), (False, "invalid_training_file")]
)
def test_a_validation_split_without_a_token_to_learn_is_refused(make_run, make_rows, is_own_file, code):
    """Its loss would be zero: perfect, and the best there can be."""
    masked = [(ids, [0] * len(ids)) for ids, _ in make_rows(4)]
    held_out = int(np.setdiff1d(np.arange(4), split_rows(4, 0.25, None, seed=7)[0])[0])
    rows = [masked[number] if number == held_out else row for number, row in enumerate(make_rows(4))]
    run = make_run(validation=masked) if is_own_file else make_run(rows=rows, validation_split=0.25)

    with pytest.raises(JobFailure, match="No row of the validation split") as failure:
        run.train()

    assert (failure.value.code, failure.value.exit_code) == (code, ExitCode.BAD_DATA)


def test_data_prepared_for_another_model_is_refused(make_run):
    run = make_run(rows=[([1, 999_999], [0, 1])] * 4)

    with pytest.raises(JobFailure, match="prepared for another model") as failure:
        run.train()

    assert failure.value.exit_code == ExitCode.BAD_DATA
