"""Checkpoints of a job, as OpenAI's API shows them."""

from typing import Annotated, Literal

from pydantic import BaseModel, Field, StringConstraints

from api.schemas.pages import Named, unix_seconds
from luthier.service.endings import checkpoint_name
from luthier.spec import Request
from luthier.tables import Checkpoint, CheckpointPermission, Job

# What the run reports and what OpenAI's API calls it: our evaluation takes the whole validation split.
_OPENAI_NAMES = {
    "train_loss": ("train_loss",),
    "train_mean_token_accuracy": ("train_mean_token_accuracy",),
    "eval_loss": ("valid_loss", "full_valid_loss"),
    "eval_mean_token_accuracy": ("valid_mean_token_accuracy", "full_valid_mean_token_accuracy"),
}


class CheckpointObject(Named):
    """A state that the job can go on from; `metrics` holds what was measured by then."""

    object: Literal["fine_tuning.job.checkpoint"] = "fine_tuning.job.checkpoint"
    created_at: int
    fine_tuned_model_checkpoint: str
    fine_tuning_job_id: str
    step_number: int
    metrics: dict[str, float]


class PermissionRequest(Request):
    """Which projects of the organisation are let in."""

    project_ids: Annotated[
        list[Annotated[str, StringConstraints(min_length=1, max_length=64)]],
        Field(min_length=1, max_length=100),
    ]


class PermissionObject(Named):
    """That a project may see a model or checkpoint of another one."""

    object: Literal["checkpoint.permission"] = "checkpoint.permission"
    created_at: int
    project_id: str


class PermissionDeleted(BaseModel):
    """The answer to DELETE."""

    id: str
    object: Literal["checkpoint.permission"] = "checkpoint.permission"
    deleted: Literal[True] = True


def permission_object(permission: CheckpointPermission) -> PermissionObject:
    """What a row shows."""
    return PermissionObject(
        id=permission.id,
        created_at=unix_seconds(permission.created_at),
        project_id=permission.granted_project_id,
    )


def checkpoint_object(checkpoint: Checkpoint, job: Job, organization_id: str) -> CheckpointObject:
    """What a row shows."""
    return CheckpointObject(
        id=checkpoint.id,
        created_at=unix_seconds(checkpoint.created_at),
        fine_tuned_model_checkpoint=checkpoint_name(checkpoint, job, organization_id),
        fine_tuning_job_id=job.id,
        step_number=checkpoint.step,
        metrics={"step": checkpoint.step, **openai_metrics(checkpoint.metrics)},
    )


def openai_metrics(measured: dict[str, float | None]) -> dict[str, float]:
    """Measured numbers under OpenAI's names, without those that are missing."""
    return {
        theirs: value
        for ours, names in _OPENAI_NAMES.items()
        for theirs in names
        if (value := measured.get(ours)) is not None
    }
