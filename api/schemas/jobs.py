"""Fine-tuning jobs: OpenAI's object, field for field, with Luthier's own fields beside it.

What the user left to "auto" shows as asked until the rows are counted, and resolved from then on. Fields
that OpenAI's clients take for granted (`seed`, `organization_id`, `hyperparameters`, `result_files`) are
never null.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel

from api.schemas.pages import Named, optional_seconds, unix_seconds
from luthier.repository import JobRow
from luthier.service.feed import Head
from luthier.service.jobs import Caller
from luthier.service.queue import Place
from luthier.spec import JobRequest
from luthier.status import FINAL, BlockedOn, State, public_status
from luthier.tables import Job

Auto = Literal["auto"]


class HyperparametersObject(BaseModel):
    """OpenAI's three."""

    n_epochs: int | Auto
    batch_size: int | Auto
    learning_rate_multiplier: float | Auto


class SupervisedObject(BaseModel):
    """How a supervised job is done."""

    hyperparameters: HyperparametersObject


class MethodObject(BaseModel):
    """OpenAI's `method`."""

    type: Literal["supervised"] = "supervised"
    supervised: SupervisedObject


class JobErrorObject(BaseModel):
    """Why a job failed; `message` names what to change.

    `details` tell the same to programs, each with `loc` and `message`: lines of a file, or where memory ran
    out (`step`, `peak_memory_bytes`, `longest_row_tokens`, `micro_batch_rows`) and the settings to change.
    """

    code: str
    message: str
    param: str | None
    details: list[dict[str, Any]] = []


class ProgressObject(BaseModel):
    """How far training has come; null is what is not known yet. `epoch` counts passes, with a fraction."""

    step: int
    total_steps: int | None
    epoch: float | None
    percent: float | None
    train_loss: float | None
    tokens_per_second: float | None
    seconds_remaining: float | None


class QueueObject(BaseModel):
    """Where a queued job stands; position 1 is the next one. The wait is null where nobody can tell."""

    position: int
    wait_seconds: float | None


class JobObject(Named):
    """A fine-tuning job. `phase` is the finer truth behind `status`; `attempts` counts its runs.

    `blocked_on` is what it waits for beside a worker; `retry_at` when it is tried again after a failure, or
    asks for its model again.
    """

    object: Literal["fine_tuning.job"] = "fine_tuning.job"
    created_at: int
    error: JobErrorObject | None
    estimated_finish: int | None
    fine_tuned_model: str | None
    finished_at: int | None
    hyperparameters: HyperparametersObject
    integrations: None = None
    metadata: dict[str, str] | None
    method: MethodObject
    model: str
    organization_id: str
    result_files: Sequence[str]
    seed: int
    status: str
    trained_tokens: int | None
    training_file: str
    user_provided_suffix: str | None
    validation_file: str | None

    name: str | None
    priority: int
    parent_job_id: str | None
    phase: str | None
    blocked_on: str | None
    retry_at: int | None
    progress: ProgressObject
    queue: QueueObject | None
    qlora: dict[str, Any]
    dataset: dict[str, Any]
    attempts: int


class JobDeleted(BaseModel):
    """The answer to DELETE."""

    id: str
    object: Literal["fine_tuning.job"] = "fine_tuning.job"
    deleted: Literal[True] = True


def job_object(job: Job | JobRow, caller: Caller, *, place: Place | None, now: datetime | None) -> JobObject:
    """What a row shows.

    Args:
        place: in the queue; None for a job that is not queued.
        now: None for a job that does not run.
    """
    request = JobRequest.model_validate(job.request, strict=False)
    hyperparameters = _hyperparameters(job, request)
    progress = progress_object(job)
    return JobObject(
        id=job.id,
        created_at=unix_seconds(job.created_at),
        error=error_object(job),
        estimated_finish=_estimated_finish(job, progress, now),
        fine_tuned_model=job.fine_tuned_model,
        finished_at=optional_seconds(job.finished_at),
        hyperparameters=hyperparameters,
        metadata=job.user_metadata,
        method=MethodObject(supervised=SupervisedObject(hyperparameters=hyperparameters)),
        model=request.model,
        organization_id=caller.organization_id,
        result_files=[job.result_file] if job.result_file else [],
        seed=job.seed,
        status=public_status(State(job.state)),
        trained_tokens=_trained_tokens(job),
        training_file=request.training_file,
        user_provided_suffix=job.suffix,
        validation_file=request.validation_file,
        name=job.name,
        priority=job.priority,
        parent_job_id=job.parent_job_id,
        phase=job.phase,
        blocked_on=job.blocked_on,
        retry_at=optional_seconds(job.not_before) if _is_timed(job) else None,
        progress=progress,
        queue=QueueObject(**vars(place)) if place else None,
        qlora=_qlora(job, request),
        dataset=request.dataset.model_dump(mode="json"),
        attempts=job.run_count,
    )


def _is_timed(job: Job | JobRow) -> bool:
    """Whether a job that waits is tried again when its time has come, and not when something is there."""
    return job.state == State.RETRY_WAIT or job.blocked_on == BlockedOn.MODEL


def _hyperparameters(job: Job | JobRow, request: JobRequest) -> HyperparametersObject:
    known: Mapping[str, Any] = job.hyperparameters or request.asked.model_dump(mode="json")
    return HyperparametersObject.model_validate(
        {key: known[key] for key in HyperparametersObject.model_fields}
    )


def _qlora(job: Job | JobRow, request: JobRequest) -> dict[str, Any]:
    """The settings as asked, over them the resolved ones, over them what the run chose for its device."""
    asked = request.qlora.model_dump(mode="json")
    chosen = {**(job.hyperparameters or {}), **(job.plan or {})}
    if job.hyperparameters is not None:
        # Resolved to a number of steps.
        chosen["warmup_ratio"] = None
    return {key: chosen.get(key, value) for key, value in asked.items()} | {"seed": job.seed}


def progress_object(job: Job | Head) -> ProgressObject:
    """How far a job has come."""
    reported = job.progress or {}
    return ProgressObject(
        step=job.step,
        total_steps=job.total_steps,
        epoch=reported.get("epoch"),
        percent=round(100 * job.step / job.total_steps, 2) if job.total_steps else None,
        train_loss=reported.get("train_loss"),
        tokens_per_second=reported.get("tokens_per_second"),
        seconds_remaining=reported.get("seconds_remaining"),
    )


def _estimated_finish(job: Job | JobRow, progress: ProgressObject, now: datetime | None) -> int | None:
    if job.state != State.RUNNING or progress.seconds_remaining is None or now is None:
        return None
    return int(now.timestamp() + progress.seconds_remaining)


def _trained_tokens(job: Job | JobRow) -> int | None:
    """Null until the job has ended; a cancelled one has trained on some, too."""
    if State(job.state) not in FINAL:
        return None
    return (
        job.trained_tokens if job.trained_tokens is not None else (job.progress or {}).get("trained_tokens")
    )


def error_object(job: Job | Head) -> JobErrorObject | None:
    """Why a job failed."""
    if job.error_code is None:
        return None
    return JobErrorObject(
        code=job.error_code,
        message=job.error_message or job.error_code,
        param=job.error_param,
        details=job.error_details or [],
    )
