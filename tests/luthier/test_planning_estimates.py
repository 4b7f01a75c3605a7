"""The estimate of a job: does it fit, how long does it take, what is wrong with it."""

import json
from typing import Any

import pytest

from luthier import planning
from luthier.cli.job_file import apply_settings
from luthier.planning import DeviceFacts, Estimate, ModelShape, RateFacts, TokenFacts
from tests.factories import make_request
from tests.luthier.test_planning_memory import GIB, GPU, LARGE, SMALL

H100 = DeviceFacts(kind="cuda", name="NVIDIA H100 80GB HBM3", total_bytes=80 * GIB)
TOKENS = TokenFacts(row_count=1000, token_count=400_000, trained_token_count=200_000, longest=2000)

FEW = TOKENS.model_copy(update={"row_count": 3})
OLD_CPU = DeviceFacts(kind="cpu", has_bf16=False)


def estimate(
    shape: ModelShape | None = LARGE,
    tokens: TokenFacts = TOKENS,
    device: DeviceFacts | None = H100,
    rates: RateFacts | None = None,
    **fields: Any,
) -> Estimate:
    return planning.estimate(make_request(**fields), shape, tokens, device, rates=rates)


def codes(told: Estimate) -> list[str]:
    return [remark.code for remark in (*told.problems, *told.warnings)]


def test_a_job_that_fits_is_valid_and_says_what_it_takes() -> None:
    told = estimate(hyperparameters={"n_epochs": 2, "batch_size": 4}, qlora={"gradient_accumulation": 1})
    assert (told.valid, told.problems, told.advice) == (True, (), ())
    assert (told.steps, told.examples, told.train_tokens) == (500, 1000, 800_000)
    assert told.memory is not None
    assert told.memory.fits
    assert abs(sum(told.memory.breakdown.values()) - told.memory.needed_mb) < 9
    assert told.seconds is not None
    assert 0 < told.seconds.p50 < told.seconds.p90


def test_what_does_not_fit_is_a_problem_with_three_ways_out() -> None:
    small = DeviceFacts(kind="cuda", total_bytes=8 * GIB)
    told = estimate(device=small, hyperparameters={"batch_size": 16}, qlora={"gradient_checkpointing": False})
    assert codes(told) == ["capacity.vram"]
    assert told.problems[0].message.count("set ") == 3
    assert [list(fix.changes) for fix in told.advice[:3]] == [
        ["method.supervised.hyperparameters.batch_size", "qlora.gradient_accumulation"],
        ["qlora.gradient_checkpointing"],
        ["qlora.max_seq_length"],
    ]


def test_advice_that_is_taken_makes_it_fit() -> None:
    small = DeviceFacts(kind="cuda", total_bytes=8 * GIB)
    fields: dict[str, Any] = {
        "hyperparameters": {"batch_size": 16},
        "qlora": {"gradient_checkpointing": False},
    }
    fix = next(fix for fix in estimate(device=small, **fields).advice if fix.fits)
    apply_settings(fields, [f"{field}={json.dumps(value)}" for field, value in fix.changes.items()])
    after = estimate(device=small, **fields)
    assert after.valid
    assert after.memory is not None
    assert after.memory.needed_mb == fix.needed_mb


def test_full_is_told_to_use_four_bits_first() -> None:
    told = estimate(device=DeviceFacts(kind="cuda", total_bytes=8 * GIB), qlora={"method": "full"})
    assert told.advice[0].changes == {"qlora.method": "qlora", "qlora.quantization": "nf4"}


def test_several_changes_are_named_together_where_one_is_not_enough() -> None:
    told = estimate(
        device=DeviceFacts(kind="cuda", total_bytes=int(3.2 * GIB)),
        hyperparameters={"batch_size": 16},
        qlora={"gradient_checkpointing": False, "r": 64},
    )
    assert [fix.fits for fix in told.advice[-2:]] == [False, True]
    assert len(told.advice[-1].changes) > 3


@pytest.mark.parametrize(
    ("code", "fields"),
    [
        ("nothing_to_train", {"tokens": TOKENS.model_copy(update={"trained_token_count": 0})}),
        ("invalid_value", {"qlora": {"r": 1024}}),
        ("invalid_value", {"qlora": {"target_modules": ["query"]}}),
    ],
)
def test_what_would_fail_is_a_problem(code: str, fields: dict[str, Any]) -> None:
    told = estimate(**fields)
    assert [problem.code for problem in told.problems] == [code]
    assert not told.valid


