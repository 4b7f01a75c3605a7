"""The queries: every read of the tables that is more than one line, and the pages of lists.

All of it takes an open session and, for what users own, the project; nothing here commits or decides.
Pages run from the newest to the oldest by (created_at, id), with the last id of a page as the next cursor.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Generic, TypeVar, cast

from sqlalchemy import (
    Column,
    ColumnElement,
    MetaData,
    Select,
    String,
    Table,
    case,
    exists,
    func,
    inspect,
    literal,
    or_,
    select,
    tuple_,
)
from sqlalchemy import Row as SqlRow
from sqlalchemy.orm import Session, aliased, defer, load_only

from luthier.errors import invalid, not_found, printable
from luthier.status import FINAL, LIVE, Kind, Queue, State
from luthier.tables import (
    ApiKey,
    Artifact,
    AuditLog,
    Checkpoint,
    CheckpointPermission,
    File,
    Job,
    JobEvent,
    JobFile,
    JobMetadata,
    Metric,
    PreparedRows,
    Project,
    Run,
    Secret,
    Upload,
    UploadPart,
    WebhookDelivery,
    WebhookEndpoint,
    Worker,
    in_state,
)

# Written out, as in the conditions of indexes.
IS_TRAINING = Job.kind == literal(str(Kind.TRAIN), literal_execute=True)

# A job as a row of the whole table, with the names that the object has: to be shown, not to be changed.
JobRow = SqlRow[Any]
# In a session's notes: files that it holds until its transaction ends.
_HELD = "held_files"
_JOBS = cast(Table, Job.__table__)

Row = TypeVar("Row")
Numbered = TypeVar("Numbered", JobEvent, Metric)
Listed = TypeVar("Listed", Project, ApiKey, Secret, AuditLog)


@dataclass(frozen=True)
class Page(Generic[Row]):
    """One page of a list, and whether more follow."""

    data: Sequence[Row]
    has_more: bool


def get_job(session: Session, project_id: str, job_id: str) -> Job:
    """A training job of a project.

    Raises:
        LuthierError: `fine_tune_not_found`, also for a job of somebody else.
    """
    job = find_job(session, job_id)
    if job is None or job.project_id != project_id or job.kind != Kind.TRAIN or job.deleted_at is not None:
        raise not_found("fine-tuning job", job_id, "fine_tune_not_found", "fine_tune_id")
    return job


def find_job(session: Session, job_id: str) -> Job | None:
    """A job of any kind and project."""
    return session.get(Job, job_id)


def list_jobs(
    session: Session,
    project_id: str,
    *,
    after: str | None,
    limit: int,
    metadata: dict[str, str] | None = None,
    without_metadata: bool = False,
) -> Page[JobRow]:
    """Training jobs, newest first; `metadata` pairs must all be there. One may go on from a deleted job.

    They come as rows of the table: objects cost twice as much, and a list is only shown.
    """
    created_at, job_id, query = _jobs_with(project_id, dict(metadata or {}))
    if without_metadata:
        query = query.where(Job.user_metadata.is_(None))
    if after is not None:
        cursor = find_job(session, after)
        if cursor is None or cursor.project_id != project_id or cursor.kind != Kind.TRAIN:
            raise _unknown_cursor(after)
        query = query.where(_older(created_at, job_id, cursor.created_at, cursor.id))
    query = query.where(Job.deleted_at.is_(None))
    found = session.execute(query.order_by(created_at.desc(), job_id.desc()).limit(limit + 1)).all()
    return Page(found[:limit], len(found) > limit)


def find_open_work(
    session: Session, *, job_id: str | None = None, file_id: str | None = None
) -> Sequence[Job]:
    """Work that has not ended and that serves a job (`prepare`) or a file (`validate`)."""
    subject = Job.subject_job_id == job_id if job_id is not None else Job.subject_file_id == file_id
    return session.scalars(select(Job).where(subject, Job.state.not_in(FINAL))).all()


def find_live_job_of_file(session: Session, project_id: str, file_id: str) -> Job | None:
    """The oldest training job that has not ended and that uses a file."""
    query = _jobs_of_file(project_id, file_id).limit(1)
    return session.scalars(query).one_or_none()


def lock_jobs_that_await_file(session: Session, project_id: str, file_id: str) -> Sequence[Job]:
    """Training jobs whose files are being validated, a file among them, oldest first."""
    query = _jobs_of_file(project_id, file_id).where(in_state(State.VALIDATING))
    query = query.with_for_update(of=Job).execution_options(populate_existing=True)
    return session.scalars(query).all()


def files_of_job(session: Session, job_id: str) -> Sequence[JobFile]:
    """The files that a training job uses: those for training in their order, then the one for validation."""
    query = select(JobFile).where(JobFile.job_id == job_id).order_by(JobFile.role, JobFile.position)
    return session.scalars(query).all()


def find_errand(session: Session, project_id: str, key: str) -> Job | None:
    """The newest errand under a key."""
    query = select(Job).where(Job.work_key == key, Job.project_id == project_id)
    return session.scalars(query.order_by(Job.created_at.desc(), Job.id.desc()).limit(1)).one_or_none()


def list_ended_errands(
    session: Session,
    *,
    file_id: str | None = None,
    ended_before: datetime | None = None,
    limit: int | None = None,
) -> Sequence[Job]:
    """Errands that have ended: about a file, or before a time."""
    query = select(Job).where(Job.work_key.is_not(None), Job.state.in_(FINAL))
    if file_id is not None:
        query = query.where(Job.subject_file_id == file_id)
    if ended_before is not None:
        query = query.where(Job.finished_at < ended_before)
    return session.scalars(query.limit(limit)).all()


def find_prepared(session: Session, project_id: str, key: str) -> PreparedRows | None:
    """The prepared rows under a cache key."""
    return session.get(PreparedRows, (project_id, key))


def lock_prepared(session: Session, project_id: str, file_sha256: str) -> Sequence[PreparedRows]:
    """What was prepared from a content, for who is about to delete it."""
    query = select(PreparedRows).where(
        PreparedRows.project_id == project_id, PreparedRows.file_sha256 == file_sha256
    )
    return session.scalars(query.with_for_update()).all()


def has_content(session: Session, project_id: str, sha256: str, *, except_id: str | None = None) -> bool:
    """Whether a file of the project, beside the one of `except_id`, has this content."""
    query = select(File.id).where(File.project_id == project_id, File.sha256 == sha256)
    if except_id is not None:
        query = query.where(File.id != except_id)
    return session.scalars(query.limit(1)).one_or_none() is not None


def find_dataset(session: Session, project_id: str, name: str) -> File | None:
    """The file that is registered under a name."""
    query = select(File).where(File.project_id == project_id, File.dataset_name == name)
    return session.scalars(query).one_or_none()


def get_file(session: Session, project_id: str, file_id: str, *, is_held: bool = False) -> File:
    """A file of a project.

    Args:
        is_held: read anew the first time, and kept as it is until the transaction ends; several may hold it.
    Raises:
        LuthierError: `file_not_found`, also for a file of somebody else.
    """
    held: set[str] = session.info.setdefault(_HELD, set())
    is_new = is_held and file_id not in held
    file = session.get(File, file_id, with_for_update={"read": True} if is_new else None)
    if is_held:
        held.add(file_id)
    if file is None or file.project_id != project_id:
        raise not_found("File object", file_id, "file_not_found")
    return file


def get_upload(session: Session, project_id: str, upload_id: str, *, is_locked: bool = False) -> Upload:
    """An upload of a project.

    Args:
        is_locked: nobody else changes it, or adds a part, until the transaction ends.
    Raises:
        LuthierError: `upload_not_found`, also for one of somebody else.
    """
    upload = session.get(Upload, upload_id, with_for_update=is_locked or None)
    if upload is None or upload.project_id != project_id:
        raise not_found("Upload", upload_id, "upload_not_found", "upload_id")
    return upload


def list_parts(session: Session, upload: Upload) -> Sequence[UploadPart]:
    """The parts of an upload in the order in which they came."""
    query = select(UploadPart).where(UploadPart.upload_id == upload.id)
    return session.scalars(query.order_by(UploadPart.created_at, UploadPart.id)).all()


def list_files(
    session: Session,
    project_id: str,
    *,
    after: str | None,
    limit: int,
    purpose: str | None = None,
    name: str | None = None,
    sha256: str | None = None,
    ascending: bool = False,
) -> Page[File]:
    """Files by the time they came, without their reports; `name` is what a file is registered under."""
    query = select(File).where(File.project_id == project_id).options(defer(File.report, raiseload=True))
    if name is not None:
        query = query.where(File.dataset_name == name)
    if purpose is not None:
        query = query.where(File.purpose == purpose)
    if sha256 is not None:
        query = query.where(File.sha256 == sha256)
    if after is not None:
        cursor = session.get(File, after)
        if cursor is None or cursor.project_id != project_id:
            raise _unknown_cursor(after)
        past = _newer if ascending else _older
        query = query.where(past(File.created_at, File.id, cursor.created_at, cursor.id))
    order = (File.created_at, File.id) if ascending else (File.created_at.desc(), File.id.desc())
    return _page(session, query.order_by(*order), limit)


def list_events(session: Session, job: Job, *, before: int | None, limit: int) -> Page[JobEvent | Metric]:
    """Events and metrics of a job in one sequence, newest first; `before` is a number within the job."""
    found: list[JobEvent | Metric] = []
    found.extend(_numbered(session, JobEvent, job, before, limit))
    found.extend(_numbered(session, Metric, job, before, limit))
    found.sort(key=lambda row: row.number, reverse=True)
    return Page(found[:limit], len(found) > limit)


def list_events_after(
    session: Session, job_id: str, *, after: int, limit: int
) -> Sequence[JobEvent | Metric]:
    """Events and metrics of a job behind a number in one sequence, oldest first."""
    found: list[JobEvent | Metric] = []
    for table in (JobEvent, Metric):
        query = select(table).where(table.job_id == job_id, table.number > after)
        found.extend(session.scalars(query.order_by(table.number).limit(limit)))
    return sorted(found, key=lambda row: row.number)[:limit]


def list_warnings(session: Session, job_id: str) -> Sequence[JobEvent]:
    """What a job's runs have warned of, oldest first."""
    query = select(JobEvent).where(JobEvent.job_id == job_id, JobEvent.kind == "warning_raised")
    return session.scalars(query.order_by(JobEvent.number)).all()


