"""What owners wish of their jobs: cancel, pause, resume, another place in the queue, another try.

A wish about a job that nobody works on is carried out at once. About one that is being worked on it is
written into `desired_state`, which the supervisor reads every second, and carried out as the run ends
(`endings`), by the sweep where the worker is gone.
"""

from datetime import datetime
from typing import Literal

from sqlalchemy import ColumnElement, func, select, update
from sqlalchemy.orm import Session

from luthier import repository
from luthier.errors import LuthierError, invalid
from luthier.service import jobs, lineage
from luthier.service.jobs import Caller
from luthier.service.queue_order import MAX_PRIORITY, MIN_PRIORITY, priority_band, queue_key, with_priority
from luthier.service.transitions import move, note, ring
from luthier.spec import JobRequest
from luthier.status import FINAL, LEASED, LIVE, QUEUE_OF_KIND, DesiredState, Kind, Phase, State, public_status
from luthier.tables import Checkpoint, Job, JobFile, is_queued

_UNCLAIMED = LIVE - LEASED
_PAUSED_AT_ONCE = (State.QUEUED, State.RETRY_WAIT, State.BLOCKED)
_PHASE_WITHOUT_WISH = {
    State.STARTING: Phase.WAITING,
    State.RUNNING: Phase.TRAINING,
    State.FINALIZING: Phase.SAVING,
}
# What a retry takes over from the job as it is now, beside the frozen request.
_KEPT = (
    "request",
    "model",
    "training_file",
    "validation_file",
    "suffix",
    "name",
    "labels",
    "gpu_count",
    "user_metadata",
)
# Made between two jobs that stand side by side, in microseconds.
_ROOM = 1 << 20


def request_cancel(session: Session, job: Job, *, now: datetime) -> Job:
    """Cancel: at once where nobody works on the job, else at the end of its current step.

    Asking twice is no error, so that who has not heard the answer may ask again.

    Raises:
        LuthierError: `job_already_terminal`, where the job has ended otherwise.
    """
    if _is_cancelled(job):
        return job
    # In the order in which the end of a preparation locks them, so that neither waits for the other.
    for work in repository.find_open_work(session, job_id=job.id):
        _lock(session, work)
        if State(work.state) not in FINAL:
            _cancel(session, work, now=now)
    _lock(session, job)
    if not _is_cancelled(job):
        _cancel(session, job, now=now)
    return job


def request_pause(session: Session, job: Job, *, now: datetime) -> Job:
    """Pause: at once where the job waits, at the end of its step where it runs, and where its files are
    being checked as soon as they are. Asking twice is no error.

    Raises:
        LuthierError: `job_already_terminal`, also where the job is being cancelled.
    """
    _lock_live(session, job)
    if job.desired_state == DesiredState.PAUSE:
        return job
    job.desired_state = DesiredState.PAUSE
    session.flush()
    note(session, job, "pause_requested", "Pause requested", now=now)
    if move(session, job, _PAUSED_AT_ONCE, State.PAUSED, now=now):
        note(session, job, "job_paused", "The job is paused", now=now)
    elif State(job.state) in LEASED:
        job.phase = Phase.PAUSING
        session.flush()
    return job


def resume(session: Session, job: Job, *, now: datetime) -> Job:
    """Let a paused job go on, in front of the queue; a wish to pause that was not carried out is taken back.

    Nothing happens to a job that is not to pause.

    Raises:
        LuthierError: `job_already_terminal`, also where the job is being cancelled.
    """
    _lock_live(session, job)
    if job.desired_state != DesiredState.PAUSE:
        return job
    job.desired_state = DesiredState.RUN
    if job.phase == Phase.PAUSING:
        job.phase = _PHASE_WITHOUT_WISH[State(job.state)]
    session.flush()
    note(session, job, "job_resumed", "The job goes on", now=now)
    in_front = queue_key(job.priority, job.created_at, is_in_front=True)
    phase = Phase.TOKENIZING if job.prepared_at is None else Phase.WAITING
    if move(session, job, [State.PAUSED], State.QUEUED, now=now, queue_key=in_front, phase=phase):
        ring(session, job, now=now)
    return job


