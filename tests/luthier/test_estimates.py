"""Rows and tokens of a job from what was counted or sampled of its files."""

import pytest

from luthier.planning import Counted, counted_by_sample, token_facts

_REPORT = {
    "measured_row_count": 1000,
    "is_exact": False,
    "token_count": 90_000,
    "trained_token_count": 40_000,
    "longest": 500,
    "truncated_row_count": 10,
    "histogram": {"edges": [0, 64, 128], "counts": [500, 500, 0]},
}


def test_a_sample_is_scaled_to_the_whole_file() -> None:
    counted = counted_by_sample(_REPORT, 50_000, 256)
    assert (counted.row_count, counted.token_count, counted.truncated_row_count) == (50_000, 4_500_000, 500)
    assert (counted.longest, counted.is_exact) == (256, False)


def test_the_error_of_a_sample_is_that_of_its_mean() -> None:
    # Bins of 64 tokens around 32 and 96, half and half: the mean is 64 and the variance 32^2 + 64^2 / 12, so
    # 1.96 x sqrt(1365.3 / 999) / 64.
    assert counted_by_sample(_REPORT, 50_000, 256).relative_error == pytest.approx(0.0358, abs=1e-4)


def test_rows_that_would_be_dropped_do_not_count() -> None:
    report = _REPORT | {"overlength_row_count": 200, "untrained_row_count": 50, "bad_row_count": 250}
    assert counted_by_sample(report, 12_500, 256).row_count == 7_500


def test_weights_are_taken_into_account() -> None:
    file = Counted(row_count=100, token_count=1000, trained_token_count=500, longest=20)
    facts = token_facts([(file, 2.0), (file, 0.5)], None, None)
    assert facts is not None
    assert (facts.row_count, facts.token_count, facts.trained_token_count, facts.longest) == (
        250,
        2500,
        1250,
        20,
    )


def test_no_row_to_train_on_is_no_fact() -> None:
    assert token_facts([(Counted(0, 0, 0, 0), 1.0)], None, None) is None