@pytest.mark.parametrize(
    ("code", "fields"),
    [
        ("context_exceeded", {"shape": SMALL, "qlora": {"max_seq_length": 4096}}),
        ("many_truncated", {"tokens": TOKENS.model_copy(update={"truncated_row_count": 200})}),
        ("sampled", {"tokens": TOKENS.model_copy(update={"is_exact": False, "relative_error": 0.04})}),
        ("few_rows", {"tokens": FEW, "hyperparameters": {"batch_size": 8}}),
        ("unknown_shape", {"shape": None}),
        ("slow_precision", {"device": OLD_CPU, "qlora": {"precision": "bf16"}}),
    ],
)  # fmt: skip
def test_what_may_not_be_meant_is_a_warning(code: str, fields: dict[str, Any]) -> None:
    told = estimate(**fields)
    assert code in [warning.code for warning in told.warnings]
    assert told.valid


def test_rows_that_were_measured_longer_than_the_context_are_a_problem() -> None:
    request = make_request()
    told = planning.estimate(request, SMALL, TOKENS, GPU, max_seq_length=1024)
    assert codes(told) == ["context_exceeded"]


def test_without_a_device_memory_is_told_and_not_judged() -> None:
    told = estimate(device=None)
    assert told.memory is not None
    assert (told.memory.available_mb, told.memory.fits, told.valid) == (None, None, True)


def test_past_runs_win_over_the_formula() -> None:
    # 3 epochs of 400,000 tokens at 1,000 a second, from the tenth second on.
    rates = RateFacts(tokens_per_second=1000, start_seconds=10, run_count=3)
    told = estimate(rates=rates, qlora={"save_steps": 10_000})
    assert told.seconds is not None
    assert (told.seconds.basis, round(told.seconds.p50, -2)) == ("past runs", 1200)
    assert told.seconds.p90 < 1.2 * told.seconds.p50


@pytest.mark.parametrize(
    "slower",
    [
        {"hyperparameters": {"n_epochs": 6}},
        {"qlora": {"gradient_checkpointing": True}},
        {"dataset": {"validation_split": 0.2}, "qlora": {"max_steps": 189}},
        {"device": DeviceFacts(kind="cpu", total_bytes=80 * GIB)},
    ],
    ids=str,
)
def test_more_work_takes_longer(slower: dict[str, Any]) -> None:
    quick, slow = estimate().seconds, estimate(**slower).seconds
    assert quick is not None
    assert slow is not None
    assert quick.p50 < slow.p50


def test_the_resolved_settings_say_what_auto_became() -> None:
    told = estimate()
    assert told.resolved_hyperparameters == {
        "n_epochs": 3, "batch_size": 8, "learning_rate_multiplier": 1.0
    }  # fmt: skip
    assert told.resolved_qlora["gradient_checkpointing"] is False
    assert told.resolved_qlora["quantization"] == "nf4"


def test_disk_holds_the_checkpoints_that_are_kept() -> None:
    few, many = estimate(qlora={"save_total_limit": 1}), estimate(qlora={"save_total_limit": 9})
    assert few.disk_mb is not None
    assert many.disk_mb is not None
    # Eight more, each of 12 bytes a trained parameter: 18.5 million with r 16.
    assert many.disk_mb - few.disk_mb == pytest.approx(8 * 12 * 18.46e6 / 2**20, rel=0.01)


def test_a_rank_above_the_smallest_side_is_a_problem_and_one_that_equals_it_is_none() -> None:
    side = min(min(linear.in_features, linear.out_features) for linear in SMALL.linears)
    fitting, too_large = (estimate(SMALL, qlora={"r": rank}) for rank in (side, side + 1))
    assert [remark.param for remark in fitting.problems] == []
    assert [remark.param for remark in too_large.problems] == ["qlora.r"]


def test_max_samples_above_the_rows_of_a_file_changes_nothing() -> None:
    file = planning.Counted(100.0, 1000.0, 500.0, longest=20, is_exact=False)
    facts = [planning.token_facts([(file, 1.0)], None, max_rows) for max_rows in (None, 10_000)]
    assert facts[0] == facts[1]
