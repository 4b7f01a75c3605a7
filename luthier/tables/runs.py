"""What comes of working on jobs: runs, what they tell and measure, what they leave."""

from datetime import datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    Float,
    ForeignKey,
    Index,
    String,
    Text,
    UniqueConstraint,
)
from sqlalchemy.orm import Mapped, mapped_column

from luthier.tables.base import Base, Id, partial_index


class Run(Base):
    """One attempt at a job. `event_offset` is how far its `events.jsonl` has been recorded."""

    __tablename__ = "runs"
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    epoch: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    number: Mapped[int]
    worker_id: Mapped[str] = mapped_column(String(256))
    host: Mapped[str] = mapped_column(String(256))
    device: Mapped[str] = mapped_column(String(128))
    pid: Mapped[int | None]
    event_offset: Mapped[int] = mapped_column(BigInteger, default=0)
    from_step: Mapped[int] = mapped_column(default=0)
    exit_code: Mapped[int | None]
    outcome: Mapped[str | None] = mapped_column(String(16))
    reason: Mapped[str | None] = mapped_column(Text)
    boot_id: Mapped[str | None] = mapped_column(Id)
    started_at: Mapped[datetime]
    ended_at: Mapped[datetime | None]


class JobEvent(Base):
    """A fact about a job, numbered within it (with its metrics), never changed."""

    __tablename__ = "events"
    __table_args__ = (
        partial_index("uq_events_succeeded", "job_id", where="kind = 'job_succeeded'", unique=True),
    )
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    epoch: Mapped[int]
    at: Mapped[datetime]
    kind: Mapped[str] = mapped_column(String(32))
    level: Mapped[str] = mapped_column(String(8))
    message: Mapped[str] = mapped_column(Text)
    data: Mapped[dict[str, Any]]


class Metric(Base):
    """Numbers at a step. A run that resumes at step k supersedes what a lost run logged after k."""

    __tablename__ = "metrics"
    __table_args__ = (Index(None, "job_id", "step"),)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    epoch: Mapped[int]
    at: Mapped[datetime]
    step: Mapped[int]
    total_steps: Mapped[int]
    train_loss: Mapped[float | None] = mapped_column(Float)
    train_mean_token_accuracy: Mapped[float | None] = mapped_column(Float)
    eval_loss: Mapped[float | None] = mapped_column(Float)
    eval_mean_token_accuracy: Mapped[float | None] = mapped_column(Float)
    learning_rate: Mapped[float | None] = mapped_column(Float)
    grad_norm: Mapped[float | None] = mapped_column(Float)
    tokens_per_second: Mapped[float | None] = mapped_column(Float)
    is_superseded: Mapped[bool] = mapped_column(default=False)


class Checkpoint(Base):
    """A checkpoint whose files lie whole in storage: the row is what makes it visible."""

    __tablename__ = "checkpoints"
    __table_args__ = (UniqueConstraint("job_id", "epoch", "step"),)
    id: Mapped[str] = mapped_column(String(128), primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"))
    epoch: Mapped[int]
    number: Mapped[int]
    step: Mapped[int]
    storage_key: Mapped[str] = mapped_column(String(512))
    manifest_sha256: Mapped[str] = mapped_column(String(64))
    size_bytes: Mapped[int] = mapped_column(BigInteger, active_history=True)
    metrics: Mapped[dict[str, Any]]
    created_at: Mapped[datetime]


class Artifact(Base):
    """A finished file of a job, kept for the user."""

    __tablename__ = "artifacts"
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    name: Mapped[str] = mapped_column(String(512), primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    epoch: Mapped[int]
    kind: Mapped[str] = mapped_column(String(32))
    size_bytes: Mapped[int] = mapped_column(BigInteger, active_history=True)
    sha256: Mapped[str] = mapped_column(String(64))
    storage_key: Mapped[str] = mapped_column(String(512))
    created_at: Mapped[datetime]


class CheckpointPermission(Base):
    """That another project may see and use a model or checkpoint of this one.

    Attributes:
        model: its name, `ft:...`, perhaps with `:ckpt-step-N`.
        granted_project_id: of the same organisation.
    """

    __tablename__ = "checkpoint_permissions"
    __table_args__ = (
        UniqueConstraint("project_id", "model", "granted_project_id"),
        Index(None, "granted_project_id", "model"),
    )
    id: Mapped[str] = mapped_column(Id, primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    model: Mapped[str] = mapped_column(String(512))
    granted_project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    created_at: Mapped[datetime]
