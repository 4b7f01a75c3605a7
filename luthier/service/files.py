"""What users do with files, and what validation finds out about them.

Who submits a job holds the rows of its files (`jobs.files_of`), and who ends a validation or deletes a file
locks its row, and those of the jobs that wait for it. So whichever comes second sees what the first has done.
Validations and other work on a file are locked before the file.
"""

from collections.abc import Callable
from datetime import datetime
from typing import Any

from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from luthier import repository
from luthier.errors import Failure, LuthierError, invalid, not_found, printable
from luthier.service import control, errands, jobs
from luthier.service.jobs import Caller
from luthier.spec import DatasetEntry, JobRequest
from luthier.status import Kind
from luthier.tables import File, Job

# In the result of a conversion whose file was withdrawn: why.
_REFUSED = "refused"


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
    message: str | None = None,
    expires_at: datetime | None = None,
) -> File:
    """Store the row of a file whose bytes are in place.

    Args:
        report: the validation report of a file that was checked whole; None queues its validation.
        message: what is wrong with it; None for a valid one.
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
        status="uploaded",
        report=report,
        created_at=now,
        expires_at=expires_at,
    )
    session.add(file)
    session.flush()
    set_report(session, file, report=report, message=message, new_work_id=lambda: work_id, now=now)
    return file


def set_report(
    session: Session,
    file: File,
    *,
    report: dict[str, Any] | None,
    message: str | None,
    new_work_id: Callable[[], str],
    now: datetime,
) -> None:
    """Store what was found in a file, or queue its validation where it was not read whole.

    A validation that is under way is called off: it may read the rows in another way.

    Args:
        new_work_id: gives ids for the validation or, as in `record_validation`, for preparations.
    """
    for work in repository.find_open_work(session, file_id=file.id):
        if work.task is None:
            control.request_cancel(session, work, now=now)
    if report is None:
        file.status, file.status_details = "uploaded", None
        again = jobs.new_work(file.project_id, Kind.VALIDATE, work_id=new_work_id(), file=file, now=now)
        jobs.add_work(session, again)
    else:
        record_validation(session, file, report=report, message=message, new_work_id=new_work_id, now=now)


def register(session: Session, file: File, *, name: str, entry: DatasetEntry) -> None:
    """Give a file a name within its project, and say how its rows are read.

    Jobs that were submitted before keep reading it as they did. The caller checks the file by the entry.

    Raises:
        LuthierError: `invalid_value`, where another file has the name.
    """
    project_id = file.project_id
    try:
        # The index decides, since two may ask for a name at once.
        with session.begin_nested():
            file.dataset_name, file.dataset_entry = name, entry.model_dump(mode="json")
    except IntegrityError as error:
        other = repository.find_dataset(session, project_id, name)
        owner = other.id if other else "another file"
        raise invalid(
            f"The name {printable(name)!r} belongs to {owner}: choose another, or DELETE "
            f"/v1/files/{owner}/register first",
            "name",
        ) from error


def unregister(session: Session, file: File) -> None:
    """Take a file's name and entry away; nothing happens where it has none."""
    file.dataset_name = file.dataset_entry = None
    session.flush()


def convert(
    session: Session,
    caller: Caller,
    source: File,
    errand: errands.ConvertErrand,
    *,
    key: str,
    filename: str,
    file_id: str,
    work_id: str,
    now: datetime,
) -> File:
    """The file that a conversion makes: one that the same question made before, else a new one.

    A new one is `uploaded` and empty until its work and, after it, its validation are done.
    """
    known = errands.find(session, caller.project_id, key, now=now)
    made = session.get(File, known.subject_file_id) if known is not None else None
    if made is not None and made.status != "error":
        return made
    file = File(
        id=file_id,
        project_id=caller.project_id,
        api_key_id=caller.api_key_id,
        filename=filename,
        purpose=source.purpose,
        size_bytes=0,
        sha256="",
        storage_key=f"files/{file_id}",
        status="uploaded",
        created_at=now,
    )
    session.add(file)
    session.flush()
    errands.queue(session, Kind.PREPARE, errand, key=key, subject=file, work_id=work_id, now=now)
    return file


def record_conversion(
    session: Session, file: File, *, size_bytes: int, sha256: str, work_id: str, now: datetime
) -> None:
    """A conversion has put its bytes in place; they are validated like any others."""
    file.size_bytes, file.sha256 = size_bytes, sha256
    session.flush()
    work = jobs.new_work(file.project_id, Kind.VALIDATE, work_id=work_id, file=file, now=now)
    jobs.add_work(session, work)


