"""The agents that are there: each says so at its start and with every heartbeat."""

from datetime import datetime
from typing import Any

from sqlalchemy.orm import Session

from luthier.status import Queue
from luthier.tables import Worker


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
) -> Worker:
    """Store that an agent lives; a new instance takes the place of the one before."""
    worker = session.get(Worker, worker_id)
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
                state=state,
                heartbeat_at=now,
            )
        )
    worker.resources, worker.state, worker.heartbeat_at = resources, state, now
    return worker
