"""What the service needs to run: workers, the leader, promised messages, notes."""

from datetime import datetime
from typing import Any

from sqlalchemy import (
    ForeignKey,
    Index,
    String,
    Text,
)
from sqlalchemy.orm import Mapped, mapped_column

from luthier.tables.base import Base, Counter, Id, partial_index


class Worker(Base):
    """An agent: one device, or one place on the CPU. `instance_id` is new at every start.

    Attributes:
        resources: `name`, `memory_bytes` and `has_bf16` of its device.
        labels: sorted, with commas; jobs may ask for some of them.
        state: `active`, `draining`, `stopped`, or `sick`, for which `reason` says why.
    """

    __tablename__ = "workers"
    id: Mapped[str] = mapped_column(String(256), primary_key=True)
    project_id: Mapped[str | None] = mapped_column(ForeignKey("projects.id"))
    instance_id: Mapped[str] = mapped_column(Id)
    host: Mapped[str] = mapped_column(String(256))
    queue: Mapped[str] = mapped_column(String(16))
    device: Mapped[str] = mapped_column(String(128))
    version: Mapped[str] = mapped_column(String(32))
    resources: Mapped[dict[str, Any]]
    labels: Mapped[str] = mapped_column(String(512), default="", server_default="")
    state: Mapped[str] = mapped_column(String(16))
    reason: Mapped[str | None] = mapped_column(Text)
    started_at: Mapped[datetime]
    heartbeat_at: Mapped[datetime]


class Leader(Base):
    """Which dispatcher is active; `epoch` grows with each change."""

    __tablename__ = "leaders"
    name: Mapped[str] = mapped_column(String(32), primary_key=True)
    project_id: Mapped[str | None] = mapped_column(ForeignKey("projects.id"))
    holder: Mapped[str | None] = mapped_column(String(256))
    epoch: Mapped[int] = mapped_column(default=0)
    expires_at: Mapped[datetime | None]


class Outbox(Base):
    """A message that a transaction promised; the dispatcher sends it, at least once."""

    __tablename__ = "outbox"
    __table_args__ = (
        partial_index("ix_outbox_unsent", "topic", "next_at", where="sent_at IS NULL"),
        partial_index("ix_outbox_sent", "sent_at", where="sent_at IS NOT NULL"),
    )
    id: Mapped[int] = mapped_column(Counter, primary_key=True, autoincrement=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    topic: Mapped[str] = mapped_column(String(64))
    key: Mapped[str] = mapped_column(String(128))
    payload: Mapped[dict[str, Any]]
    created_at: Mapped[datetime]
    next_at: Mapped[datetime]
    tries: Mapped[int] = mapped_column(default=0)
    sent_at: Mapped[datetime | None]


class IdempotencyKey(Base):
    """A POST that carried an `Idempotency-Key`: the same key finds the same answer for a day.

    Attributes:
        request_sha256: of method, path and body: the same key with another request is refused.
        object_id: what the request made; null while it is being made.
    """

    __tablename__ = "idempotency_keys"
    __table_args__ = (Index(None, "expires_at"),)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"), primary_key=True)
    key: Mapped[str] = mapped_column(String(255), primary_key=True)
    request_sha256: Mapped[str] = mapped_column(String(64))
    object_id: Mapped[str | None] = mapped_column(String(64))
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime]


class BackupNote(Base):
    """The last backup that was made whole, and where it lay then; there is one row."""

    __tablename__ = "backups"
    made_at: Mapped[datetime] = mapped_column(primary_key=True)
    project_id: Mapped[str | None] = mapped_column(ForeignKey("projects.id"))
    folder: Mapped[str] = mapped_column(String(4096))
