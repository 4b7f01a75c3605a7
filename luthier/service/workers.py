"""The agents that are there: each says so at its start and with every heartbeat; a sick one is set aside.

A sick worker claims nothing. It stays so over restarts of its agent, until an operator releases it or its
machine starts anew.
"""

import re
from datetime import datetime
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from luthier.errors import LuthierError, not_found
from luthier.status import Queue
from luthier.tables import Job, Worker

SICK = "sick"
_BOOT = "boot_id"
_JOB = re.compile(r" \(job ([\w-]+)\)")


def record_worker(
    session: Session,
    worker_id: str,
    *,
    instance_id: str,
    host: str,
    queue: Queue,
    device: str,
    version: str,
    resources: dict[str, Any],
    state: str,
    now: datetime,
    labels: str = "",
) -> Worker:
    """Store that an agent lives; a new instance takes the place of the one before, sick where that was.

    Args:
        resources: of the device; `boot_id`, where it is told, names the start of the machine.
    """
    worker = session.get(Worker, worker_id)
    reason = _lasting_reason(worker, resources)
    if worker is None or worker.instance_id != instance_id:
        worker = session.merge(
            Worker(
                id=worker_id,
                instance_id=instance_id,
                started_at=now,
                host=host,
                queue=queue,
                device=device,
                version=version,
                resources=resources,
                labels=labels,
                state=state,
                heartbeat_at=now,
            )
        )
    worker.resources, worker.labels, worker.heartbeat_at = resources, labels, now
    worker.state, worker.reason = (state, None) if reason is None else (SICK, reason)
    return worker


def set_aside(session: Session, worker_id: str, reason: str) -> None:
    """Have a worker claim nothing more, whose row is there."""
    worker = session.get_one(Worker, worker_id)
    worker.state, worker.reason = SICK, reason


def fault_of_job(reason: str, job_id: str) -> str:
    """A reason to set a worker aside, with the job that it was met in, as `shown_reason` reads it."""
    return f"{reason} (job {job_id})"


def shown_reason(session: Session, worker: Worker, project_id: str) -> str | None:
    """Why a worker is set aside, as a project may know it: other projects' jobs are not named."""
    if worker.reason is None or not (named := _JOB.findall(worker.reason)):
        return worker.reason
    own = set(session.scalars(select(Job.id).where(Job.id.in_(named), Job.project_id == project_id)))
    return _JOB.sub(lambda found: found[0] if found[1] in own else "", worker.reason)


def is_sick(session: Session, worker_id: str) -> bool:
    """Whether a worker is set aside."""
    return session.scalars(select(Worker.state).where(Worker.id == worker_id)).one_or_none() == SICK


def release(session: Session, name: str) -> list[str]:
    """Let sick workers claim again.

    Args:
        name: a worker's id, or its device: a UUID, or `cpu`.
    Returns:
        Their ids.
    Raises:
        LuthierError: there is no such worker, or it is not set aside.
    """
    named = session.scalars(select(Worker).where((Worker.id == name) | (Worker.device == name))).all()
    if not named:
        raise not_found("worker", name)
    sick = [worker for worker in named if worker.state == SICK]
    if not sick:
        raise LuthierError(f"The worker {name} is not set aside: it is {named[0].state}", "invalid_value")
    for worker in sick:
        worker.state, worker.reason = "active", None
    return [worker.id for worker in sick]


def _lasting_reason(worker: Worker | None, resources: dict[str, Any]) -> str | None:
    """Why a worker stays sick; None where it is not, or its machine has started anew since."""
    if worker is None or worker.state != SICK:
        return None
    before, now = worker.resources.get(_BOOT), resources.get(_BOOT)
    return worker.reason if None in (before, now) or before == now else None
