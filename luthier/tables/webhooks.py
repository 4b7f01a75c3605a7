"""Whom users want to have told of their jobs, and the log of what became of it."""

from datetime import datetime

from sqlalchemy import (
    ForeignKey,
    Index,
    String,
    Text,
)
from sqlalchemy.orm import Mapped, mapped_column

from luthier.tables.base import Base, Id


class WebhookEndpoint(Base):
    """A URL of a project that is told what becomes of its training jobs.

    Attributes:
        event_types: of `luthier.webhooks.EventType`, sorted.
        secret, previous_secret: sealed for `webhook/<id>`; the second one, or two of them on lines, the
            newest first, signs, too, until `previous_secret_until`.
        secret_hint: what may be shown of the secret.
        disabled_at: from then on nothing is sent; `disabled_reason` is `asked` or `gone`.
        updated_at: of the last change of the configuration or the secret.
    """

    __tablename__ = "webhook_endpoints"
    __table_args__ = (Index(None, "project_id", "created_at", "id"),)
    id: Mapped[str] = mapped_column(Id, primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    api_key_id: Mapped[str | None] = mapped_column(Id)
    name: Mapped[str] = mapped_column(String(128))
    url: Mapped[str] = mapped_column(String(2048))
    event_types: Mapped[list[str]]
    secret: Mapped[str] = mapped_column(Text)
    secret_hint: Mapped[str] = mapped_column(String(32))
    previous_secret: Mapped[str | None] = mapped_column(Text)
    previous_secret_until: Mapped[datetime | None]
    disabled_at: Mapped[datetime | None]
    disabled_reason: Mapped[str | None] = mapped_column(String(16))
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]


class WebhookDelivery(Base):
    """One attempt to tell an endpoint of an event; never changed but for the time of the next one.

    Attributes:
        event_id, event_type, object_id, event_at: the event, from which its message can be made again.
        attempt: counts from 1; a message that is sent again by hand begins anew.
        status_code: of the answer; null where none came, and then `error` says why.
        next_attempt_at: null where the message has arrived, or is given up.
    """

    __tablename__ = "webhook_deliveries"
    __table_args__ = (Index(None, "endpoint_id", "created_at", "id"), Index(None, "created_at"))
    id: Mapped[str] = mapped_column(Id, primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    endpoint_id: Mapped[str] = mapped_column(ForeignKey("webhook_endpoints.id", ondelete="CASCADE"))
    event_id: Mapped[str] = mapped_column(String(128))
    event_type: Mapped[str] = mapped_column(String(64))
    object_id: Mapped[str] = mapped_column(Id)
    event_at: Mapped[datetime]
    attempt: Mapped[int]
    status_code: Mapped[int | None]
    milliseconds: Mapped[int]
    error: Mapped[str | None] = mapped_column(String(256))
    created_at: Mapped[datetime]
    next_attempt_at: Mapped[datetime | None]