def list_checkpoints(session: Session, job: Job, *, after: str | None, limit: int) -> Page[Checkpoint]:
    """Checkpoints of a job, newest first."""
    query = select(Checkpoint).where(Checkpoint.job_id == job.id)
    if after is not None:
        cursor = session.get(Checkpoint, after)
        if cursor is None or cursor.job_id != job.id:
            raise _unknown_cursor(after)
        query = query.where(Checkpoint.number < cursor.number)
    return _page(session, query.order_by(Checkpoint.number.desc()), limit)


def all_checkpoints(session: Session, job_id: str) -> Sequence[Checkpoint]:
    """Every checkpoint of a job, the one with the most steps first."""
    query = select(Checkpoint).where(Checkpoint.job_id == job_id)
    return session.scalars(query.order_by(Checkpoint.step.desc(), Checkpoint.epoch.desc())).all()


def find_checkpoints(
    session: Session,
    project_id: str,
    *,
    checkpoint_id: str | None = None,
    step: int | None = None,
    job_id_beginning: str = "",
    limit: int | None = None,
) -> list[tuple[Checkpoint, Job]]:
    """Checkpoints of a project with their jobs, the newest first: the one of an id, or those of a step."""
    query = select(Checkpoint, Job).join(Job, Job.id == Checkpoint.job_id)
    query = query.where(Checkpoint.project_id == project_id)
    if checkpoint_id is not None:
        query = query.where(Checkpoint.id == checkpoint_id)
    if step is not None:
        query = query.where(Checkpoint.step == step, Job.id.startswith(job_id_beginning, autoescape=True))
    query = query.order_by(Checkpoint.created_at.desc(), Checkpoint.number.desc()).limit(limit)
    found = session.execute(query)
    return [(checkpoint, job) for checkpoint, job in found]


