"""What became of a write whose commit was not heard of: read back by owner, by lease, or by step.

`CommitUnknownError` means that a transaction may stand or not. Its caller asks here, by what the transaction
would have written, and goes on as if it had heard the answer.
"""

from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from luthier.service.claims import Claim
from luthier.service.transitions import Lease
from luthier.status import State
from luthier.tables import Checkpoint, Job, Run, is_leased

# A run that others ended has one of these; its supervisor has not settled it.
_TAKEN_BACK = frozenset({"lost"})


def find_claim(session: Session, owner: str, *, now: datetime) -> Claim | None:
    """The claim of an owner that has led to no child yet; an owner works on one job at a time.

    One whose lease ran out is left to the sweep.
    """
    query = (
        select(Job, Run)
        .join(Run, (Run.job_id == Job.id) & (Run.epoch == Job.lease_epoch))
        .where(is_leased(), Job.lease_owner == owner, Job.state == State.STARTING)
        .where(Job.lease_expires_at > now)
        .where(Run.pid.is_(None))
    )
    found = session.execute(query).one_or_none()
    if found is None:
        return None
    job, run = found
    return Claim(job, Lease(job.id, job.lease_epoch, owner), run.number)


def find_ending(session: Session, lease: Lease) -> str | None:
    """How a run was ended by its own supervisor; None while it goes on, and where it was taken back."""
    run = session.get(Run, (lease.job_id, lease.epoch))
    return None if run is None or run.outcome in _TAKEN_BACK else run.outcome


def find_checkpoint(session: Session, lease: Lease, step: int) -> Checkpoint | None:
    """The row of a checkpoint that a run has published."""
    query = select(Checkpoint).where(
        Checkpoint.job_id == lease.job_id, Checkpoint.epoch == lease.epoch, Checkpoint.step == step
    )
    return session.scalars(query).one_or_none()