def delete_file(session: Session, file: File, *, now: datetime) -> list[str]:
    """Remove a file's row, and what was prepared from it where no other file has its content.

    Returns:
        Storage keys, whose bytes the caller removes after the commit.

    Raises:
        LuthierError: `file_in_use`, while a job that has not ended needs it; `file_not_found`, where somebody
            else has just deleted it.
    """
    keys = errands.forget_of_file(session, file, now=now)
    if session.get(File, file.id, with_for_update=True) is None:
        raise not_found("File object", file.id, "file_not_found")
    live = repository.find_live_job_of_file(session, file.project_id, file.id)
    if live is not None:
        raise LuthierError(
            f"File {file.id} is used by job {live.id}, which has not ended: cancel it or wait",
            "file_in_use",
            "id",
        )
    keys += _forget_prepared(session, file)
    session.delete(file)
    return [file.storage_key, *keys]


def withdraw(session: Session, file_id: str) -> list[str]:
    """Take back a file that a conversion could not make; its errand still tells others why.

    Nothing happens where it is gone, or where a job that passes over bad rows uses it already.

    Returns:
        Storage keys, as `delete_file`.
    """
    file = session.get(File, file_id, with_for_update=True)
    if file is None or repository.find_live_job_of_file(session, file.project_id, file.id) is not None:
        return []
    for work in repository.list_ended_errands(session, file_id=file.id):
        work.result = {_REFUSED: file.status_details}
    keys = _forget_prepared(session, file)
    session.delete(file)
    return [file.storage_key, *keys]


def find_refusal(session: Session, file_id: str) -> str | None:
    """Why a file was withdrawn; None for one that never was, and after a while."""
    results = [work.result or {} for work in repository.list_ended_errands(session, file_id=file_id)]
    return next((result[_REFUSED] for result in results if _REFUSED in result), None)


def _forget_prepared(session: Session, file: File) -> list[str]:
    """Drop what was prepared from a file, unless another one has its content; returns storage keys."""
    if repository.has_content(session, file.project_id, file.sha256, except_id=file.id):
        return []
    found = repository.lock_prepared(session, file.project_id, file.sha256)
    for rows in found:
        session.delete(rows)
    return [rows.storage_key for rows in found]


def record_validation(
    session: Session,
    file: File,
    *,
    report: dict[str, Any],
    message: str | None,
    new_work_id: Callable[[], str],
    now: datetime,
) -> None:
    """Store what validation found, and move on the jobs that waited for it.

    Args:
        message: what is wrong with the file; None for a valid one.
        new_work_id: gives the id of the preparation of each job that moves on.
    """
    _note_finding(session, file, report, message)
    for job in repository.lock_jobs_that_await_file(session, file.project_id, file.id):
        rules = JobRequest.model_validate(job.request, strict=False).dataset
        if not jobs.is_usable(rules, file):
            jobs.fail(session, job, _failure(session, job, file), now=now)
        elif _all_checked(session, job):
            jobs.queue_for_training(session, job, work_id=new_work_id(), now=now)


def record_unreadable(session: Session, file: File, *, message: str, now: datetime) -> None:
    """Nobody could find out what is in a file; jobs that waited for that fail, whatever their rules."""
    _note_finding(session, file, {}, message)
    for job in repository.lock_jobs_that_await_file(session, file.project_id, file.id):
        jobs.fail(session, job, _failure(session, job, file), now=now)


def _note_finding(session: Session, file: File, report: dict[str, Any], message: str | None) -> None:
    file.report = report
    file.status, file.status_details = ("processed", None) if message is None else ("error", message)
    session.flush()


def _failure(session: Session, job: Job, file: File) -> Failure:
    """What a bad file means for a job that uses it."""
    use = next(use for use in repository.files_of_job(session, job.id) if use.file_id == file.id)
    code = f"invalid_{use.role}_file"
    return Failure(code, file.status_details or "The file is invalid", jobs.param_of(use.role, use.position))


def _all_checked(session: Session, job: Job) -> bool:
    """Whether a job's files are; its row is locked, so of two validations at once the second sees both."""
    ids = [use.file_id for use in repository.files_of_job(session, job.id)]
    files = [session.get(File, file_id, populate_existing=True) for file_id in ids]
    return all(file is None or file.status != "uploaded" for file in files)
