"""Packed rows: full, whole, in seeded order, and no example sees another."""

import numpy as np
import pytest

from trainer.data.batches import flatten, open_data
from trainer.data.packing import pack
from trainer.data.rows import open_rows
from trainer.recipe import with_exact_steps

SETTINGS = {"packing": True, "max_seq_length": 96, "batch_size": 2, "gradient_accumulation": 1}


def best_fit_decreasing(lengths, capacity):
    """The rule by its definition, in quadratic time: the room left in each row."""
    rooms = []
    for length in sorted(lengths, reverse=True):
        fitting = [index for index, room in enumerate(rooms) if room >= length]
        if fitting:
            rooms[min(fitting, key=rooms.__getitem__)] -= length
        else:
            rooms.append(capacity - length)
    return sorted(rooms)


@pytest.mark.parametrize("seed", range(5))
def test_packing_is_best_fit_decreasing(seed):
    lengths = np.random.RandomState(seed).randint(1, 65, size=200)

    rows = pack(lengths, 64)

    assert sorted(np.concatenate(rows).tolist()) == list(range(200))
    assert sorted(64 - int(lengths[row].sum()) for row in rows) == best_fit_decreasing(lengths.tolist(), 64)


def test_an_example_longer_than_a_row_has_one_to_itself():
    assert [row.tolist() for row in pack(np.array([3, 9, 2]), 5)] == [[1], [0, 2]]


def test_a_packed_batch_is_one_row_with_positions_of_its_own(make_split, tmp_path):
    rows = open_rows(make_split([([5, 6, 7], [1, 0, 1]), ([8, 9], [1, 1])]), tmp_path, "training_file")

    batch = flatten(rows, [0, 1])

    assert batch.inputs["input_ids"].tolist() == [[5, 6, 7, 8, 9]]
    assert batch.inputs["position_ids"].tolist() == [[0, 1, 2, 0, 1]]
    assert batch.inputs["labels"].tolist() == [[-100, -100, 7, -100, 9]]
    assert set(batch.inputs) == {"input_ids", "position_ids", "labels"}
    assert (batch.token_count, batch.target_count) == (5, 2)


def test_every_epoch_packs_every_row_once_in_another_way(make_run, make_rows, tmp_path):
    order = open_data(make_run(rows=make_rows(30), **SETTINGS).spec, tmp_path).order

    first, second = order.epoch_rows(0), order.epoch_rows(1)

    assert sorted(np.concatenate(first)) == sorted(np.concatenate(second)) == list(range(30))
    assert len(first) == len(second) < 20
    assert [sorted(row) for row in first] != [sorted(row) for row in second]


def test_steps_that_were_estimated_become_those_of_the_epochs_and_shares_follow(
    make_run, make_rows, tmp_path
):
    shares = {"warmup_steps": 0.1, "eval_steps": 0.5}
    spec = make_run(rows=make_rows(30), **SETTINGS).spec
    estimated = spec.hyperparameters.model_copy(
        update={"are_steps_estimated": True, "max_steps": 999, "epochs": 1.5, "step_shares": shares}
    )
    order = open_data(spec, tmp_path).order

    exact = with_exact_steps(spec.model_copy(update={"hyperparameters": estimated}), order).hyperparameters

    of_epoch = order.steps_of_epochs(1)
    assert exact.max_steps == of_epoch + -(-of_epoch // 2)
    assert (exact.warmup_steps, exact.eval_steps) == (-(-exact.max_steps // 10), -(-exact.max_steps // 2))


def test_validation_batches_stay_unpacked(make_run, make_rows, tmp_path):
    data = open_data(make_run(validation=make_rows(4), **SETTINGS).spec, tmp_path)

    assert [batch.inputs["attention_mask"].shape[0] for batch in data.validation_batches()] == [2, 2]


def test_the_heaviest_packed_batch_has_most_tokens(make_run, make_rows, tmp_path):
    data = open_data(make_run(rows=make_rows(30), **SETTINGS).spec, tmp_path)

    steps = range(1, data.order.steps_of_epochs(2) + 1)

    there = [batch.token_count for step in steps for batch in data.micro_batches(step)]
    assert data.heaviest_batch(1, len(steps)).token_count == max(there)
    assert data.packing_efficiency > 0.8
