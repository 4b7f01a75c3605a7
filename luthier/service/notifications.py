"""What webhook endpoints are told: a message in the outbox for each that wants to hear of an event.

It is promised in the transaction that makes the event true, so that neither stands without the other. Where a
project has no endpoint, an event costs one look into an index. `deliveries` sends the messages.
"""

from datetime import datetime
from typing import cast

from sqlalchemy import Table, bindparam, select
from sqlalchemy.orm import Session

from luthier.status import Kind
from luthier.tables import Job, Outbox, WebhookEndpoint
from luthier.webhooks import EventType, WebhookEvent

WEBHOOK = "webhook"
# Made once, and about the table: it is asked with every job, and mostly finds nothing.
_TABLE = cast(Table, WebhookEndpoint.__table__)
_ENABLED = select(_TABLE.c.id, _TABLE.c.event_types).where(
    _TABLE.c.project_id == bindparam("project"), _TABLE.c.disabled_at.is_(None)
)


def tell(session: Session, *jobs: Job, kind: EventType, number: int, now: datetime) -> None:
    """Promise a message about each training job to each endpoint of its project that has asked for this type.

    Args:
        number: the place of the event in a job's own sequence; with the type it makes the event's id, so
            that the same event is never told under two.
    """
    told = [job for job in jobs if job.kind == Kind.TRAIN]
    for project_id in dict.fromkeys(job.project_id for job in told):
        endpoints = session.execute(_ENABLED, {"project": project_id})
        wanted = [endpoint_id for endpoint_id, types in endpoints if kind in types]
        for job in told if wanted else ():
            if job.project_id == project_id:
                event = _event_of(job, kind, number, now)
                session.add_all(message(project_id, endpoint_id, event, now=now) for endpoint_id in wanted)


def _event_of(job: Job, kind: EventType, number: int, now: datetime) -> WebhookEvent:
    tail = job.id.removeprefix("ftjob-")
    return WebhookEvent(f"evt_{tail}_{number}_{kind.rpartition('.')[2]}", kind, job.id, now)


def message(project_id: str, endpoint_id: str, event: WebhookEvent, *, now: datetime) -> Outbox:
    """The row that has an endpoint told of an event, as soon as can be."""
    return Outbox(
        project_id=project_id,
        topic=WEBHOOK,
        key=endpoint_id,
        payload=event.payload(),
        created_at=now,
        next_at=now,
    )
