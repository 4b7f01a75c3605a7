"""Who owns what, by which keys people enter, and what they have changed."""

from datetime import datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    ForeignKey,
    Index,
    String,
    Text,
    UniqueConstraint,
)
from sqlalchemy.orm import Mapped, mapped_column

from luthier.tables.base import Base, Id


class Organization(Base):
    """Who owns projects; one exists from the start."""

    __tablename__ = "organizations"
    id: Mapped[str] = mapped_column(Id, primary_key=True)
    name: Mapped[str] = mapped_column(String(128))
    created_at: Mapped[datetime]


class Project(Base):
    """What owns files, jobs and keys; one exists from the start.

    Attributes:
        quotas: limits that replace those of the settings: `queued_jobs`, `running_jobs`, `storage_bytes`.
        storage_bytes: what files, prepared data, checkpoints and artifacts of the project take up; kept by
            `luthier.accounts` and by nobody else.
        train_turn_at, cpu_turn_at: when work of that queue was last taken from the project.
        archived_at: since when its keys are refused; it never comes back.
    """

    __tablename__ = "projects"
    id: Mapped[str] = mapped_column(Id, primary_key=True)
    organization_id: Mapped[str] = mapped_column(ForeignKey("organizations.id"))
    name: Mapped[str] = mapped_column(String(128))
    quotas: Mapped[dict[str, Any] | None]
    storage_bytes: Mapped[int] = mapped_column(BigInteger, default=0, server_default="0")
    train_turn_at: Mapped[datetime | None]
    cpu_turn_at: Mapped[datetime | None]
    archived_at: Mapped[datetime | None]
    created_at: Mapped[datetime]


class ApiKey(Base):
    """A bearer key, stored as HMAC-SHA256; `prefix` is the part that may be shown.

    Attributes:
        scopes: what it may do, sorted, with commas: `admin`, `read`, `write`; see `luthier.service.access`.
        rotated_to: id of the key that takes its place; it then ends at `expires_at`.
        requests_per_minute: in the place of the setting; 0 is no limit.
    """

    __tablename__ = "api_keys"
    __table_args__ = (Index(None, "project_id", "created_at", "id"),)
    id: Mapped[str] = mapped_column(Id, primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    name: Mapped[str] = mapped_column(String(128))
    prefix: Mapped[str] = mapped_column(String(8), unique=True)
    hash: Mapped[str] = mapped_column(String(64))
    scopes: Mapped[str] = mapped_column(
        String(64), default="admin,read,write", server_default="admin,read,write"
    )
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime | None]
    rotated_to: Mapped[str | None] = mapped_column(Id)
    requests_per_minute: Mapped[int | None]
    last_used_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]


class RequestCount(Base):
    """Requests of a key with a limit, in one minute of the wall clock, as its processes last told them."""

    __tablename__ = "request_counts"
    api_key_id: Mapped[str] = mapped_column(Id, primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    minute: Mapped[int] = mapped_column(BigInteger)
    count: Mapped[int]


class Secret(Base):
    """A text that jobs need and nobody sees again, such as a hub token; sealed by `luthier.sealing`."""

    __tablename__ = "secrets"
    __table_args__ = (UniqueConstraint("project_id", "name"),)
    id: Mapped[str] = mapped_column(Id, primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    name: Mapped[str] = mapped_column(String(64))
    sealed: Mapped[str] = mapped_column(Text)
    api_key_id: Mapped[str | None] = mapped_column(Id)
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]


class AuditLog(Base):
    """Who changed what; written by `luthier.audit` in the transaction of the change, never altered.

    Without foreign keys: it outlives what it speaks of.

    Attributes:
        type: such as `job.created`.
        actor_name: of who has no key, as on the command line of the server.
    """

    __tablename__ = "audit_logs"
    __table_args__ = (Index(None, "organization_id", "created_at", "id"), Index(None, "created_at"))
    id: Mapped[str] = mapped_column(Id, primary_key=True)
    organization_id: Mapped[str] = mapped_column(Id)
    project_id: Mapped[str | None] = mapped_column(Id)
    created_at: Mapped[datetime]
    type: Mapped[str] = mapped_column(String(64))
    resource_id: Mapped[str] = mapped_column(String(256))
    api_key_id: Mapped[str | None] = mapped_column(Id)
    actor_name: Mapped[str | None] = mapped_column(String(128))
    request_id: Mapped[str | None] = mapped_column(String(128))
    address: Mapped[str | None] = mapped_column(String(64))
