"""The tables. The database is the queue: a job's row with its lease and epoch is the only truth.

Every table carries `project_id`; where it may be null (workers, the leader row) the row serves all projects.
Times are aware and UTC. `migrations/` builds these tables; a test compares the two.
"""

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    CheckConstraint,
    ColumnElement,
    DateTime,
    Dialect,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Text,
    TypeDecorator,
    UniqueConstraint,
    and_,
    bindparam,
    literal,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from luthier.status import LEASED, LIVE, DesiredState, Kind, Queue, State

_Json = JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")
_Id = String(64)
# SQLite numbers rows by itself only for a column of type INTEGER.
_Counter = BigInteger().with_variant(Integer(), "sqlite")


class UtcDateTime(TypeDecorator[datetime]):
    """An aware UTC time; SQLite, which knows no zones, stores it without one."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("times in the database are aware: pass a datetime with a zone")
        value = value.astimezone(UTC)
        return value.replace(tzinfo=None) if dialect.name == "sqlite" else value

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Base(DeclarativeBase):
    """Names of constraints are fixed, so that migrations can speak of them on both databases."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {  # noqa: RUF012
        datetime: UtcDateTime,
        dict[str, Any]: _Json,
        list[str]: _Json,
        list[dict[str, Any]]: _Json,
    }


def _partial_index(name: str, *columns: str, where: str, unique: bool = False) -> Index:
    """An index over the rows alone for which a condition holds."""
    return Index(name, *columns, unique=unique, postgresql_where=text(where), sqlite_where=text(where))


class Organization(Base):
    """Who owns projects; one exists from the start."""

    __tablename__ = "organizations"
    id: Mapped[str] = mapped_column(_Id, primary_key=True)
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
    id: Mapped[str] = mapped_column(_Id, primary_key=True)
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
    id: Mapped[str] = mapped_column(_Id, primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    name: Mapped[str] = mapped_column(String(128))
    prefix: Mapped[str] = mapped_column(String(8), unique=True)
    hash: Mapped[str] = mapped_column(String(64))
    scopes: Mapped[str] = mapped_column(
        String(64), default="admin,read,write", server_default="admin,read,write"
    )
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime | None]
    rotated_to: Mapped[str | None] = mapped_column(_Id)
    requests_per_minute: Mapped[int | None]
    last_used_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]


class File(Base):
    """A file that a user sent, or a result that Luthier made; its bytes lie at `storage_key`.

    Attributes:
        sha256: empty while a conversion is still writing the file.
        dataset_name: under which it is registered, and `dataset_entry`, how its rows are then read: a
            `DatasetEntry`.
    """

    __tablename__ = "files"
    __table_args__ = (
        Index(None, "project_id", "created_at", "id"),
        _partial_index(
            "uq_files_dataset_name",
            "project_id",
            "dataset_name",
            where="dataset_name IS NOT NULL",
            unique=True,
        ),
        Index(None, "project_id", "sha256"),
        _partial_index("ix_files_expiring", "expires_at", where="expires_at IS NOT NULL"),
    )
    id: Mapped[str] = mapped_column(_Id, primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    api_key_id: Mapped[str | None] = mapped_column(_Id)
    filename: Mapped[str] = mapped_column(String(512))
    purpose: Mapped[str] = mapped_column(String(32))
    size_bytes: Mapped[int] = mapped_column(BigInteger, active_history=True)
    sha256: Mapped[str] = mapped_column(String(64))
    storage_key: Mapped[str] = mapped_column(String(512))
    status: Mapped[str] = mapped_column(String(16))
    status_details: Mapped[str | None] = mapped_column(Text)
    report: Mapped[dict[str, Any] | None]
    dataset_name: Mapped[str | None] = mapped_column(String(128))
    dataset_entry: Mapped[dict[str, Any] | None]
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime | None]


