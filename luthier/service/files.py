"""What users do with files, and what validation finds out about them."""

from datetime import datetime
from typing import Any

from sqlalchemy.orm import Session

from luthier import repository
from luthier.errors import Failure, LuthierError
from luthier.service import jobs
from luthier.service.jobs import Caller
from luthier.status import Kind, State
from luthier.tables import File, Job


def record_upload(
    session: Session,
    caller: Caller,
    *,
    file_id: str,
    work_id: str,
    filename: str,
    purpose: str,
    size_bytes: int,
    sha256: str,
    storage_key: str,
    report: dict[str, Any] | None,
    now: datetime,
    expires_at: datetime | None = None,
) -> File:
    """Store the row of a file whose bytes are in place.

    Args:
        report: the validation report of a file that was checked whole; None queues its validation.
    """
    file = File(
        id=file_id,
        project_id=caller.project_id,
        api_key_id=caller.api_key_id,
        filename=filename,
        purpose=purpose,
        size_bytes=size_bytes,
        sha256=sha256,
        storage_key=storage_key,
        status="uploaded" if report is None else "processed",
        report=report,
        created_at=now,
        expires_at=expires_at,
    )
    session.add(file)
    session.flush()
    if report is None:
        jobs.add_work(session, caller.project_id, Kind.VALIDATE, work_id=work_id, file=file, now=now)
    return file


def delete_file(session: Session, file: File, *, now: datetime) -> str:
    """Remove a file's row; the caller removes the bytes under the returned storage key after the commit.

    Raises:
        LuthierError: `file_in_use`, while a job that has not ended needs it.
    """
    live = repository.live_jobs_of_file(session, file.project_id, file.id)
    if live:
        raise LuthierError(
            f"File {file.id} is used by job {live[0].id}, which has not ended: cancel it or wait",
            "file_in_use",
            "id",
        )
    for work in repository.find_open_work(session, file_id=file.id):
        jobs.request_cancel(session, work, now=now)
    session.delete(file)
    return file.storage_key


def record_validation(
    session: Session,
    file: File,
    *,
    report: dict[str, Any],
    message: str | None,
    work_ids: list[str],
    now: datetime,
) -> None:
    """Store what validation found, and move on the jobs that waited for it.

    Args:
        message: what is wrong with the file; None for a valid one.
        work_ids: ids for preparations, at least as many as jobs wait (see `waiting_jobs`).
    """
    file.report = report
    file.status, file.status_details = ("processed", None) if message is None else ("error", message)
    session.flush()
    for job, work_id in zip(waiting_jobs(session, file), work_ids, strict=False):
        param = "training_file" if job.training_file == file.id else "validation_file"
        if message is not None:
            jobs.fail(session, job, Failure(f"invalid_{param}", message, param), now=now)
        elif _all_processed(session, job):
            jobs.queue_for_training(session, job, work_id=work_id, now=now)


def waiting_jobs(session: Session, file: File) -> list[Job]:
    """Jobs that wait for the validation of a file."""
    live = repository.live_jobs_of_file(session, file.project_id, file.id)
    return [job for job in live if job.state == State.VALIDATING]


def _all_processed(session: Session, job: Job) -> bool:
    ids = [file_id for file_id in (job.training_file, job.validation_file) if file_id is not None]
    files = [session.get(File, file_id) for file_id in ids]
    return all(file is not None and file.status == "processed" for file in files)
