"""What is kept for a while and then goes: the rows of it, a few in each transaction.

Each function takes rows away and returns the storage keys that they spoke of; the caller deletes the bytes
after its commit. Where it dies before that, the bytes are orphans, which `orphans` finds.
"""

from contextlib import suppress
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, and_, exists, select
from sqlalchemy.orm import Session, aliased

from luthier.errors import LuthierError
from luthier.service import files, uploads
from luthier.status import FINAL
from luthier.tables import Checkpoint, File, Job, JobFile, PreparedRows, Upload, UploadPart


def drop_checkpoints(session: Session, *, older_than: timedelta, limit: int, now: datetime) -> list[str]:
    """Forget checkpoints of jobs that ended long ago, in whatever way; a paused job has not ended.

    One that another job started from stays as long as that job's own: it may have made none yet, and be tried
    again.
    """
    before = now - older_than
    query = (
        select(Checkpoint)
        .join(Job, Job.id == Checkpoint.job_id)
        .where(Job.state.in_(FINAL), Job.finished_at < before, ~_is_wanted(before))
        .order_by(Checkpoint.created_at, Checkpoint.id)
        .limit(limit)
        .with_for_update(of=Checkpoint, skip_locked=True)
    )
    found = session.scalars(query).all()
    for checkpoint in found:
        session.delete(checkpoint)
    return [checkpoint.storage_key for checkpoint in found]


def drop_prepared(session: Session, *, unused_for: timedelta, limit: int, now: datetime) -> list[str]:
    """Forget prepared rows that no job has used for long, unless a job that has not ended uses their file."""
    query = (
        select(PreparedRows)
        .where(PreparedRows.last_used_at < now - unused_for, ~_is_read())
        .order_by(PreparedRows.last_used_at)
        .limit(limit)
        .with_for_update(of=PreparedRows, skip_locked=True)
    )
    found = session.scalars(query).all()
    for rows in found:
        session.delete(rows)
    return [rows.storage_key for rows in found]


def drop_expired_files(session: Session, *, limit: int, now: datetime) -> list[str]:
    """Delete files whose time is over, as their owner would; one that a job still needs waits for its end."""
    in_use = exists().where(JobFile.file_id == File.id, Job.id == JobFile.job_id, Job.state.not_in(FINAL))
    query = select(File).where(File.expires_at <= now, ~in_use).order_by(File.expires_at).limit(limit)
    keys: list[str] = []
    for file in session.scalars(query).all():
        # A job may have come meanwhile, or the owner was faster.
        with suppress(LuthierError), session.begin_nested():
            keys += files.delete_file(session, file, now=now)
    return keys


def drop_parts(session: Session, *, limit: int, now: datetime) -> list[str]:
    """Forget parts of uploads whose time has been over for a while; one that is being ended is left alone."""
    query = (
        select(UploadPart)
        .join(Upload, Upload.id == UploadPart.upload_id)
        .where(Upload.expires_at <= now - uploads.PARTS_KEPT)
        .limit(limit)
        .with_for_update(of=(UploadPart, Upload), skip_locked=True)
    )
    found = session.scalars(query).all()
    for part in found:
        session.delete(part)
    return [part.storage_key for part in found]


def drop_uploads(session: Session, *, older_than: timedelta, limit: int, now: datetime) -> int:
    """Forget uploads whose time was over long ago; the files that were made of some stay."""
    has_parts = exists().where(UploadPart.upload_id == Upload.id)
    query = select(Upload).where(Upload.expires_at < now - older_than, ~has_parts)
    query = query.order_by(Upload.expires_at).limit(limit)
    found = session.scalars(query.with_for_update(of=Upload, skip_locked=True)).all()
    for upload in found:
        session.delete(upload)
    return len(found)


def _is_wanted(before: datetime) -> ColumnElement[bool]:
    """Whether a job that has not ended, or not before a time, started from a checkpoint."""
    heir = aliased(Job)
    ended = and_(heir.state.in_(FINAL), heir.finished_at < before)
    return exists().where(heir.resume_from == Checkpoint.id, ~ended)


def _is_read() -> ColumnElement[bool]:
    """Whether a job that has not ended uses a file of the content that rows were made from."""
    return exists().where(
        File.project_id == PreparedRows.project_id,
        File.sha256 == PreparedRows.file_sha256,
        JobFile.file_id == File.id,
        Job.id == JobFile.job_id,
        Job.state.not_in(FINAL),
    )
