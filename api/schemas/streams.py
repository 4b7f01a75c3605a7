"""What a stream tells of a job between its events."""

from typing import Literal

from api.schemas.jobs import JobErrorObject, ProgressObject, error_object, progress_object
from api.schemas.pages import Named, optional_seconds
from luthier.service.feed import Head
from luthier.status import State, public_status


class JobStatusObject(Named):
    """How a job stands; the fields are those of the job."""

    object: Literal["fine_tuning.job.status"] = "fine_tuning.job.status"
    name: str | None
    status: str
    phase: str | None
    progress: ProgressObject
    attempts: int
    blocked_on: str | None
    retry_at: int | None
    fine_tuned_model: str | None
    error: JobErrorObject | None
    finished_at: int | None


def status_object(head: Head) -> JobStatusObject:
    """What a row shows."""
    return JobStatusObject(
        id=head.id,
        name=head.name,
        status=public_status(State(head.state)),
        phase=head.phase,
        progress=progress_object(head),
        attempts=head.run_count,
        blocked_on=head.blocked_on,
        retry_at=optional_seconds(head.not_before) if head.state == State.RETRY_WAIT else None,
        fine_tuned_model=head.fine_tuned_model,
        error=error_object(head),
        finished_at=optional_seconds(head.finished_at),
    )