def list_artifacts(session: Session, job_id: str) -> Sequence[Artifact]:
    """Artifacts of a job by name."""
    return session.scalars(select(Artifact).where(Artifact.job_id == job_id).order_by(Artifact.name)).all()


def get_artifact(session: Session, job_id: str, name: str) -> Artifact:
    """One artifact.

    Raises:
        LuthierError: `artifact_not_found`.
    """
    query = select(Artifact).where(Artifact.job_id == job_id, Artifact.name == name)
    artifact = session.scalars(query).one_or_none()
    if artifact is None:
        raise not_found("artifact", name, "artifact_not_found", "name")
    return artifact


def list_runs(session: Session, job_id: str) -> Sequence[Run]:
    """Attempts at a job, the first one first."""
    return session.scalars(select(Run).where(Run.job_id == job_id).order_by(Run.number)).all()


def list_tuned_jobs(session: Session, project_id: str, *, limit: int) -> Sequence[Job]:
    """The newest jobs with a model that is still there, newest first: what tells of it and no more."""
    of_project = (Job.project_id == project_id, Job.kind == Kind.TRAIN)
    query = select(Job).where(*of_project, Job.fine_tuned_model.is_not(None), Job.model_deleted_at.is_(None))
    query = query.options(load_only(Job.fine_tuned_model, Job.created_at, Job.finished_at, raiseload=True))
    return session.scalars(query.order_by(Job.created_at.desc(), Job.id.desc()).limit(limit)).all()