def retry(
    session: Session,
    caller: Caller,
    job: Job,
    *,
    from_: Literal["checkpoint", "start"],
    job_id: str,
    work_id: str,
    seed: int,
    now: datetime,
) -> Job:
    """Make a new job of one that ended without success: the same request over the same files.

    Args:
        from_: `checkpoint` goes on with the newest one that there is, in the same order of data; `start`
            trains all over.
        job_id: id of the new job.
        work_id: id of its preparation.
        seed: drawn by the caller; used from the start on, where the request names none.
    Raises:
        LuthierError: `job_not_retryable`, while the job has not ended, or where it succeeded; and where a
            file or the model that it starts from is gone.
    """
    _refuse_not_retryable(job)
    request = JobRequest.model_validate(job.request, strict=False)
    lineage.find_parent(session, caller.project_id, request.model)
    files = jobs.files_of(session, caller, request, are_held=True)
    checkpoint = _newest_checkpoint(session, job) if from_ == "checkpoint" else None
    again = Job(
        id=job_id,
        project_id=caller.project_id,
        api_key_id=caller.api_key_id,
        kind=Kind.TRAIN,
        queue=QUEUE_OF_KIND[Kind.TRAIN],
        parent_job_id=job.id,
        resume_from=checkpoint.id if checkpoint else None,
        checkpoint_step=checkpoint.step if checkpoint else 0,
        priority=job.priority,
        queue_key=queue_key(job.priority, now),
        seed=job.seed if from_ == "checkpoint" else jobs.seed_of(request, seed),
        created_at=now,
        **{name: getattr(job, name) for name in _KEPT},
    )
    uses = [_copied(use, again) for use in repository.files_of_job(session, job.id)]
    origin = f"from step {checkpoint.step}" if checkpoint else "from the start"
    entry = jobs.Entry(
        again,
        uses,
        is_checked=all(used.file.status != "uploaded" for used in files),
        notes=[f"Tries {job.id} again, {origin}"],
        work_id=work_id,
    )
    jobs.enter(session, [entry], now=now)
    return again


def reprioritise(
    session: Session, job: Job, *, priority: int | None, place: str | None, now: datetime
) -> Job:
    """Give a job that waits another priority, another place within its priority, or both.

    Args:
        priority: None leaves it; the place within the priority stays.
        place: `front`, `back`, or the id of a waiting job of the same priority to stand before.
    Raises:
        LuthierError: `job_already_terminal`; `job_not_waiting`, for a job that is being worked on;
            `invalid_value`, for a place that there is not.
    """
    _lock_live(session, job)
    if State(job.state) in LEASED:
        text = f"Job {job.id} is being worked on: only a job that waits has a place. Pause it first"
        raise LuthierError(text, "job_not_waiting")
    if priority is not None:
        _check_priority(priority)
        job.queue_key = with_priority(job.queue_key, job.priority, priority)
        job.priority = priority
    if place is not None:
        job.queue_key = _key_at(session, job, place, now=now)
    session.flush()
    data = {"priority": job.priority, "place": place}
    note(
        session, job, "job_moved", f"The job has priority {job.priority} and a new place", now=now, data=data
    )
    return job


def _cancel(session: Session, job: Job, *, now: datetime) -> None:
    if job.desired_state != DesiredState.CANCEL:
        job.desired_state, job.cancel_requested_at = DesiredState.CANCEL, now
        session.flush()
        note(session, job, "cancel_requested", "Cancellation requested", now=now)
    if move(session, job, _UNCLAIMED, State.CANCELLED, now=now):
        note(session, job, "job_cancelled", "The job was cancelled", now=now)
    else:
        job.phase = Phase.CANCELLING
        session.flush()


def _lock(session: Session, job: Job) -> None:
    """Read the row anew and hold it, so that what is decided on stays true until the commit."""
    session.refresh(job, with_for_update=True)


