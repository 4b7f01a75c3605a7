"""What can be told, and the body of the message: thin, so that a receiver asks for the job itself."""

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Self

from luthier.status import State


class EventType(StrEnum):
    """OpenAI's three, and what beside them happens to a job."""

    SUCCEEDED = "fine_tuning.job.succeeded"
    FAILED = "fine_tuning.job.failed"
    CANCELLED = "fine_tuning.job.cancelled"
    CREATED = "fine_tuning.job.created"
    RUNNING = "fine_tuning.job.running"
    PAUSED = "fine_tuning.job.paused"
    CHECKPOINT_CREATED = "fine_tuning.job.checkpoint_created"


EVENT_TYPES: tuple[str, ...] = tuple(EventType)
# Which states are told of as a training job enters them.
TYPE_OF_STATE = {
    State.RUNNING: EventType.RUNNING,
    State.PAUSED: EventType.PAUSED,
    State.SUCCEEDED: EventType.SUCCEEDED,
    State.FAILED: EventType.FAILED,
    State.QUARANTINED: EventType.FAILED,
    State.CANCELLED: EventType.CANCELLED,
}


@dataclass(frozen=True)
class WebhookEvent:
    """One event; `id` is the same in every message about it, to whomever and however often it is sent."""

    id: str
    type: str
    object_id: str
    at: datetime

    def body(self) -> bytes:
        """What is sent and signed: the same bytes each time."""
        body = {
            "id": self.id,
            "object": "event",
            "created_at": int(self.at.timestamp()),
            "type": self.type,
            "data": {"id": self.object_id},
        }
        return json.dumps(body, separators=(",", ":")).encode()

    def payload(self) -> dict[str, Any]:
        """The same for a row of the outbox."""
        return {
            "event_id": self.id,
            "type": self.type,
            "object_id": self.object_id,
            "at": self.at.timestamp(),
        }

    @classmethod
    def of_payload(cls, payload: dict[str, Any]) -> Self:
        at = datetime.fromtimestamp(payload["at"], UTC)
        return cls(payload["event_id"], payload["type"], payload["object_id"], at)