def find_tuned_job(session: Session, project_id: str, model_id: str) -> Job | None:
    """The job that left a model of this name, which is still there."""
    query = select(Job).where(Job.project_id == project_id, Job.fine_tuned_model == model_id)
    return session.scalars(query.where(Job.model_deleted_at.is_(None))).one_or_none()


def list_permissions(
    session: Session,
    project_id: str,
    model: str,
    *,
    after: str | None,
    limit: int,
    granted_project_id: str | None = None,
    ascending: bool = False,
) -> Page[CheckpointPermission]:
    """Permissions that a project has given on one of its models."""
    table = CheckpointPermission
    query = select(table).where(table.project_id == project_id, table.model == model)
    if granted_project_id is not None:
        query = query.where(table.granted_project_id == granted_project_id)
    if after is not None:
        cursor = session.get(table, after)
        if cursor is None or (cursor.project_id, cursor.model) != (project_id, model):
            raise _unknown_cursor(after)
        past = _newer if ascending else _older
        query = query.where(past(table.created_at, table.id, cursor.created_at, cursor.id))
    order = (table.created_at, table.id) if ascending else (table.created_at.desc(), table.id.desc())
    return _page(session, query.order_by(*order), limit)


def list_succeeded_jobs(session: Session, project_id: str, *, model: str, limit: int) -> Sequence[Job]:
    """Training jobs of a base model that ended well, newest first."""
    query = select(Job).where(
        Job.project_id == project_id, Job.model == model, IS_TRAINING, in_state(State.SUCCEEDED)
    )
    query = query.where(Job.deleted_at.is_(None))
    return session.scalars(query.order_by(Job.created_at.desc(), Job.id.desc()).limit(limit)).all()


def get_webhook_endpoint(
    session: Session, project_id: str, endpoint_id: str, *, is_locked: bool = False
) -> WebhookEndpoint:
    """A webhook endpoint of a project.

    Args:
        is_locked: nobody else changes or deletes it until the transaction ends.
    Raises:
        LuthierError: `not_found`, also for an endpoint of somebody else.
    """
    endpoint = session.get(WebhookEndpoint, endpoint_id, with_for_update=is_locked or None)
    if endpoint is None or endpoint.project_id != project_id:
        raise not_found("webhook endpoint", endpoint_id)
    return endpoint


def list_webhook_endpoints(
    session: Session, project_id: str, *, after: str | None, limit: int
) -> Page[WebhookEndpoint]:
    """Webhook endpoints, newest first."""
    table = WebhookEndpoint
    query = select(table).where(table.project_id == project_id)
    if after is not None:
        cursor = session.get(table, after)
        if cursor is None or cursor.project_id != project_id:
            raise _unknown_cursor(after)
        query = query.where(_older(table.created_at, table.id, cursor.created_at, cursor.id))
    return _page(session, query.order_by(table.created_at.desc(), table.id.desc()), limit)


def get_webhook_delivery(session: Session, endpoint: WebhookEndpoint, delivery_id: str) -> WebhookDelivery:
    """An attempt to deliver something to an endpoint.

    Raises:
        LuthierError: `not_found`.
    """
    delivery = session.get(WebhookDelivery, delivery_id)
    if delivery is None or delivery.endpoint_id != endpoint.id:
        raise not_found("webhook delivery", delivery_id)
    return delivery


def list_webhook_deliveries(
    session: Session, endpoint: WebhookEndpoint, *, after: str | None, limit: int
) -> Page[WebhookDelivery]:
    """Attempts to deliver to an endpoint, newest first."""
    table = WebhookDelivery
    query = select(table).where(table.endpoint_id == endpoint.id)
    if after is not None:
        cursor = session.get(table, after)
        if cursor is None or cursor.endpoint_id != endpoint.id:
            raise _unknown_cursor(after)
        query = query.where(_older(table.created_at, table.id, cursor.created_at, cursor.id))
    return _page(session, query.order_by(table.created_at.desc(), table.id.desc()), limit)


def list_training_workers(session: Session, *, since: datetime) -> Sequence[Worker]:
    """Agents that train and have been heard of."""
    query = select(Worker).where(
        Worker.queue == Queue.TRAIN, Worker.state == "active", Worker.heartbeat_at >= since
    )
    return session.scalars(query.order_by(Worker.id)).all()


def count_training_workers(session: Session, *, since: datetime) -> int:
    """How many agents train and have been heard of."""
    query = select(func.count()).where(
        Worker.queue == Queue.TRAIN, Worker.state == "active", Worker.heartbeat_at >= since
    )
    return session.scalar(query) or 0


