"""Errands: short work on files that a caller waits for: a preview, a measurement, a report for a model.

They run on the cpu queue, before preparation, in a child of the cpu agent and never in the API. The same
question under the same key finds the work that is under way, or its answer, so that whoever gave up waiting
asks again. What an errand found is forgotten after a while, and with its file.
"""

import hashlib
import json
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter
from sqlalchemy import delete
from sqlalchemy.orm import Session

from luthier import repository
from luthier.service import control, jobs
from luthier.service.queue_order import ERRAND_PRIORITY
from luthier.spec import Columns, DatasetEntry, DatasetRequest, Frozen
from luthier.status import FINAL, DesiredState, Kind, State
from luthier.tables import File, Job, JobEvent, Run

KEPT_SECONDS = 3600.0
# A failure is told once more to who asks again at once, and is not an answer for long.
_FAILURE_SECONDS = 60.0


class ErrandFile(Frozen):
    """A file of an errand and how it is read, as in `SourceFile`."""

    file_id: str
    param: Literal["training_file", "validation_file", "dataset.files", "file"] = "file"
    weight: float = 1.0
    columns: Columns | None = None
    entry: DatasetEntry | None = None


class _ForModel(Frozen):
    """An errand that sees files as a model does."""

    model: str
    dataset: DatasetRequest
    max_seq_length: int


class PreviewErrand(_ForModel):
    """Show `count` rows behind the first `offset`."""

    task: Literal["preview"] = "preview"
    file: ErrandFile
    offset: int
    count: int


class ReportErrand(_ForModel):
    """Validate a file again, with what its rows are for a model, and which of them `against` has too."""

    task: Literal["report"] = "report"
    file: ErrandFile
    against: ErrandFile | None = None


class MeasureErrand(_ForModel):
    """Count the tokens of the first `max_rows` rows of each file."""

    task: Literal["measure"] = "measure"
    files: Annotated[tuple[ErrandFile, ...], Field(min_length=1)]
    max_rows: int


class ConvertErrand(Frozen):
    """Make Alpaca rows of a file; the errand's subject is the file that is made."""

    task: Literal["convert"] = "convert"
    file: ErrandFile


Look = PreviewErrand | ReportErrand | MeasureErrand
Errand = Annotated[Look | ConvertErrand, Field(discriminator="task")]
_READER: TypeAdapter[Look | ConvertErrand] = TypeAdapter(Errand)


def key_of(*parts: object) -> str:
    """The key of a question, from all that its answer depends on."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def read_errand(work: Job) -> Look | ConvertErrand:
    """What an errand's row asks for."""
    return _READER.validate_python(work.request, strict=False)


def find(session: Session, project_id: str, key: str, *, now: datetime) -> Job | None:
    """The work that answers, or will answer, what the key stands for."""
    work = repository.find_errand(session, project_id, key)
    if work is None or work.desired_state == DesiredState.CANCEL or work.state == State.CANCELLED:
        return None
    is_old = work.finished_at is not None and work.finished_at < now - timedelta(seconds=_FAILURE_SECONDS)
    return None if work.state in (State.FAILED, State.QUARANTINED) and is_old else work


def ask(session: Session, look: Look, *, key: str, subject: File, work_id: str, now: datetime) -> Job:
    """The work for a look at a file: found, or queued as `work_id`."""
    known = find(session, subject.project_id, key, now=now)
    return known or queue(session, Kind.VALIDATE, look, key=key, subject=subject, work_id=work_id, now=now)


def queue(
    session: Session,
    kind: Kind,
    errand: Look | ConvertErrand,
    *,
    key: str,
    subject: File,
    work_id: str,
    now: datetime,
) -> Job:
    """Queue an errand before all other work of its queue."""
    model = None if isinstance(errand, ConvertErrand) else errand.model
    work = jobs.new_work(
        subject.project_id,
        kind,
        work_id=work_id,
        file=subject,
        model=model,
        request=errand.model_dump(mode="json"),
        work_key=key,
        priority=ERRAND_PRIORITY,
        now=now,
    )
    return jobs.add_work(session, work)


def forget_of_file(session: Session, file: File, *, now: datetime) -> list[str]:
    """Drop the answers about a file and cancel what is under way; returns storage keys to delete."""
    for work in repository.find_open_work(session, file_id=file.id):
        control.request_cancel(session, work, now=now)
    return _forget(session, repository.list_ended_errands(session, file_id=file.id))


def forget_old(session: Session, *, limit: int, now: datetime) -> list[str]:
    """Drop answers that nobody will ask for again; returns storage keys to delete after the commit."""
    before = now - timedelta(seconds=KEPT_SECONDS)
    return _forget(session, repository.list_ended_errands(session, ended_before=before, limit=limit))


def _forget(session: Session, ended: Sequence[Job]) -> list[str]:
    ids = [work.id for work in ended if State(work.state) in FINAL]
    if not ids:
        return []
    for table, column in ((JobEvent, JobEvent.job_id), (Run, Run.job_id), (Job, Job.id)):
        session.execute(delete(table).where(column.in_(ids)).execution_options(synchronize_session=False))
    return ids