def _lock_live(session: Session, job: Job) -> None:
    _lock(session, job)
    _refuse_ended(job)
    if job.desired_state == DesiredState.CANCEL:
        raise LuthierError(f"Job {job.id} is being cancelled", "job_already_terminal")


def _is_cancelled(job: Job) -> bool:
    """Whether it is by now; raises LuthierError where it has ended otherwise."""
    if job.state == State.CANCELLED:
        return True
    _refuse_ended(job)
    return False


def _refuse_ended(job: Job) -> None:
    if State(job.state) in FINAL:
        status = public_status(State(job.state))
        raise LuthierError(f"Job {job.id} has already ended: it is {status}", "job_already_terminal")


def _refuse_not_retryable(job: Job) -> None:
    if job.state == State.SUCCEEDED:
        text = (
            f"Job {job.id} has succeeded: make a new job, or one on {job.fine_tuned_model} to go on from it"
        )
        raise LuthierError(text, "job_not_retryable")
    if State(job.state) not in FINAL:
        text = f"Job {job.id} has not ended: it is tried again by itself. Cancel it first, or resume it"
        raise LuthierError(text, "job_not_retryable")


def _newest_checkpoint(session: Session, job: Job) -> Checkpoint | None:
    """Of the job itself or, where it made none, the one that it started from.

    Its row is held, so that the retention, which drops old ones, waits until the new job names it.
    """
    own = next(iter(repository.all_checkpoints(session, job.id)), None)
    newest_id = own.id if own else job.resume_from
    return session.get(Checkpoint, newest_id, with_for_update={"read": True}) if newest_id else None


def _copied(use: JobFile, job: Job) -> JobFile:
    names = ("role", "position", "project_id", "file_id", "weight", "entry")
    return JobFile(job_id=job.id, **{name: getattr(use, name) for name in names})


def _check_priority(priority: int) -> None:
    if not MIN_PRIORITY <= priority <= MAX_PRIORITY:
        text = f"Invalid value for 'priority': {priority}. Use {MIN_PRIORITY} to {MAX_PRIORITY}"
        raise invalid(text, "priority")


def _key_at(session: Session, job: Job, place: str, *, now: datetime) -> int:
    if place == "back":
        return queue_key(job.priority, now)
    if place == "front":
        least = session.scalar(select(func.min(Job.queue_key)).where(*_beside(job)))
        in_front = queue_key(job.priority, job.created_at, is_in_front=True)
        return in_front if least is None else min(in_front, least - 1)
    return _key_before(session, job, _neighbour(session, job, place))


def _neighbour(session: Session, job: Job, job_id: str) -> Job:
    """The job to stand before."""
    other = repository.get_job(session, job.project_id, job_id)
    if other.id == job.id or State(other.state) not in _UNCLAIMED:
        raise invalid(f"Job {other.id} does not wait beside {job.id}: name one that does", "place")
    if other.priority != job.priority:
        text = f"Job {other.id} has priority {other.priority}, not {job.priority}: give that priority, too"
        raise invalid(text, "place")
    return other


def _key_before(session: Session, job: Job, other: Job) -> int:
    """A key between another job and the one before it; where there is none, room is made."""
    before = (*_beside(job), Job.queue_key < other.queue_key)
    previous = session.scalar(select(func.max(Job.queue_key)).where(*before))
    if previous is None:
        return other.queue_key - 1
    if other.queue_key - previous < 2:
        query = update(Job).where(*before).values(queue_key=Job.queue_key - _ROOM)
        session.execute(query.execution_options(synchronize_session=False))
        previous -= _ROOM
    return (previous + other.queue_key) // 2


def _beside(job: Job) -> tuple[ColumnElement[bool], ...]:
    """The jobs that a job waits among: of the same project, queue and priority."""
    low, high = priority_band(job.priority)
    return (
        is_queued(job.kind),
        Job.project_id == job.project_id,
        Job.queue_key >= low,
        Job.queue_key < high,
        Job.id != job.id,
    )
