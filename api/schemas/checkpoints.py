"""Checkpoints of a job, as OpenAI's API shows them."""

from typing import Literal

from api.schemas.pages import Named, unix_seconds
from luthier.service.endings import tuned_model_name
from luthier.tables import Checkpoint, Job

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


def checkpoint_object(checkpoint: Checkpoint, job: Job, organization_id: str) -> CheckpointObject:
    """What a row shows."""
    model = tuned_model_name(job, organization_id)
    return CheckpointObject(
        id=checkpoint.id,
        created_at=unix_seconds(checkpoint.created_at),
        fine_tuned_model_checkpoint=f"{model}:ckpt-step-{checkpoint.step}",
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
