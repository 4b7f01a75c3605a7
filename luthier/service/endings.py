"""How runs end: well, badly, as their owner wished, or early, to be tried again.

Every function but `give_back` takes the lease and raises `LeaseLostError` when it no longer stands: nothing
of such a run may be published any more.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy.orm import Session

from luthier import repository
from luthier.errors import Failure
from luthier.planning import resolve
from luthier.service import files, jobs
from luthier.service.runs import end_run, get_leased
from luthier.service.transitions import Lease, move, note, note_failure, ring
from luthier.spec import JobRequest, PreparedData
from luthier.status import LEASED, DesiredState, Phase, State
from luthier.tables import Artifact, File, Job, Project

_FIRST_PAUSE_SECONDS = 15
_LONGEST_PAUSE_SECONDS = 900


@dataclass(frozen=True)
class NewArtifact:
    """A file that lies in storage and is about to become visible."""

    name: str
    kind: str
    size_bytes: int
    sha256: str
    storage_key: str


def start_finalizing(session: Session, lease: Lease, *, now: datetime) -> None:
    """The child is done; what it left is being published."""
    job = get_leased(session, lease)
    if job.state == State.STARTING:
        move(session, job, [State.STARTING], State.RUNNING, now=now, lease=lease)
    if job.state == State.RUNNING:
        move(session, job, [State.RUNNING], State.FINALIZING, now=now, lease=lease, phase=Phase.SAVING)


def succeed_training(
    session: Session,
    lease: Lease,
    *,
    artifacts: Sequence[NewArtifact],
    result: dict[str, Any],
    result_file: File,
    now: datetime,
) -> None:
    """End a training job well: its artifacts, its result file and its model appear together."""
    job = get_leased(session, lease)
    name = tuned_model_name(job, session.get_one(Project, job.project_id).organization_id)
    session.add(result_file)
    for artifact in artifacts:
        session.add(
            Artifact(
                project_id=job.project_id,
                job_id=job.id,
                epoch=lease.epoch,
                created_at=now,
                **vars(artifact),
            )
        )
    move(
        session,
        job,
        [State.FINALIZING],
        State.SUCCEEDED,
        now=now,
        lease=lease,
        fine_tuned_model=name,
        result_file=result_file.id,
        result=result,
        trained_tokens=result.get("trained_token_count", job.trained_tokens),
    )
    end_run(session, lease, "succeeded", 0, now)
    note(session, job, "model_created", f"New fine-tuned model created: {name}", now=now)
    note(session, job, "job_succeeded", "The job has successfully completed", now=now)


def succeed_preparation(
    session: Session,
    lease: Lease,
    *,
    prepared: PreparedData,
    stats: dict[str, Any],
    max_seq_length: int,
    now: datetime,
    warnings: Sequence[dict[str, Any]] = (),
) -> None:
    """End preparation well: the training job gets its data and its numbers, and may be claimed.

    Args:
        warnings: about the data, each a `message` and `data`; the training job tells them, too.
    """
    work = succeed_work(session, lease, result=stats, message="The data is prepared", now=now)
    job = repository.find_job(session, work.subject_job_id or "")
    if job is None or job.state != State.QUEUED:
        return
    request = JobRequest.model_validate(job.request, strict=False)
    numbers = resolve(
        request,
        prepared.train_row_count,
        max_seq_length,
        job.seed,
        token_count=prepared.train_token_count,
        longest=max(split.longest_row_tokens for split in prepared.train) or None,
    )
    job.hyperparameters = numbers.model_dump(mode="json")
    job.prepared, job.prepared_at = prepared.model_dump(mode="json"), now
    job.phase, job.total_steps = Phase.WAITING, numbers.max_steps
    session.flush()
    note(
        session,
        job,
        "data_prepared",
        f"Prepared {sum(split.row_count for split in prepared.train)} examples with "
        f"{sum(split.token_count for split in prepared.train)} tokens, "
        f"{sum(split.trained_token_count for split in prepared.train)} of them trained on",
        now=now,
        data=stats,
    )
    for warning in warnings:
        note(session, job, "warning_raised", warning["message"], now=now, level="warn", data=warning["data"])
    ring(session, job, now=now)


def succeed_validation(
    session: Session,
    lease: Lease,
    *,
    report: dict[str, Any],
    message: str | None,
    work_ids: list[str],
    now: datetime,
) -> None:
    """End validation: the file gets its report, and the jobs that waited for it move on."""
    work = succeed_work(session, lease, result=report, message="The file is validated", now=now)
    file = session.get(File, work.subject_file_id)
    # One that was called off has read the file as it is no longer to be read.
    if file is not None and work.desired_state != DesiredState.CANCEL:
        files.record_validation(session, file, report=report, message=message, work_ids=work_ids, now=now)


def succeed_conversion(
    session: Session,
    lease: Lease,
    *,
    row_count: int,
    size_bytes: int,
    sha256: str,
    work_id: str,
    now: datetime,
) -> bool:
    """End a conversion: the file that it made gets its size and hash, and is validated next.

    Args:
        work_id: id of the validation.
    Returns:
        False where the file was deleted meanwhile, so that its bytes may go.
    """
    result = {"row_count": row_count}
    work = succeed_work(session, lease, result=result, message="The file is converted", now=now)
    file = session.get(File, work.subject_file_id)
    if file is None:
        return False
    files.record_conversion(session, file, size_bytes=size_bytes, sha256=sha256, work_id=work_id, now=now)
    return True


def succeed_work(
    session: Session, lease: Lease, *, result: dict[str, Any], message: str, now: datetime
) -> Job:
    """End work of the cpu queue well, and keep what it found."""
    work = get_leased(session, lease)
    move(session, work, [State.FINALIZING], State.SUCCEEDED, now=now, lease=lease, result=result)
    end_run(session, lease, "succeeded", 0, now)
    note(session, work, "job_succeeded", message, now=now)
    return work


def fail_run(
    session: Session, lease: Lease, failure: Failure, *, exit_code: int | None, now: datetime
) -> None:
    """End a job as failed, and with it what waited for it."""
    job = get_leased(session, lease)
    move(session, job, LEASED, State.FAILED, now=now, lease=lease, failure=failure)
    end_run(session, lease, "failed", exit_code, now)
    note_failure(session, job, failure, now=now)
    _fail_dependents(session, job, failure, now=now)


def _fail_dependents(session: Session, work: Job, failure: Failure, *, now: datetime) -> None:
    """Fail the training job that a preparation, or the file that a validation or conversion, was for.

    A look at a file that fails says nothing about the file.
    """
    if work.task not in (None, "convert"):
        return
    if work.subject_job_id is not None and (job := repository.find_job(session, work.subject_job_id)):
        jobs.fail(session, job, failure, now=now)
    if work.subject_file_id is not None and (file := session.get(File, work.subject_file_id)):
        files.record_validation(session, file, report={}, message=failure.message, work_ids=[], now=now)


def cancel_run(session: Session, lease: Lease, *, exit_code: int | None, now: datetime) -> None:
    """The child is gone, as its owner wished; checkpoints stay."""
    job = get_leased(session, lease)
    move(session, job, LEASED, State.CANCELLED, now=now, lease=lease)
    end_run(session, lease, "cancelled", exit_code, now)
    note(session, job, "job_cancelled", "The job was cancelled", now=now)


def requeue_run(
    session: Session,
    lease: Lease,
    *,
    outcome: str,
    message: str,
    exit_code: int | None,
    max_runs: int,
    now: datetime,
) -> None:
    """Put a job back into its queue after a run that ended early.

    Args:
        outcome: `stopped` for a run that was asked to make room; any other counts as a loss, and after
            `max_runs` of those the job fails.
    """
    job = get_leased(session, lease)
    end_run(session, lease, outcome, exit_code, now)
    give_back(session, job, message=message, max_runs=max_runs, now=now, lease=lease)


def give_back(
    session: Session, job: Job, *, message: str, max_runs: int, now: datetime, lease: Lease | None = None
) -> None:
    """Requeue, cancel or fail a job whose run is over, by what its owner wants and how often it was lost.

    A lost run lets the next one wait: 0 s after the first, then 15, 30, 60 ... 900 s, so that a job which
    brings its worker down cannot do so in a circle.
    """
    losses = repository.count_losses(session, job.id)
    if job.desired_state == DesiredState.CANCEL:
        move(session, job, LEASED, State.CANCELLED, now=now, lease=lease)
        note(session, job, "job_cancelled", "The job was cancelled", now=now)
    elif losses >= max_runs:
        text = f"The job was lost {losses} times and is not tried again. The last time: {message}"
        failure = Failure("worker_lost", text)
        move(session, job, LEASED, State.FAILED, now=now, lease=lease, failure=failure)
        note_failure(session, job, failure, now=now)
        _fail_dependents(session, job, failure, now=now)
    else:
        pause = min(_FIRST_PAUSE_SECONDS * 2 ** (losses - 2), _LONGEST_PAUSE_SECONDS) if losses > 1 else 0
        not_before = now + timedelta(seconds=pause)
        move(
            session,
            job,
            LEASED,
            State.QUEUED,
            now=now,
            lease=lease,
            phase=Phase.WAITING,
            not_before=not_before,
        )
        note(session, job, "job_requeued", message, now=now, level="warn")
        ring(session, job, now=now)


def tuned_model_name(job: Job, organization_id: str) -> str:
    """`ft:BASE:ORG:SUFFIX:ID`, as OpenAI names tuned models."""
    return f"ft:{job.model}:{organization_id}:{job.suffix or ''}:{job.id.removeprefix('ftjob-')[:12]}"
