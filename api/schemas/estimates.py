"""What a job would be and cost, told before it is submitted.

`estimate_object` shows what `luthier.planning` has reckoned; `unavailable` is the answer where there is
nothing to reckon with. Sizes are in MiB, times in seconds.
"""

from typing import Any, Literal

from pydantic import BaseModel, Field

from luthier.planning import Estimate, TokenFacts


class EstimatedQueue(BaseModel):
    """Where the job would stand; `wait_seconds` is null: how long the jobs before it take is not known."""

    position: int
    wait_seconds: float | None = None


class CountedTokens(BaseModel):
    """Where the numbers of rows and tokens come from; `relative_error` is that of a sample, at 95 %."""

    is_exact: bool
    relative_error: float
    longest: int
    trained_token_count: int


class EstimateObject(BaseModel):
    """The answer of an estimate and of `dry_run`; nothing was queued.

    `valid` is false where the job would fail, and `problems` tell why; `memory`, `seconds` and `disk_mb` are
    null where they cannot be told, and `unavailable_reason` says why.
    """

    object: Literal["fine_tuning.job.estimate"] = "fine_tuning.job.estimate"
    valid: bool
    problems: list[dict[str, Any]]
    warnings: list[dict[str, Any]]
    advice: list[dict[str, Any]]
    train_tokens: int | None
    examples: int | None
    truncated_examples: int | None
    steps: int | None
    tokens: CountedTokens | None
    resolved_hyperparameters: dict[str, Any]
    resolved_qlora: dict[str, Any]
    memory: dict[str, Any] | None
    seconds: dict[str, Any] | None
    disk_mb: int | None
    queue: EstimatedQueue
    cost: None = None
    unavailable_reason: str | None = Field(default=None, examples=["the model is not on this machine yet"])


def estimate_object(estimate: Estimate, tokens: TokenFacts, position: int) -> EstimateObject:
    """What planning has found."""
    counted = CountedTokens(
        is_exact=tokens.is_exact,
        relative_error=round(tokens.relative_error, 4),
        longest=tokens.longest,
        trained_token_count=tokens.trained_token_count,
    )
    reason = None if estimate.memory else "the model's config.json does not tell its sizes"
    told = estimate.model_dump(mode="json")
    return EstimateObject.model_validate(
        told | {"tokens": counted, "queue": EstimatedQueue(position=position), "unavailable_reason": reason}
    )


def unavailable(reason: str, problems: list[dict[str, Any]], position: int) -> EstimateObject:
    """The answer where there is nothing to plan with."""
    return EstimateObject(
        valid=not problems,
        problems=problems,
        warnings=[],
        advice=[],
        train_tokens=None,
        examples=None,
        truncated_examples=None,
        steps=None,
        tokens=None,
        resolved_hyperparameters={},
        resolved_qlora={},
        memory=None,
        seconds=None,
        disk_mb=None,
        queue=EstimatedQueue(position=position),
        unavailable_reason=reason,
    )
