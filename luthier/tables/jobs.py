"""Jobs: the queue. A job's row with its lease and epoch is the only truth about it.

The conditions at the end have the very form of the indexes that answer them.
"""

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    ColumnElement,
    Float,
    ForeignKey,
    Index,
    String,
    Text,
    and_,
    bindparam,
    literal,
)
from sqlalchemy.orm import Mapped, mapped_column

from luthier.status import LEASED, LIVE, DesiredState, Kind, Queue, State
from luthier.tables.base import Base, Id, partial_index


def _one_of(column: str, values: type[State] | type[Kind] | type[Queue] | type[DesiredState]) -> str:
    return f"{column} IN ({', '.join(repr(str(value)) for value in values)})"


def _listed(states: Iterable[State]) -> str:
    return ", ".join(repr(str(state)) for state in sorted(states))


_LEASED_SQL, _LIVE_SQL = _listed(LEASED), _listed(LIVE)
# Without the jobs that wait for their data: whoever looks for work would pass over thousands of them.
_CLAIMABLE_SQL = "state = 'queued' AND (kind <> 'train' OR prepared_at IS NOT NULL)"


class Job(Base):
    """All long work. What only training has is null on the other kinds.

    Attributes:
        parent_job_id: the job that this one tries again, else the one whose model it tunes again.
        subject_job_id: for `prepare`, the training job that waits for it.
        subject_file_id: the file that is read, for `validate` and errands; for a conversion, the one made.
        work_key: for an errand, names what it was asked, so that the same question finds the same answer.
        request: the body as the user sent it, checked and frozen; of an errand, an `errands.Errand`.
        hyperparameters: the resolved numbers, once the rows are counted.
        prepared: `PreparedData` with storage keys for paths.
        next_number: the number that the job's next event or metric gets.
        run_count: attempts made; `lease_epoch` grows with each claim and never shrinks.
        queue_key: place in the queue, among jobs of the project: smaller goes first. Made by
            `luthier.service.queue_order` of the priority and of the time of submission, in microseconds.
        blocked_on: a `BlockedOn`, in state `blocked` alone.
        infra_restarts, user_failures, no_progress_deaths: since the last checkpoint that was new: runs lost
            to machines, runs that failed for a passing reason, runs in a row that died on their own.
        checkpoint_step: of the newest checkpoint there ever was.
        memory_bytes, gpu_count, labels: what a device must have; labels sorted, with commas.
        estimated_seconds: of training, at the median.
        resume_from: id of another job's checkpoint that the first run starts from.
        model_deleted_at: when its owner deleted `fine_tuned_model`; the name stays as a record.
        deleted_at: when its owner deleted it. The row stays for what is counted, without what was the user's.
    """

    __tablename__ = "jobs"
    __table_args__ = (
        CheckConstraint(_one_of("kind", Kind), "kind"),
        CheckConstraint(_one_of("queue", Queue), "queue"),
        CheckConstraint(_one_of("state", State), "state"),
        CheckConstraint(_one_of("desired_state", DesiredState), "desired_state"),
        CheckConstraint(f"(state IN ({_LEASED_SQL})) = (lease_owner IS NOT NULL)", "lease"),
        Index(None, "project_id", "kind", "created_at", "id"),
        Index(None, "subject_job_id"),
        Index(None, "subject_file_id"),
        partial_index("ix_jobs_work_key", "work_key", where="work_key IS NOT NULL"),
        CheckConstraint("(state = 'blocked') = (blocked_on IS NOT NULL)", "blocked"),
        partial_index("ix_jobs_claimable", "queue", "project_id", "queue_key", "id", where=_CLAIMABLE_SQL),
        partial_index("ix_jobs_waiting", "state", "not_before", where="state IN ('blocked', 'retry_wait')"),
        partial_index("ix_jobs_resume_from", "resume_from", where="resume_from IS NOT NULL"),
        partial_index(
            "ix_jobs_leased", "lease_expires_at", "queue", "project_id", where=f"state IN ({_LEASED_SQL})"
        ),
        partial_index(
            "ix_jobs_plain",
            "project_id",
            "created_at",
            "id",
            where="user_metadata IS NULL AND kind = 'train'",
        ),
        partial_index(
            "ix_jobs_succeeded",
            "project_id",
            "model",
            "created_at",
            "id",
            where="state = 'succeeded' AND kind = 'train'",
        ),
        partial_index("ix_jobs_ended", "finished_at", where="finished_at IS NOT NULL"),
        partial_index(
            "ix_jobs_live", "project_id", "kind", "state", "queue_key", "id", where=f"state IN ({_LIVE_SQL})"
        ),
    )
    id: Mapped[str] = mapped_column(Id, primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    api_key_id: Mapped[str | None] = mapped_column(Id)
    kind: Mapped[str] = mapped_column(String(16))
    queue: Mapped[str] = mapped_column(String(16))
    parent_job_id: Mapped[str | None] = mapped_column(Id)
    subject_job_id: Mapped[str | None] = mapped_column(Id)
    subject_file_id: Mapped[str | None] = mapped_column(Id)
    work_key: Mapped[str | None] = mapped_column(String(64))

    state: Mapped[str] = mapped_column(String(16))
    phase: Mapped[str | None] = mapped_column(String(32))
    desired_state: Mapped[str] = mapped_column(String(16), default=DesiredState.RUN)
    priority: Mapped[int] = mapped_column(default=0)
    queue_key: Mapped[int] = mapped_column(BigInteger, default=0, server_default="0")
    not_before: Mapped[datetime | None]
    blocked_on: Mapped[str | None] = mapped_column(String(16))
    lease_epoch: Mapped[int] = mapped_column(default=0)
    lease_owner: Mapped[str | None] = mapped_column(String(256))
    lease_expires_at: Mapped[datetime | None]
    run_count: Mapped[int] = mapped_column(default=0)
    infra_restarts: Mapped[int] = mapped_column(default=0, server_default="0")
    user_failures: Mapped[int] = mapped_column(default=0, server_default="0")
    no_progress_deaths: Mapped[int] = mapped_column(default=0, server_default="0")
    checkpoint_step: Mapped[int] = mapped_column(default=0, server_default="0")
    next_number: Mapped[int] = mapped_column(default=1)

    memory_bytes: Mapped[int | None] = mapped_column(BigInteger)
    gpu_count: Mapped[int] = mapped_column(default=0, server_default="0")
    labels: Mapped[str] = mapped_column(String(512), default="", server_default="")
    estimated_seconds: Mapped[float | None] = mapped_column(Float)

    request: Mapped[dict[str, Any]]
    hyperparameters: Mapped[dict[str, Any] | None]
    prepared: Mapped[dict[str, Any] | None]
    prepared_at: Mapped[datetime | None]
    plan: Mapped[dict[str, Any] | None]
    result: Mapped[dict[str, Any] | None]
    model: Mapped[str | None] = mapped_column(String(256))
    training_file: Mapped[str | None] = mapped_column(Id)
    validation_file: Mapped[str | None] = mapped_column(Id)
    result_file: Mapped[str | None] = mapped_column(Id)
    suffix: Mapped[str | None] = mapped_column(String(64))
    name: Mapped[str | None] = mapped_column(String(128))
    resume_from: Mapped[str | None] = mapped_column(String(128))
    seed: Mapped[int] = mapped_column(BigInteger, default=0)
    user_metadata: Mapped[dict[str, Any] | None]
    fine_tuned_model: Mapped[str | None] = mapped_column(String(512), index=True)
    model_deleted_at: Mapped[datetime | None]

    step: Mapped[int] = mapped_column(default=0)
    total_steps: Mapped[int | None]
    trained_tokens: Mapped[int | None] = mapped_column(BigInteger)
    progress: Mapped[dict[str, Any] | None]
    error_code: Mapped[str | None] = mapped_column(String(64))
    error_message: Mapped[str | None] = mapped_column(Text)
    error_param: Mapped[str | None] = mapped_column(String(128))
    error_details: Mapped[list[dict[str, Any]] | None]

    created_at: Mapped[datetime]
    queued_at: Mapped[datetime | None]
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    cancel_requested_at: Mapped[datetime | None]
    deleted_at: Mapped[datetime | None]

    @property
    def task(self) -> str | None:
        """What an errand is to do; None for all other work."""
        return self.request["task"] if self.work_key is not None else None

    @property
    def is_tuned_again(self) -> bool:
        """Whether training starts from the adapter of the tuned model that the request names."""
        return bool(self.request["model"] != self.model)


class JobFile(Base):
    """A file that a training job uses, frozen at submit; `position` counts the files of one role from 0.

    Attributes:
        file_id: without a foreign key: the file may be deleted once the job has ended.
        role: `training` or `validation`.
        entry: the file's `dataset_entry` at that time.
    """

    __tablename__ = "job_files"
    __table_args__ = (Index(None, "file_id"),)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    role: Mapped[str] = mapped_column(String(16), primary_key=True)
    position: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    file_id: Mapped[str] = mapped_column(Id)
    weight: Mapped[float] = mapped_column(Float)
    entry: Mapped[dict[str, Any] | None]


class JobMetadata(Base):
    """A pair of a training job's metadata, for who asks for the jobs that have it; the job's row has all."""

    __tablename__ = "job_metadata"
    __table_args__ = (Index("ix_job_metadata_pair", "project_id", "key", "value", "created_at", "job_id"),)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    key: Mapped[str] = mapped_column(String(64), primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    value: Mapped[str] = mapped_column(String(512))
    created_at: Mapped[datetime]


def in_state(*states: State) -> ColumnElement[bool]:
    """The condition that a job is in one of some states, with these written out in the statement.

    Neither database takes a partial index for states that come as parameters, and SQLite only for the very
    states that the index names: ask for all of them, and for fewer beside.
    """
    if len(states) == 1:
        return Job.state == literal(str(states[0]), literal_execute=True)
    names = sorted(str(state) for state in states)
    return Job.state.in_(bindparam(None, names, expanding=True, literal_execute=True))


def is_claimable(queue: Queue) -> ColumnElement[bool]:
    """The condition that a job waits in a queue with its data prepared, in the form that its index has."""
    is_train = queue == Queue.TRAIN
    is_ready = (
        Job.prepared_at.is_not(None) if is_train else Job.kind != literal("train", literal_execute=True)
    )
    return and_(in_state(State.QUEUED), Job.queue == queue, is_ready)


def is_queued(kind: str) -> ColumnElement[bool]:
    """The condition that a job is queued, prepared or not, in the form that its index has."""
    return and_(in_state(*LIVE), in_state(State.QUEUED), Job.kind == kind)


def is_leased() -> ColumnElement[bool]:
    """The condition that somebody works on a job, in the form that finds these few by their index."""
    return and_(in_state(*LEASED), Job.lease_expires_at.is_not(None))
