"""Files mixed by weight: every row as often as asked, none that is held out, the same for the same seed."""

from collections import Counter

import numpy as np
import pytest

from trainer.data.batches import open_data
from trainer.data.mixing import Source, mix


@pytest.mark.parametrize(("weight", "twice"), [(1.5, 5), (2.0, 10), (1.0, 0)])
def test_a_weight_of_one_and_more_gives_every_row_and_some_again(weight, twice):
    seen = Counter(mix([Source(np.arange(10), weight)], seed=1, epoch=0).tolist())

    assert sorted(seen) == list(range(10))
    assert sum(count == 2 for count in seen.values()) == twice
    assert max(seen.values()) <= 2


def test_half_a_weight_gives_other_rows_in_another_epoch():
    epochs = [mix([Source(np.arange(100), 0.5)], seed=1, epoch=epoch).tolist() for epoch in (0, 1, 0)]

    assert [len(set(epoch)) for epoch in epochs] == [50, 50, 50]
    assert epochs[0] == epochs[2]
    assert epochs[0] != epochs[1]


def test_files_of_the_same_size_are_drawn_from_independently():
    rows = mix([Source(np.arange(50), 0.5), Source(np.arange(50, 100), 0.5)], seed=1, epoch=0)

    assert rows[:25].tolist() != (rows[25:] - 50).tolist()


def test_no_row_that_is_held_out_is_ever_trained_on(make_run, make_rows, tmp_path):
    files = [(make_rows(12), 0.5), (make_rows(20, first=50), 2.0)]
    data = open_data(make_run(files=files, validation_split=0.25).spec, tmp_path)

    steps = range(1, data.order.steps_of_epochs(4) + 1)
    trained = {int(number) for step in steps for row in data.order.rows(step) for number in row}

    assert len(data.validation_numbers) == 8
    assert trained.isdisjoint(data.validation_numbers.tolist())
    assert len(trained) > 20


def test_an_epoch_has_the_rows_that_were_planned(make_run, make_rows, tmp_path):
    run = make_run(files=[(make_rows(7), 0.5), (make_rows(5), 1.5), (make_rows(1), 0.1)])

    data = open_data(run.spec, tmp_path)

    assert data.order.example_count == run.spec.data.train_row_count


def test_the_steps_of_mixed_files_with_rows_held_out_are_made_exact(make_run, make_rows):
    """4 of 24 rows are held out before mixing, so that no plan from the weights alone can be exact."""
    files = [(make_rows(8), 2.0), (make_rows(16, first=50), 0.5)]
    settings = {"validation_rows": 4, "are_steps_estimated": True, "n_epochs": 2, "max_steps": 99}
    run = make_run(files=files, **settings)

    ended = run.train()

    assert run.events("step_logged")[-1].epoch == 2.0
    assert ended.step == run.events("plan_chosen")[0].total_steps < 20
