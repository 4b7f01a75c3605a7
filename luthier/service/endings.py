"""How runs end: well, badly, as their owner wished, or early, to be tried again.

Every function takes the lease and raises `LeaseLostError` when it no longer stands: nothing of such a run may
be published any more. What becomes of a job after a run that ended early is decided in `retries`.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy.orm import Session

from luthier import repository
from luthier.errors import Failure
from luthier.planning import ModelShape, resolve
from luthier.service import blocking, capacity, files, jobs, retries
from luthier.service.queue_order import queue_key
from luthier.service.retries import Decision, Ending, Limits
from luthier.service.runs import count_alike, end_run, get_leased, previous_outcome
from luthier.service.transitions import Lease, move, note, note_failure, ring
from luthier.spec import JobRequest, PreparedData
from luthier.status import LEASED, LIVE, BlockedOn, DesiredState, Phase, State
from luthier.tables import Artifact, Checkpoint, File, Job, Project

_UNCLAIMED = LIVE - LEASED


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
    shape: ModelShape | None = None,
    threads: int = 1,
) -> None:
    """End preparation well: the training job gets its data and its numbers, and may be claimed.

    Where no known device has the memory for it, it fails at once.

    Args:
        shape, threads: as in `capacity.plan`.
        warnings: about the data, each a `message` and `data`; the training job tells them, too.
    """
    work = succeed_work(session, lease, result=stats, message="The data is prepared", now=now)
    job = repository.find_job(session, work.subject_job_id or "")
    if job is None or State(job.state) not in _UNCLAIMED:
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
    if failure := capacity.plan(session, job, prepared, shape=shape, threads=threads, now=now):
        jobs.fail(session, job, failure, now=now)
    elif job.state == State.QUEUED:
        ring(session, job, now=now)


def succeed_validation(
    session: Session,
    lease: Lease,
    *,
    report: dict[str, Any],
    message: str | None,
    new_work_id: Callable[[], str],
    now: datetime,
) -> None:
    """End validation: the file gets its report, and the jobs that waited for it move on."""
    work = succeed_work(session, lease, result=report, message="The file is validated", now=now)
    file = session.get(File, work.subject_file_id)
    # One that was called off has read the file as it is no longer to be read.
    if file is not None and work.desired_state != DesiredState.CANCEL:
        files.record_validation(
            session, file, report=report, message=message, new_work_id=new_work_id, now=now
        )


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
    end_run(session, lease, "failed", exit_code, now, reason=failure.message)
    note_failure(session, job, failure, now=now)
    _fail_dependents(session, job, failure, now=now)


def _fail_dependents(session: Session, work: Job, failure: Failure, *, now: datetime) -> None:
    """Fail the training job that a preparation, or the file that a validation or conversion, was for.

    A look at a file that fails says nothing about the file, nor does work that was called off: the file is
    read in another way by now.
    """
    if work.task not in (None, "convert") or work.desired_state == DesiredState.CANCEL:
        return
    if work.subject_job_id is not None and (job := repository.find_job(session, work.subject_job_id)):
        jobs.fail(session, job, failure, now=now)
    if work.subject_file_id is not None and (file := session.get(File, work.subject_file_id)):
        files.record_unreadable(session, file, message=failure.message, now=now)


def stop_run(session: Session, lease: Lease, *, exit_code: int | None, now: datetime) -> None:
    """The child is gone, as its owner wished: the job is paused or cancelled; its checkpoints stay.

    The wish is read again: where it was taken back meanwhile, the job goes on.
    """
    job = get_leased(session, lease)
    decision = retries.after_stop(job)
    outcome = {State.PAUSED: "paused", State.CANCELLED: "cancelled"}.get(decision.state, Ending.STOPPED)
    message = "The wish to pause was taken back; the job goes on from its checkpoint"
    _settle(session, lease, job, decision, outcome=outcome, message=message, exit_code=exit_code, now=now)


def requeue_run(
    session: Session,
    lease: Lease,
    *,
    ending: Ending,
    message: str,
    exit_code: int | None,
    limits: Limits,
    jitter: float,
    now: datetime,
) -> None:
    """A run ended early: its job is tried again at once or later, set aside, or given up (see `retries`).

    Args:
        jitter: in [0, 1); spreads what is tried again over the time that it waits.
    """
    job = get_leased(session, lease)
    is_repeated = job.infra_restarts > 0 and previous_outcome(session, lease) == ending
    decision = retries.decide(job, ending, limits, jitter, message=message, is_repeated=is_repeated)
    _settle(session, lease, job, decision, outcome=ending, message=message, exit_code=exit_code, now=now)


def leave_living(
    session: Session, lease: Lease, *, reason: str, limits: Limits, jitter: float, now: datetime
) -> bool:
    """Have a job tried again elsewhere though something of its run lives on that nothing ends.

    Args:
        reason: what lives on, and why the worker is set aside.
    Returns:
        False where the job is to be cancelled: it stays leased until nothing of it is left.
    """
    job = get_leased(session, lease)
    message = f"The worker is set aside: {reason}"
    if job.desired_state == DesiredState.CANCEL:
        text = f"{message}. The job is cancelled once nothing of it is left"
        note(session, job, "cancel_delayed", text, now=now, level="warn")
        return False
    requeue_run(
        session,
        lease,
        ending=Ending.LOST,
        message=message,
        exit_code=None,
        limits=limits,
        jitter=jitter,
        now=now,
    )
    return True


def block_run(
    session: Session,
    lease: Lease,
    *,
    blocked_on: BlockedOn,
    message: str,
    exit_code: int | None,
    now: datetime,
) -> None:
    """A run cannot go on for want of something; its job waits for that, and no budget is used."""
    job = get_leased(session, lease)
    outcome = Ending.DISK_FULL if blocked_on == BlockedOn.DISK else Ending.BLOCKED
    before = count_alike(session, lease, outcome)
    decision = retries.blocked(job, blocked_on, blocked_before=before)
    _settle(session, lease, job, decision, outcome=outcome, message=message, exit_code=exit_code, now=now)


def _settle(
    session: Session,
    lease: Lease,
    job: Job,
    decision: Decision,
    *,
    outcome: str,
    message: str,
    exit_code: int | None,
    now: datetime,
) -> None:
    """Write what was decided about a job whose run is over, and tell of it."""
    end_run(session, lease, outcome, exit_code, now, reason=message)
    values: dict[str, Any] = {"phase": Phase.WAITING, **vars(decision.counters)}
    if decision.state in (State.RETRY_WAIT, State.BLOCKED):
        values["not_before"] = now + timedelta(seconds=decision.wait_seconds)
    if decision.state == State.RETRY_WAIT:
        values["phase"] = Phase.BACKING_OFF
    if decision.blocked_on is not None:
        values["blocked_on"] = decision.blocked_on
    if decision.is_in_front:
        values["queue_key"] = queue_key(job.priority, job.created_at, is_in_front=True)
    move(session, job, LEASED, decision.state, now=now, lease=lease, failure=decision.failure, **values)
    _tell(session, job, decision, message, now=now)


def _tell(session: Session, job: Job, decision: Decision, message: str, *, now: datetime) -> None:
    match decision.state:
        case State.CANCELLED:
            note(session, job, "job_cancelled", "The job was cancelled", now=now)
        case State.PAUSED:
            note(session, job, "job_paused", "The job is paused; its checkpoints stay", now=now)
        case State.BLOCKED:
            blocking.tell(session, job, message, now=now)
            blocking.block_dependent(session, job, message, now=now)
        case State.RETRY_WAIT:
            text = f"{message}; the job is tried again in {math.ceil(decision.wait_seconds)} s"
            note(session, job, "job_requeued", text, now=now, level="warn")
        case State.QUEUED:
            note(session, job, "job_requeued", message, now=now, level="warn")
            ring(session, job, now=now)
    if decision.failure is not None:
        is_set_aside = decision.state == State.QUARANTINED
        note_failure(session, job, decision.failure, now=now, is_set_aside=is_set_aside)
        _fail_dependents(session, job, decision.failure, now=now)


def tuned_model_name(job: Job, organization_id: str) -> str:
    """`ft:BASE:ORG:SUFFIX:ID`, as OpenAI names tuned models."""
    return f"ft:{job.model}:{organization_id}:{job.suffix or ''}:{job.id.removeprefix('ftjob-')[:12]}"


def checkpoint_name(checkpoint: Checkpoint, job: Job, organization_id: str) -> str:
    """The name of the model that a checkpoint is."""
    return f"{tuned_model_name(job, organization_id)}:ckpt-step-{checkpoint.step}"
