"""Server-sent events as bytes (WHATWG HTML, 9.2): what happened to a job, and how it stands."""

from collections.abc import Sequence

from pydantic import BaseModel

from api.schemas.events import event_object
from api.schemas.streams import status_object
from luthier.service.feed import Head
from luthier.tables import JobEvent, Metric

RETRY = b"retry: 3000\n\n"
KEEP_ALIVE = b": keep-alive\n\n"
TOO_SLOW = b": too slow, connect again\n\n"
GO_ON = b": connect again\n\n"


def event_frames(rows: Sequence[JobEvent | Metric]) -> list[tuple[int, bytes]]:
    """Events of a job, each with its number, which is its id in the stream."""
    shown = ((row.number, event_object(row)) for row in rows)
    return [(number, _frame(event.type, event, number)) for number, event in shown]


def status_frame(head: Head) -> bytes:
    """How a job stands; without an id, so that a client goes on behind the last event."""
    return _frame("status", status_object(head), None)


def done_frame(head: Head) -> bytes:
    """The last one: the job has ended. Its id is that of the last event."""
    return _frame("done", status_object(head), head.next_number - 1)


def _frame(name: str, shown: BaseModel, number: int | None) -> bytes:
    # JSON has no line breaks, so one line of data holds it.
    identifier = "" if number is None else f"id: {number}\n"
    return f"{identifier}event: {name}\ndata: {shown.model_dump_json()}\n\n".encode()