class PreparedRows(Base):
    """The rows of a file as tokens, for one model and one set of rules; all jobs of the project share them.

    Attributes:
        key: of all that the rows depend on, from `luthier.datasets.cache`.
        file_sha256: of the source; the rows go when the last file of that content goes.
        storage_key: a sealed folder.
        facts: `split`, a `PreparedSplit` with a storage key for a path and weight 1; `stats`; the
            `chat_template` that a model trained on them has to carry; and `warnings`.
    """

    __tablename__ = "prepared_data"
    __table_args__ = (Index(None, "project_id", "file_sha256"), Index(None, "last_used_at"))
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"), primary_key=True)
    key: Mapped[str] = mapped_column(String(64), primary_key=True)
    file_sha256: Mapped[str] = mapped_column(String(64))
    storage_key: Mapped[str] = mapped_column(String(512))
    facts: Mapped[dict[str, Any]]
    size_bytes: Mapped[int] = mapped_column(BigInteger, active_history=True)
    created_at: Mapped[datetime]
    last_used_at: Mapped[datetime]


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
        _partial_index("ix_jobs_work_key", "work_key", where="work_key IS NOT NULL"),
        CheckConstraint("(state = 'blocked') = (blocked_on IS NOT NULL)", "blocked"),
        _partial_index("ix_jobs_claimable", "queue", "project_id", "queue_key", "id", where=_CLAIMABLE_SQL),
        _partial_index("ix_jobs_waiting", "state", "not_before", where="state IN ('blocked', 'retry_wait')"),
        _partial_index("ix_jobs_resume_from", "resume_from", where="resume_from IS NOT NULL"),
        _partial_index(
            "ix_jobs_leased", "lease_expires_at", "queue", "project_id", where=f"state IN ({_LEASED_SQL})"
        ),
        _partial_index(
            "ix_jobs_plain",
            "project_id",
            "created_at",
            "id",
            where="user_metadata IS NULL AND kind = 'train'",
        ),
        _partial_index(
            "ix_jobs_succeeded",
            "project_id",
            "model",
            "created_at",
            "id",
            where="state = 'succeeded' AND kind = 'train'",
        ),
        _partial_index("ix_jobs_ended", "finished_at", where="finished_at IS NOT NULL"),
        _partial_index(
            "ix_jobs_live", "project_id", "kind", "state", "queue_key", "id", where=f"state IN ({_LIVE_SQL})"
        ),
    )
    id: Mapped[str] = mapped_column(_Id, primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    api_key_id: Mapped[str | None] = mapped_column(_Id)
    kind: Mapped[str] = mapped_column(String(16))
    queue: Mapped[str] = mapped_column(String(16))
    parent_job_id: Mapped[str | None] = mapped_column(_Id)
    subject_job_id: Mapped[str | None] = mapped_column(_Id)
    subject_file_id: Mapped[str | None] = mapped_column(_Id)
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
    training_file: Mapped[str | None] = mapped_column(_Id)
    validation_file: Mapped[str | None] = mapped_column(_Id)
    result_file: Mapped[str | None] = mapped_column(_Id)
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
    file_id: Mapped[str] = mapped_column(_Id)
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
    boot_id: Mapped[str | None] = mapped_column(_Id)
    started_at: Mapped[datetime]
    ended_at: Mapped[datetime | None]


class JobEvent(Base):
    """A fact about a job, numbered within it (with its metrics), never changed."""

    __tablename__ = "events"
    __table_args__ = (
        _partial_index("uq_events_succeeded", "job_id", where="kind = 'job_succeeded'", unique=True),
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


class Outbox(Base):
    """A message that a transaction promised; the dispatcher sends it, at least once."""

    __tablename__ = "outbox"
    __table_args__ = (
        _partial_index("ix_outbox_unsent", "topic", "next_at", where="sent_at IS NULL"),
        _partial_index("ix_outbox_sent", "sent_at", where="sent_at IS NOT NULL"),
    )
    id: Mapped[int] = mapped_column(_Counter, primary_key=True, autoincrement=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    topic: Mapped[str] = mapped_column(String(64))
    key: Mapped[str] = mapped_column(String(128))
    payload: Mapped[dict[str, Any]]
    created_at: Mapped[datetime]
    next_at: Mapped[datetime]
    tries: Mapped[int] = mapped_column(default=0)
    sent_at: Mapped[datetime | None]


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
    instance_id: Mapped[str] = mapped_column(_Id)
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


class BackupNote(Base):
    """The last backup that was made whole, and where it lay then; there is one row."""

    __tablename__ = "backups"
    made_at: Mapped[datetime] = mapped_column(primary_key=True)
    project_id: Mapped[str | None] = mapped_column(ForeignKey("projects.id"))
    folder: Mapped[str] = mapped_column(String(4096))


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


class WebhookEndpoint(Base):
    """A URL of a project that is told what becomes of its training jobs.

    Attributes:
        event_types: of `luthier.webhooks.EventType`, sorted.
        secret, previous_secret: sealed for `webhook/<id>`; the second one signs, too, until
            `previous_secret_until`.
        secret_hint: what may be shown of the secret.
        disabled_at: from then on nothing is sent; `disabled_reason` is `asked` or `gone`.
        updated_at: of the last change of the configuration or the secret.
    """

    __tablename__ = "webhook_endpoints"
    __table_args__ = (Index(None, "project_id", "created_at", "id"),)
    id: Mapped[str] = mapped_column(_Id, primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    api_key_id: Mapped[str | None] = mapped_column(_Id)
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
    id: Mapped[str] = mapped_column(_Id, primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    endpoint_id: Mapped[str] = mapped_column(ForeignKey("webhook_endpoints.id", ondelete="CASCADE"))
    event_id: Mapped[str] = mapped_column(String(128))
    event_type: Mapped[str] = mapped_column(String(64))
    object_id: Mapped[str] = mapped_column(_Id)
    event_at: Mapped[datetime]
    attempt: Mapped[int]
    status_code: Mapped[int | None]
    milliseconds: Mapped[int]
    error: Mapped[str | None] = mapped_column(String(256))
    created_at: Mapped[datetime]
    next_attempt_at: Mapped[datetime | None]


class RequestCount(Base):
    """Requests of a key with a limit, in one minute of the wall clock, as its processes last told them."""

    __tablename__ = "request_counts"
    api_key_id: Mapped[str] = mapped_column(_Id, primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    minute: Mapped[int] = mapped_column(BigInteger)
    count: Mapped[int]


class Secret(Base):
    """A text that jobs need and nobody sees again, such as a hub token; sealed by `luthier.sealing`."""

    __tablename__ = "secrets"
    __table_args__ = (UniqueConstraint("project_id", "name"),)
    id: Mapped[str] = mapped_column(_Id, primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    name: Mapped[str] = mapped_column(String(64))
    sealed: Mapped[str] = mapped_column(Text)
    api_key_id: Mapped[str | None] = mapped_column(_Id)
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
    id: Mapped[str] = mapped_column(_Id, primary_key=True)
    organization_id: Mapped[str] = mapped_column(_Id)
    project_id: Mapped[str | None] = mapped_column(_Id)
    created_at: Mapped[datetime]
    type: Mapped[str] = mapped_column(String(64))
    resource_id: Mapped[str] = mapped_column(String(256))
    api_key_id: Mapped[str | None] = mapped_column(_Id)
    actor_name: Mapped[str | None] = mapped_column(String(128))
    request_id: Mapped[str | None] = mapped_column(String(128))
    address: Mapped[str | None] = mapped_column(String(64))


class Upload(Base):
    """A file that is sent in parts; it becomes a `File` when it is completed.

    Attributes:
        size_bytes: of the whole file, as it was announced.
        file_expires_seconds: how long the file is kept once it is there; null is for good.
        on_bad_row: as the form of a whole file has it.
        status: `pending`, `completed` or `cancelled`; a pending one whose time is over has expired.
        part_ids: in the order of the file, and `file_id`, what was made of them, once completed.
    """

    __tablename__ = "uploads"
    __table_args__ = (Index(None, "expires_at"),)
    id: Mapped[str] = mapped_column(_Id, primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    api_key_id: Mapped[str | None] = mapped_column(_Id)
    filename: Mapped[str] = mapped_column(String(512))
    purpose: Mapped[str] = mapped_column(String(32))
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    file_expires_seconds: Mapped[int | None]
    on_bad_row: Mapped[str] = mapped_column(String(16))
    status: Mapped[str] = mapped_column(String(16))
    part_ids: Mapped[list[str] | None]
    file_id: Mapped[str | None] = mapped_column(_Id)
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime]


class UploadPart(Base):
    """Bytes of an upload that lie in storage; the order of parts is told when it is completed."""

    __tablename__ = "upload_parts"
    __table_args__ = (Index(None, "upload_id"),)
    id: Mapped[str] = mapped_column(_Id, primary_key=True)
    upload_id: Mapped[str] = mapped_column(ForeignKey("uploads.id"))
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
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
    id: Mapped[str] = mapped_column(_Id, primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    model: Mapped[str] = mapped_column(String(512))
    granted_project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    created_at: Mapped[datetime]
