"""How a request becomes numbers, and steps with packing."""

from typing import Any

import pytest
from pydantic import ValidationError

from luthier import planning
from luthier.spec import EarlyStopping, Hyperparameters, QloraRequest, Samples, field_path
from tests.factories import make_request

# A value other than the default for each setting; those that exclude each other stand in different requests.
SETTINGS: list[dict[str, Any]] = [
    {"r": 8}, {"alpha": 24.0}, {"dropout": 0.1}, {"target_modules": ["q_proj"]}, {"bias": "all"},
    {"use_rslora": True}, {"use_dora": True}, {"quantization": "fp4"}, {"double_quant": False},
    {"precision": "fp16"}, {"packing": True}, {"optimizer": "adafactor"}, {"learning_rate": 1e-3},
    {"loraplus_lr_ratio": 16.0}, {"lr_scheduler": "cosine"}, {"lr_scheduler": "cosine", "lr_restarts": 2},
    {"min_lr_ratio": 0.1}, {"warmup_steps": 3}, {"weight_decay": 0.01}, {"gradient_accumulation": 4},
    {"gradient_checkpointing": True}, {"max_grad_norm": 0.3}, {"max_steps": 9}, {"eval_steps": 5},
    {"save_steps": 6}, {"save_total_limit": 2}, {"logging_steps": 7}, {"neftune_alpha": 5.0},
    {"epochs": 1.5}, {"auto_fit": True}, {"engine": "trl"}, {"method": "lora", "init_lora_weights": "pissa"},
    {"method": "full", "trainable_layers": 1},
]  # fmt: skip
# `resolve` is given the outcome of these, or turns them into another field.
ELSEWHERE = {"max_seq_length", "seed", "warmup_ratio"}


def resolve(rows: int = 1000, **fields: Any) -> Hyperparameters:
    keys = ("token_count", "longest")
    counts = {key: fields.pop(key) for key in keys if key in fields}
    return planning.resolve(make_request(**fields), rows, max_seq_length=512, seed=3, **counts)


@pytest.mark.parametrize("asked", SETTINGS, ids=" ".join)
def test_a_setting_arrives_as_it_was_asked(asked: dict[str, Any]) -> None:
    numbers = resolve(qlora=asked).model_dump()
    assert {name: numbers[name] for name in asked} == asked


