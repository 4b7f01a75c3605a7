"""What agents and supervisors do: claim a job, keep the lease, and end the run one way or the other.

Every function but `claim` takes the lease and raises `LeaseLostError` when it no longer stands: the epoch of
the row has moved on, and nothing of this run may be published any more.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Select, and_, case, or_, select, true, update
from sqlalchemy.orm import Session

from luthier import repository
from luthier.errors import Failure, LuthierError
from luthier.planning import resolve
from luthier.service import errands, files, jobs
from luthier.service.transitions import Lease, LeaseLostError, held, move, note, note_failure, ring
from luthier.spec import JobRequest, PreparedData
from luthier.status import LEASED, DesiredState, Kind, Phase, Queue, State
from luthier.tables import Artifact, Checkpoint, File, Job, Project, Run

_FIRST_PAUSE_SECONDS = 15
_LONGEST_PAUSE_SECONDS = 900
_PATIENCE_SECONDS = 30


@dataclass(frozen=True)
class Claim:
    """A job that is now ours: its row as it was claimed, the lease, and the number of the attempt."""

    job: Job
    lease: Lease
    number: int


@dataclass(frozen=True)
class NewArtifact:
    """A file that lies in storage and is about to become visible."""

    name: str
    kind: str
    size_bytes: int
    sha256: str
    storage_key: str


def claim(
    session: Session,
    queue: Queue,
    *,
    owner: str,
    host: str,
    device: str,
    lease_seconds: float,
    now: datetime,
    errands_only: bool = False,
) -> Claim | None:
    """Take the next job of a queue, or None where there is nothing to do.

    A training job can be taken once its data is prepared. Whoever comes second on Postgres skips locked rows;
    SQLite has one writer at a time.
    """
    query = _claimable(queue, now, errands_only=errands_only).with_for_update(skip_locked=True)
    job = session.scalars(query).one_or_none()
    if job is None:
        return None
    taken = move(
        session,
        job,
        [State.QUEUED],
        State.STARTING,
        now=now,
        phase=Phase.WAITING,
        lease_owner=owner,
        lease_epoch=job.lease_epoch + 1,
        lease_expires_at=now + timedelta(seconds=lease_seconds),
        run_count=job.run_count + 1,
        started_at=job.started_at or now,
    )
    if not taken:
        return None
    session.add(
        Run(
            job_id=job.id,
            epoch=job.lease_epoch,
            project_id=job.project_id,
            number=job.run_count,
            worker_id=owner,
            host=host,
            device=device,
            started_at=now,
        )
    )
    return Claim(job, Lease(job.id, job.lease_epoch, owner), job.run_count)


def heartbeat(session: Session, lease: Lease, *, lease_seconds: float, now: datetime) -> DesiredState:
    """Renew a lease and learn what the owner wants."""
    query = (
        update(Job)
        .where(*held(lease))
        .values(lease_expires_at=now + timedelta(seconds=lease_seconds))
        .returning(Job.desired_state)
        .execution_options(synchronize_session=False)
    )
    wish = session.execute(query).scalar_one_or_none()
    if wish is None:
        raise LeaseLostError(lease.job_id)
    return DesiredState(wish)


def desired_state(session: Session, lease: Lease) -> DesiredState:
    """What the owner wants, without a write."""
    wish = session.execute(select(Job.desired_state).where(*held(lease))).scalar_one_or_none()
    if wish is None:
        raise LeaseLostError(lease.job_id)
    return DesiredState(wish)


def record_child(session: Session, lease: Lease, *, pid: int) -> None:
    """Note the process that does the work."""
    _held_job(session, lease)
    _run(session, lease).pid = pid


def record_checkpoint(
    session: Session,
    lease: Lease,
    *,
    step: int,
    storage_key: str,
    manifest_sha256: str,
    size_bytes: int,
    metrics: dict[str, Any],
    now: datetime,
) -> Checkpoint:
    """Make a checkpoint visible whose files lie whole in storage."""
    job = _held_job(session, lease)
    event = note(
        session, job, "checkpoint_created", f"Checkpoint created at step {step}", now=now, data={"step": step}
    )
    checkpoint = Checkpoint(
        id=f"ftckpt_{job.id.removeprefix('ftjob-')}-{lease.epoch}-{step}",
        project_id=job.project_id,
        job_id=job.id,
        epoch=lease.epoch,
        number=event.number,
        step=step,
        storage_key=storage_key,
        manifest_sha256=manifest_sha256,
        size_bytes=size_bytes,
        metrics=metrics,
        created_at=now,
    )
    return session.merge(checkpoint)


def drop_checkpoints(session: Session, lease: Lease, *, keep: int) -> list[str]:
    """Forget all checkpoints but the newest `keep` and the best, as the trainer does in its own folder.

    The best is the one with the lowest `eval_loss`, of equals the one with the fewest steps; where none was
    evaluated there is none.

    Returns:
        The storage keys to delete after the commit.
    """
    _held_job(session, lease)
    newest_first = repository.all_checkpoints(session, lease.job_id)
    best = min(newest_first, key=_by_eval_loss, default=None)
    has_best = best is not None and best.metrics.get("eval_loss") is not None
    old = [one for one in newest_first[keep:] if not (has_best and one is best)]
    for checkpoint in old:
        session.delete(checkpoint)
    return [checkpoint.storage_key for checkpoint in old]


def _by_eval_loss(checkpoint: Checkpoint) -> tuple[float, int]:
    loss = checkpoint.metrics.get("eval_loss")
    return (math.inf if loss is None else loss, checkpoint.step)


def start_finalizing(session: Session, lease: Lease, *, now: datetime) -> None:
    """The child is done; what it left is being published."""
    job = _held_job(session, lease)
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
    job = _held_job(session, lease)
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
    _end_run(session, lease, "succeeded", 0, now)
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
    work = _held_job(session, lease)
    move(session, work, [State.FINALIZING], State.SUCCEEDED, now=now, lease=lease, result=result)
    _end_run(session, lease, "succeeded", 0, now)
    note(session, work, "job_succeeded", message, now=now)
    return work


def fail_run(
    session: Session, lease: Lease, failure: Failure, *, exit_code: int | None, now: datetime
) -> None:
    """End a job as failed, and with it what waited for it."""
    job = _held_job(session, lease)
    move(session, job, LEASED, State.FAILED, now=now, lease=lease, failure=failure)
    _end_run(session, lease, "failed", exit_code, now)
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
    job = _held_job(session, lease)
    move(session, job, LEASED, State.CANCELLED, now=now, lease=lease)
    _end_run(session, lease, "cancelled", exit_code, now)
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
    job = _held_job(session, lease)
    _end_run(session, lease, outcome, exit_code, now)
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


def has_work(
    session: Session, queue: Queue, worker_id: str, *, now: datetime, errands_only: bool = False
) -> bool:
    """Whether a claim may find something, or a previous instance of this agent left something. No write."""
    left = select(Job.id).where(
        Job.state.in_(LEASED), Job.lease_owner.startswith(f"{worker_id}#", autoescape=True)
    )
    return (
        session.scalars(_claimable(queue, now, errands_only=errands_only)).one_or_none() is not None
        or session.scalars(left.limit(1)).one_or_none() is not None
    )


def _claimable(queue: Queue, now: datetime, *, errands_only: bool) -> Select[Job]:
    # Errands go first, but not for ever: what has waited long enough is as urgent as they are, and older.
    waited = and_(Job.queue == Queue.CPU, Job.queued_at < now - timedelta(seconds=_PATIENCE_SECONDS))
    urgency = case((and_(waited, Job.priority < errands.PRIORITY), errands.PRIORITY), else_=Job.priority)
    kinds = Job.work_key.is_not(None) if errands_only else true()
    return (
        select(Job)
        .where(kinds)
        .where(Job.queue == queue, Job.state == State.QUEUED, Job.desired_state == DesiredState.RUN)
        .where(or_(Job.not_before.is_(None), Job.not_before <= now))
        .where(or_(Job.kind != Kind.TRAIN, Job.prepared_at.is_not(None)))
        .order_by(urgency.desc(), Job.created_at, Job.id)
        .limit(1)
    )


def tuned_model_name(job: Job, organization_id: str) -> str:
    """`ft:BASE:ORG:SUFFIX:ID`, as OpenAI names tuned models."""
    return f"ft:{job.model}:{organization_id}:{job.suffix or ''}:{job.id.removeprefix('ftjob-')[:12]}"


def get_leased(session: Session, lease: Lease) -> Job:
    """The job under a lease that still stands.

    Raises:
        LeaseLostError: it does not.
    """
    return _held_job(session, lease)


def _held_job(session: Session, lease: Lease) -> Job:
    query = select(Job).where(*held(lease)).with_for_update()
    job = session.scalars(query).one_or_none()
    if job is None:
        raise LeaseLostError(lease.job_id)
    return job


def _run(session: Session, lease: Lease) -> Run:
    run = session.get(Run, (lease.job_id, lease.epoch))
    if run is None:
        raise LuthierError(f"run {lease.epoch} of {lease.job_id} has no row", "server_error")
    return run


def _end_run(session: Session, lease: Lease, outcome: str, exit_code: int | None, now: datetime) -> None:
    run = _run(session, lease)
    run.outcome, run.exit_code, run.ended_at = outcome, exit_code, now
