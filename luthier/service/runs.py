"""What a supervisor does while a run lasts: keep the lease, hear the owner's wish, make checkpoints visible.

Every function takes the lease and raises `LeaseLostError` when it no longer stands: the epoch of the row has
moved on, and nothing of this run may be published any more.
"""

import itertools
import math
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from luthier import repository
from luthier.errors import LuthierError
from luthier.service.notifications import tell
from luthier.service.transitions import Lease, LeaseLostError, held, note
from luthier.status import DesiredState
from luthier.tables import Checkpoint, Job, Run
from luthier.webhooks import EventType


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


def record_child(session: Session, lease: Lease, *, pid: int, boot_id: str | None = None) -> None:
    """Note the process that does the work, and in which start of its machine."""
    get_leased(session, lease)
    run = _run(session, lease)
    run.pid, run.boot_id = pid, boot_id


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
    """Make a checkpoint visible whose files lie whole in storage; telling of it twice changes nothing.

    One that is newer than all before it sets the job's budgets back.
    """
    job = get_leased(session, lease)
    checkpoint_id = f"ftckpt_{job.id.removeprefix('ftjob-')}-{lease.epoch}-{step}"
    known = session.get(Checkpoint, checkpoint_id)
    if known is not None:
        return known
    if step > job.checkpoint_step:
        job.checkpoint_step = step
        job.infra_restarts = job.user_failures = job.no_progress_deaths = 0
        session.flush()
    event = note(
        session, job, "checkpoint_created", f"Checkpoint created at step {step}", now=now, data={"step": step}
    )
    checkpoint = Checkpoint(
        id=checkpoint_id,
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
    session.add(checkpoint)
    tell(session, job, kind=EventType.CHECKPOINT_CREATED, number=event.number, now=now)
    return checkpoint


def drop_checkpoints(session: Session, lease: Lease, *, keep: int) -> list[str]:
    """Forget all checkpoints but the newest `keep` and the best, as the trainer does in its own folder.

    The best is the one with the lowest `eval_loss`, of equals the one with the fewest steps; where none was
    evaluated there is none.

    Returns:
        The storage keys to delete after the commit.
    """
    get_leased(session, lease)
    newest_first = repository.all_checkpoints(session, lease.job_id)
    best = min(newest_first, key=_by_eval_loss, default=None)
    has_best = best is not None and best.metrics.get("eval_loss") is not None
    old = [one for one in newest_first[keep:] if not (has_best and one is best)]
    for checkpoint in old:
        session.delete(checkpoint)
    return [checkpoint.storage_key for checkpoint in old]


def get_leased(session: Session, lease: Lease) -> Job:
    """The job under a lease that still stands; its row is locked.

    Raises:
        LeaseLostError: it does not.
    """
    query = select(Job).where(*held(lease)).with_for_update()
    job = session.scalars(query).one_or_none()
    if job is None:
        raise LeaseLostError(lease.job_id)
    return job


def previous_outcome(session: Session, lease: Lease) -> str | None:
    """How the run of the job before this one ended; None where there was none."""
    query = select(Run.outcome).where(Run.job_id == lease.job_id, Run.epoch < lease.epoch)
    return session.scalars(query.order_by(Run.epoch.desc()).limit(1)).one_or_none()


def count_alike(session: Session, lease: Lease, outcome: str) -> int:
    """How many runs of the job right before this one ended in one way, up to 10."""
    query = select(Run.outcome).where(Run.job_id == lease.job_id, Run.epoch < lease.epoch)
    before = session.scalars(query.order_by(Run.epoch.desc()).limit(10))
    return len(list(itertools.takewhile(lambda found: found == outcome, before)))


def end_run(
    session: Session,
    lease: Lease,
    outcome: str,
    exit_code: int | None,
    now: datetime,
    *,
    reason: str | None = None,
) -> None:
    """Note how an attempt ended, and why."""
    run = session.get(Run, (lease.job_id, lease.epoch))
    # A job whose run has no row can still be taken back.
    if run is not None:
        run.outcome, run.exit_code, run.ended_at, run.reason = outcome, exit_code, now, reason


def _by_eval_loss(checkpoint: Checkpoint) -> tuple[float, int]:
    loss = checkpoint.metrics.get("eval_loss")
    return (math.inf if loss is None else loss, checkpoint.step)


def _run(session: Session, lease: Lease) -> Run:
    run = session.get(Run, (lease.job_id, lease.epoch))
    if run is None:
        raise LuthierError(f"run {lease.epoch} of {lease.job_id} has no row", "server_error")
    return run