def test_settings_that_are_objects_arrive_too() -> None:
    numbers = resolve(qlora={"early_stopping": {"patience": 2}, "samples": {"count": 4}, "warmup_ratio": 0.5})
    assert (numbers.early_stopping, numbers.samples) == (EarlyStopping(patience=2), Samples(count=4))
    assert numbers.warmup_steps == -(-numbers.max_steps // 2)


def test_no_setting_is_forgotten_here() -> None:
    tried = {name for asked in SETTINGS for name in asked} | {"early_stopping", "samples"} | ELSEWHERE
    assert tried == set(QloraRequest.model_fields)


@pytest.mark.parametrize(
    ("epochs", "steps", "n_epochs"), [(0.5, 13, 1), (1.0, 25, 1), (1.5, 38, 2), (2.04, 51, 3)]
)
def test_a_part_of_an_epoch_is_its_share_of_the_steps_rounded_up(
    epochs: float, steps: int, n_epochs: int
) -> None:
    asked = {"epochs": epochs, "gradient_accumulation": 1}
    numbers = resolve(rows=100, hyperparameters={"batch_size": 4}, qlora=asked)
    assert (numbers.max_steps, numbers.n_epochs, numbers.epochs) == (steps, n_epochs, epochs)


def test_epochs_and_n_epochs_exclude_each_other_and_max_steps_goes_before_both() -> None:
    with pytest.raises(ValidationError, match=r"qlora\.epochs and n_epochs exclude each other"):
        resolve(hyperparameters={"n_epochs": 2}, qlora={"epochs": 1.5})
    assert resolve(qlora={"epochs": 1.5, "max_steps": 7}).max_steps == 7


def test_a_share_of_the_run_is_rounded_up_and_follows_the_steps() -> None:
    shares = {"eval_steps": 0.25, "save_steps": 0.5, "logging_steps": 0.01, "warmup_ratio": 0.1}
    numbers = resolve(qlora=shares | {"max_steps": 30})
    assert (numbers.eval_steps, numbers.save_steps, numbers.logging_steps) == (8, 15, 1)

    longer = planning.with_max_steps(numbers, 101, 63)

    assert (longer.max_steps, longer.eval_steps, longer.save_steps, longer.logging_steps) == (101, 26, 51, 2)
    assert (numbers.warmup_steps, longer.warmup_steps) == (3, 11)


def test_numbers_of_steps_stay_when_the_steps_of_a_run_change() -> None:
    asked = {"eval_steps": 5, "save_steps": 7, "logging_steps": 2, "warmup_steps": 4, "max_steps": 30}
    numbers = resolve(qlora=asked)
    assert planning.with_max_steps(numbers, 90, 63) == numbers.model_copy(update={"max_steps": 90})


def test_what_is_left_open_or_due_once_an_epoch_is_counted_again_with_the_steps() -> None:
    numbers = resolve(qlora={"logging_steps": "epoch", "max_steps": 30})
    assert (numbers.eval_steps, numbers.save_steps, numbers.logging_steps) == (10, 8, 63)
    exact = planning.with_max_steps(numbers, 160, 40)
    assert (exact.eval_steps, exact.save_steps, exact.logging_steps) == (20, 40, 40)


@pytest.mark.parametrize(("steps", "every"), [(1, 1), (4, 4), (36, 10), (80, 10), (81, 11), (800, 100)])
def test_evaluations_are_at_most_eight_and_ten_steps_apart(steps: int, every: int) -> None:
    assert resolve(qlora={"max_steps": steps}).eval_steps == every


@pytest.mark.parametrize("share", [0.0, 1.0, 2.5, -0.1])
def test_what_is_no_share_is_refused_by_the_name_of_its_field(share: float) -> None:
    with pytest.raises(ValidationError) as caught:
        resolve(qlora={"eval_steps": share})
    [error] = caught.value.errors()
    assert field_path(error["loc"]) == "qlora.eval_steps"


def test_packing_estimates_the_steps_from_the_tokens() -> None:
    # 100,000 tokens in rows of 512 that are filled to 97 % are 202 rows; 4 a step are 51 steps.
    numbers = resolve(
        hyperparameters={"batch_size": 4, "n_epochs": 1},
        qlora={"packing": True, "gradient_accumulation": 1},
        token_count=100_000,
        longest=256,
    )
    assert (numbers.max_steps, numbers.are_steps_estimated) == (51, True)


def test_max_steps_is_exact_with_packing_too() -> None:
    numbers = resolve(qlora={"packing": True, "max_steps": 7}, token_count=100_000, longest=256)
    assert (numbers.max_steps, numbers.are_steps_estimated) == (7, False)


@pytest.mark.parametrize(
    ("rows", "tokens", "longest", "packed"),
    [
        (10, 2000, 200, 5),  # alike: two of 200 fit into 512 and three do not
        (10, 4000, 400, 10),  # none can share
        (10, 400, 300, 1),
        (10, 400, None, 1),
    ],
)
def test_packed_rows_hold_whole_rows(rows: int, tokens: int, longest: int | None, packed: int) -> None:
    assert planning.packed_row_count(rows, tokens, longest, 512) == packed


def test_a_validation_split_takes_its_share_of_the_tokens() -> None:
    fields: dict[str, Any] = {
        "hyperparameters": {"batch_size": 1},
        "qlora": {"packing": True, "gradient_accumulation": 1},
    }
    whole = resolve(**fields, token_count=100_000, longest=64)
    half = resolve(**fields, dataset={"validation_split": 0.5}, token_count=100_000, longest=64)
    assert half.max_steps == pytest.approx(whole.max_steps / 2, abs=3)


@pytest.mark.parametrize(
    ("weight", "held_out", "max_steps", "is_estimated"),
    [(2.0, 10, None, True), (1.0, 10, None, False), (2.0, None, None, False), (2.0, 10, 50, False)],
)
def test_steps_are_estimated_where_rows_are_held_out_from_files_of_different_weight(
    weight: float, held_out: int | None, max_steps: int | None, is_estimated: bool
) -> None:
    files = [{"id": "file-other", "weight": weight}]
    dataset = {"files": files} | ({"validation_rows": held_out} if held_out else {})

    settings = resolve(dataset=dataset, qlora={"max_steps": max_steps} if max_steps else {})

    assert settings.are_steps_estimated is is_estimated
