"""The end of a job's record: what its owner deletes goes, and a bare row stays for what is counted.

Checkpoints, artifacts, the tuned model, events, metrics and logs go. Files stay, the result file too: they
are deleted as files. The storage keys that are returned are deleted after the commit, as retention does it.
"""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import delete, or_, select
from sqlalchemy.orm import Session

from luthier import repository
from luthier.errors import LuthierError
from luthier.status import FINAL, LIVE, State, public_status
from luthier.tables import Job, JobEvent, JobFile, JobMetadata, Metric, Run, in_state

# What the sums of `luthier.job_sums` ask of a row stays; of the request, what makes it one.
_FORGOTTEN = (
    "name",
    "suffix",
    "user_metadata",
    "hyperparameters",
    "prepared",
    "plan",
    "result",
    "result_file",
    "training_file",
    "validation_file",
    "resume_from",
    "parent_job_id",
    "fine_tuned_model",
    "error_message",
    "error_param",
    "error_details",
)


def delete_job(session: Session, job: Job, *, now: datetime) -> list[str]:
    """Delete a job that has ended, and the work that served it.

    Returns:
        Storage keys, whose bytes the caller removes after the commit.

    Raises:
        LuthierError: `job_not_ended`; `job_in_use`, while another job starts from what this one left.
    """
    session.refresh(job, with_for_update=True)
    if State(job.state) not in FINAL:
        status = public_status(State(job.state))
        raise LuthierError(f"Job {job.id} has not ended: it is {status}. Cancel it first", "job_not_ended")
    # A retry holds the checkpoint that it starts from until it has named it, so it is looked for afterwards.
    checkpoint_ids, keys = _drop_stored(session, job)
    if (heir := _find_heir(session, job, checkpoint_ids)) is not None:
        raise LuthierError(
            f"Job {heir} starts from {job.id} and has not ended: cancel it or wait", "job_in_use"
        )
    keys += _log_keys(session, job)
    for work in session.scalars(select(Job).where(Job.subject_job_id == job.id)).all():
        _drop_record(session, work)
        session.delete(work)
    _drop_record(session, job)
    session.execute(delete(JobFile).where(JobFile.job_id == job.id))
    session.execute(delete(JobMetadata).where(JobMetadata.job_id == job.id))
    _blank(job, now)
    session.flush()
    return keys


def _find_heir(session: Session, job: Job, checkpoint_ids: Sequence[str]) -> str | None:
    """The id of a job that has not ended and that starts from the model or a checkpoint of this one."""
    query = select(Job.id).where(Job.project_id == job.project_id, repository.IS_TRAINING, in_state(*LIVE))
    starts = [Job.resume_from.in_(checkpoint_ids)]
    if job.fine_tuned_model is not None:
        starts.append(Job.request["model"].as_string() == job.fine_tuned_model)
    return session.scalars(query.where(or_(*starts)).limit(1)).first()


def _drop_stored(session: Session, job: Job) -> tuple[list[str], list[str]]:
    """Take away the rows of what lies in storage, one by one, so that the project's bytes are counted.

    Returns the ids of the checkpoints, and the storage keys.
    """
    checkpoints = repository.all_checkpoints(session, job.id)
    artifacts = repository.list_artifacts(session, job.id)
    for row in (*checkpoints, *artifacts):
        session.delete(row)
    session.flush()
    folders = {row.storage_key.removesuffix(f"/{row.name}") for row in artifacts}
    return [row.id for row in checkpoints], [*(row.storage_key for row in checkpoints), *sorted(folders)]


def _log_keys(session: Session, job: Job) -> list[str]:
    """Where the logs of all runs lie, those of its preparation too."""
    served = select(Job.id).where(Job.subject_job_id == job.id)
    runs = session.execute(
        select(Run.job_id, Run.epoch).where(Run.job_id.in_([job.id, *session.scalars(served)]))
    )
    return [f"{job_id}/e{epoch:04d}/log.txt" for job_id, epoch in runs]


def _drop_record(session: Session, job: Job) -> None:
    for table in (JobEvent, Metric, Run):
        session.execute(delete(table).where(table.job_id == job.id))


def _blank(job: Job, now: datetime) -> None:
    trained = job.trained_tokens or (job.progress or {}).get("trained_tokens")
    request = {"model": job.request["model"], "training_file": job.request["training_file"]}
    method = (job.request.get("qlora") or {}).get("method")
    job.request = request | ({"qlora": {"method": method}} if method else {})
    job.trained_tokens, job.progress, job.labels = trained, None, ""
    for name in _FORGOTTEN:
        setattr(job, name, None)
    job.deleted_at = now