def list_workers(session: Session, *, since: datetime) -> Sequence[Worker]:
    """Agents of all queues that have been heard of."""
    return session.scalars(select(Worker).where(Worker.heartbeat_at >= since).order_by(Worker.id)).all()


def find_newest_run(session: Session, job_id: str) -> Run | None:
    """The last attempt at a job or, before there was one, at its preparation."""
    query = (
        select(Run).join(Job, Job.id == Run.job_id).where(or_(Job.id == job_id, Job.subject_job_id == job_id))
    )
    newest = query.order_by(case((Job.id == job_id, 0), else_=1), Run.started_at.desc(), Run.epoch.desc())
    return session.scalars(newest.limit(1)).one_or_none()


def list_owned(
    session: Session,
    table: type[Listed],
    *conditions: ColumnElement[bool],
    after: str | None,
    before: str | None = None,
    limit: int,
    ascending: bool = False,
) -> Page[Listed]:
    """Rows of a table that fulfil conditions, newest first.

    Args:
        before: the row that follows the page; the page is then the last one that there is in front of it.
    """
    query = select(table).where(*conditions)
    is_backward = before is not None and after is None
    ascending = ascending != is_backward
    if (cursor_id := after or before) is not None:
        cursor = session.scalars(query.where(table.id == cursor_id)).one_or_none()
        if cursor is None:
            raise _unknown_cursor(cursor_id)
        past = _newer if ascending else _older
        query = query.where(past(table.created_at, table.id, cursor.created_at, cursor.id))
    order = (table.created_at, table.id) if ascending else (table.created_at.desc(), table.id.desc())
    page = _page(session, query.order_by(*order), limit)
    return Page(page.data[::-1], page.has_more) if is_backward else page


def find_schema_revision(session: Session) -> str | None:
    """The revision of the database; None for an empty one. No write, so that it never waits for a writer."""
    connection = session.connection()
    if not inspect(connection).has_table("alembic_version"):
        return None
    revision = Table("alembic_version", MetaData(), Column("version_num", String))
    return connection.execute(select(revision.c.version_num)).scalar_one_or_none()


def _numbered(
    session: Session, table: type[Numbered], job: Job, before: int | None, limit: int
) -> Sequence[Numbered]:
    query = select(table).where(table.job_id == job.id)
    if before is not None:
        query = query.where(table.number < before)
    return session.scalars(query.order_by(table.number.desc()).limit(limit + 1)).all()


def _jobs_of_file(project_id: str, file_id: str) -> Select[Job]:
    using = select(JobFile.job_id).where(JobFile.file_id == file_id)
    return (
        select(Job)
        .where(Job.project_id == project_id, IS_TRAINING, in_state(*LIVE), Job.id.in_(using))
        .order_by(Job.created_at, Job.id)
    )


def _jobs_with(project_id: str, pairs: dict[str, str]) -> tuple[Any, Any, Select[Any]]:
    """Training jobs of a project that have all pairs, and the two columns that they are ordered by.

    One pair leads to the jobs by its index, in their order; the others are then looked up for each job.
    """
    if not pairs:
        return Job.created_at, Job.id, select(_JOBS).where(Job.project_id == project_id, IS_TRAINING)
    first = aliased(JobMetadata)
    key, value = pairs.popitem()
    query = select(_JOBS).join(first, first.job_id == Job.id).where(IS_TRAINING)
    query = query.where(first.project_id == project_id, first.key == key, first.value == value)
    for key, value in pairs.items():
        other = aliased(JobMetadata)
        query = query.where(exists().where(other.job_id == Job.id, other.key == key, other.value == value))
    return first.created_at, first.job_id, query


# Compared as rows: of the same condition in words, Postgres makes a filter and reads all that is newer.
def _older(created: Any, identifier: Any, at: datetime, cursor_id: str) -> ColumnElement[bool]:
    return tuple_(created, identifier) < _row(created, identifier, at, cursor_id)


def _newer(created: Any, identifier: Any, at: datetime, cursor_id: str) -> ColumnElement[bool]:
    return tuple_(created, identifier) > _row(created, identifier, at, cursor_id)


def _row(created: Any, identifier: Any, at: datetime, cursor_id: str) -> ColumnElement[Any]:
    return tuple_(literal(at, created.type), literal(cursor_id, identifier.type))


def _page(session: Session, query: Select[Row], limit: int) -> Page[Row]:
    rows = session.scalars(query.limit(limit + 1)).all()
    return Page(rows[:limit], len(rows) > limit)


def _unknown_cursor(after: str) -> Exception:
    return invalid(f"'after' names nothing in this list: {printable(after)}", "after")
