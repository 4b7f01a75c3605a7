"""Prepared rows: read whole, split and ordered by the seed alone, padded on the right."""

from pathlib import Path

import numpy as np
import pytest

from luthier.errors import ExitCode, JobFailure
from trainer.data.batches import collate
from trainer.data.order import StepOrder, split_rows
from trainer.data.rows import open_rows


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


def test_an_epoch_takes_every_row_once_in_another_order():
    order = StepOrder(np.arange(100, 111), batch_size=2, accumulation=2, seed=3)

    epochs = [
        np.concatenate([rows for step in steps for rows in order.micro_batches(step)])
        for steps in (range(1, 4), range(4, 7))
    ]

    assert order.steps_per_epoch == 3
    assert [sorted(epoch) for epoch in epochs] == [list(range(100, 111))] * 2
    assert epochs[0].tolist() != epochs[1].tolist()
    assert order.epoch_at(3) == 1.0


def test_how_a_step_is_cut_into_micro_batches_does_not_change_its_rows():
    shapes = [(4, 1), (2, 2), (1, 4)]
    orders = [StepOrder(np.arange(10), size, count, seed=3) for size, count in shapes]

    steps = [[np.concatenate(order.micro_batches(step)).tolist() for step in range(1, 7)] for order in orders]

    assert steps[0] == steps[1] == steps[2]


def test_a_split_holds_out_the_planned_rows_by_seed():
    train, held_out = split_rows(20, 0.25, None, seed=5)

    assert (len(train), len(held_out)) == (15, 5)
    assert sorted([*train, *held_out]) == list(range(20))
    assert held_out.tolist() == split_rows(20, 0.25, None, seed=5)[1].tolist()
    assert held_out.tolist() != split_rows(20, 0.25, None, seed=6)[1].tolist()


def test_order_is_the_same_on_every_machine():
    """numpy 2.4.6 gave these; another order would break the resuming of old checkpoints."""
    order = StepOrder(np.arange(6), batch_size=3, accumulation=1, seed=0)

    assert [rows.tolist() for rows in order.micro_batches(1)] == [[5, 2, 0]]


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


def test_data_prepared_for_another_model_is_refused(make_run):
    run = make_run(rows=[([1, 999_999], [0, 1])] * 4)

    with pytest.raises(JobFailure, match="prepared for another model") as failure:
        run.train()

    assert failure.value.exit_code == ExitCode.BAD_DATA
