"""Things with defaults, so that a test names only what matters to it."""

import itertools
from datetime import UTC, datetime
from typing import Any

from sqlalchemy.orm import Session

from luthier.service import access, claims, endings, files, jobs
from luthier.service.jobs import Caller
from luthier.spec import JobRequest, PreparedData, PreparedSplit
from luthier.status import Queue
from luthier.tables import File, Job, Project

NOW = datetime(2026, 1, 1, tzinfo=UTC)
CALLER = Caller("org-local", "proj-default", "key-test")
OWNER = "host/gpu0#instance"

_numbers = itertools.count(1)


def make_request(**fields: Any) -> JobRequest:
    """A job's body with the least that it needs."""
    return JobRequest.model_validate({"model": "tiny", "training_file": "file-train"} | fields)


def create_file(session: Session, file_id: str = "file-train", **fields: Any) -> File:
    """A validated training file, or what `fields` make of it; `report=None` leaves it to be validated."""
    access.ensure_project(session, now=NOW)
    defaults: dict[str, Any] = {
        "filename": "rows.jsonl",
        "purpose": "fine-tune",
        "size_bytes": 10,
        "sha256": "0" * 64,
        "storage_key": f"files/{file_id}",
        "report": {"valid": True},
        "work_id": f"work-{next(_numbers)}",
        "now": NOW,
    }
    return files.record_upload(session, fields.pop("caller", CALLER), file_id=file_id, **defaults | fields)


def create_project(session: Session, project_id: str, **fields: Any) -> Project:
    """A project beside the default one, with a validated training file `file-of-<id>`."""
    access.ensure_project(session, now=NOW)
    project = Project(
        id=project_id, organization_id=CALLER.organization_id, name=project_id, created_at=NOW, **fields
    )
    session.add(project)
    session.flush()
    create_file(session, f"file-of-{project_id}", caller=caller_of(project_id))
    return project


def caller_of(project_id: str) -> Caller:
    """Somebody of a project."""
    return Caller(CALLER.organization_id, project_id, "key-test")


def create_job(session: Session, job_id: str = "ftjob-1", *, now: datetime = NOW, **fields: Any) -> Job:
    """A submitted job over a validated file; `project_id` names another project that was created."""
    project_id = fields.pop("project_id", CALLER.project_id)
    if project_id != CALLER.project_id:
        fields |= {"training_file": f"file-of-{project_id}"}
    if session.get(File, fields.get("training_file", "file-train")) is None:
        create_file(session, fields.get("training_file", "file-train"))
    request, work_id = make_request(**fields), f"work-{job_id}"
    return jobs.submit(
        session, caller_of(project_id), request, job_id=job_id, work_id=work_id, seed=7, now=now
    )


def create_prepared_job(session: Session, job_id: str = "ftjob-1", **fields: Any) -> Job:
    """A job whose data is prepared: an agent may claim it."""
    job = create_job(session, job_id, **fields)
    prepare(session)
    return job


def prepare(session: Session, **fields: Any) -> None:
    """Do the preparation that comes next."""
    work = claim(session, Queue.CPU)
    assert work is not None
    endings.start_finalizing(session, work.lease, now=NOW)
    split = PreparedSplit(
        path="prepared/train.parquet", sha256="0" * 64, row_count=64, token_count=640, trained_token_count=320
    )
    data = PreparedData(train=(split,))
    endings.succeed_preparation(
        session, work.lease, prepared=data, stats={}, max_seq_length=128, now=NOW, **fields
    )


def create_tuned_job(session: Session, job_id: str = "ftjob-1", **fields: Any) -> Job:
    """A job that has left a model."""
    job = create_prepared_job(session, job_id, **fields)
    run = claim(session)
    assert run is not None
    endings.start_finalizing(session, run.lease, now=NOW)
    result_file = File(
        id=f"file-of-{job_id}", project_id=job.project_id, filename="m.csv", purpose="fine-tune-results",
        size_bytes=1, sha256="1" * 64, storage_key="x", status="processed", created_at=NOW,
    )  # fmt: skip
    endings.succeed_training(session, run.lease, artifacts=[], result={}, result_file=result_file, now=NOW)
    return job


def claim(
    session: Session, queue: Queue = Queue.TRAIN, *, owner: str = OWNER, now: datetime = NOW, **fields: Any
) -> claims.Claim | None:
    """Claim as an agent does."""
    return claims.claim(
        session, queue, owner=owner, host="host", device="cpu", lease_seconds=180, now=now, **fields
    )
