"""What a request may say, and how "auto" becomes numbers."""

import math
from typing import Any

import pytest
from pydantic import ValidationError

from luthier import planning
from luthier.spec import JobRequest, field_path
from tests.factories import make_request


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"qlora": {"r": 0}}, "qlora.r"),
        ({"qlora": {"r": 100_000}}, "qlora.r"),
        ({"qlora": {"learning_rate": float("nan")}}, "qlora.learning_rate"),
        ({"qlora": {"learning_rate": -1e-4}}, "qlora.learning_rate"),
        ({"qlora": {"learning_rate": "1e-4"}}, "qlora.learning_rate"),
        ({"qlora": {"dropout": 1.0}}, "qlora.dropout"),
        ({"qlora": {"learing_rate": 1e-4}}, "qlora.learing_rate"),
        ({"qlora": {"target_modules": []}}, "qlora.target_modules"),
        ({"qlora": {"gradient_accumulation": True}}, "qlora.gradient_accumulation"),
        ({"hyperparameters": {"n_epochs": 0}}, "hyperparameters.n_epochs"),
        ({"hyperparameters": {"n_epochs": 2.5}}, "hyperparameters.n_epochs"),
        ({"hyperparameters": {"batch_size": "3"}}, "hyperparameters.batch_size"),
        ({"seed": -1}, "seed"),
        ({"metadata": {"key": 1}}, "metadata.key"),
        ({"dataset": {"validation_split": 1.0}}, "dataset.validation_split"),
        ({"output_dir": "here"}, "output_dir"),
    ],
)
def test_a_bad_value_is_refused_at_its_field(body: dict[str, Any], field: str) -> None:
    with pytest.raises(ValidationError) as caught:
        make_request(**body)
    assert [field_path(error["loc"]) for error in caught.value.errors()] == [field]


@pytest.mark.parametrize(
    "body",
    [
        {"seed": 1, "qlora": {"seed": 2}},
        {"qlora": {"warmup_ratio": 0.1, "warmup_steps": 5}},
        {"qlora": {"learning_rate": 1e-4}, "hyperparameters": {"learning_rate_multiplier": 2.0}},
        {"validation_file": "file-2", "dataset": {"validation_split": 0.1}},
        {"qlora": {"method": "lora", "quantization": "nf4"}},
        {"dataset": {"thoughts": "give"}},
    ],
)
def test_two_ways_to_say_one_thing_exclude_each_other(body: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=r"differ|exclude|leave"):
        make_request(**body)


def test_method_wins_over_the_deprecated_hyperparameters() -> None:
    request = make_request(
        method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2}}},
        hyperparameters={"n_epochs": 9},
    )
    assert request.asked.n_epochs == 2


def test_a_file_is_named_once() -> None:
    with pytest.raises(ValidationError, match="names a file twice"):
        make_request(dataset={"files": [{"id": "file-a"}, {"id": "file-a", "weight": 2.0}]})


def test_each_of_the_deprecated_hyperparameters_counts_where_method_has_none() -> None:
    request = make_request(
        method={"type": "supervised", "supervised": {"hyperparameters": {"batch_size": 1}}},
        hyperparameters={"n_epochs": 9, "batch_size": 8},
    )
    assert (request.asked.n_epochs, request.asked.batch_size) == (9, 1)


def test_auto_is_resolved_by_the_stated_rules() -> None:
    numbers = planning.resolve(make_request(), row_count=463, max_seq_length=512, seed=3)
    assert (numbers.n_epochs, numbers.batch_size, numbers.gradient_accumulation) == (3, 8, 1)
    assert (numbers.max_steps, numbers.learning_rate, numbers.alpha) == (174, 2e-4, 32.0)


def test_what_was_asked_stands() -> None:
    request = make_request(
        hyperparameters={"n_epochs": 2, "batch_size": 4, "learning_rate_multiplier": 0.5},
        qlora={"gradient_accumulation": 2, "warmup_steps": 7, "r": 8, "alpha": 8.0},
        dataset={"validation_split": 0.1},
    )
    numbers = planning.resolve(request, row_count=100, max_seq_length=512, seed=3)
    # 90 rows train, 8 a step: 12 steps an epoch.
    assert (numbers.max_steps, numbers.warmup_steps, numbers.learning_rate, numbers.alpha) == (
        24,
        7,
        1e-4,
        8.0,
    )


@pytest.mark.parametrize(
    ("rows", "split", "counts"), [(10, 0.0, (10, 0)), (10, 0.01, (9, 1)), (2, 0.9, (1, 1)), (1, 0.5, (1, 0))]
)
def test_a_split_leaves_a_row_on_both_sides(rows: int, split: float, counts: tuple[int, int]) -> None:
    assert planning.split_row_counts(rows, split) == counts


def test_a_request_reads_back_what_it_writes() -> None:
    request = make_request(metadata={"a": "b"}, qlora={"target_modules": ["q_proj"]})
    assert JobRequest.model_validate(request.model_dump(mode="json"), strict=False) == request


def test_epoch_is_a_number_of_steps_once_the_rows_are_counted() -> None:
    rhythm = dict.fromkeys(("eval_steps", "save_steps", "logging_steps"), "epoch")
    request = make_request(hyperparameters={"batch_size": 4, "n_epochs": 2}, qlora=rhythm)
    numbers = planning.resolve(request, row_count=100, max_seq_length=512, seed=3)
    per_epoch = math.ceil(100 / (4 * numbers.gradient_accumulation))
    assert (numbers.eval_steps, numbers.save_steps, numbers.logging_steps) == (per_epoch,) * 3
    assert numbers.max_steps == 2 * per_epoch
