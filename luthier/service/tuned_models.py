"""Models that jobs have made, and their checkpoints: found by name, shown to other projects, deleted.

A name is `ft:...`, of a checkpoint with `:ckpt-step-N` behind it; the id of a checkpoint stands for its name.
Who may see a model of another project has a permission on that very name.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from luthier import repository
from luthier.errors import LuthierError, invalid, not_found, printable
from luthier.service.endings import checkpoint_name
from luthier.service.jobs import Caller
from luthier.status import FINAL, LIVE, State
from luthier.tables import Artifact, Checkpoint, CheckpointPermission, Job, Project, in_state

_OF_CHECKPOINT = re.compile(r"(?P<model>ft:.+):ckpt-step-(?P<step>\d{1,9})", re.DOTALL)
_CHECKPOINT_ID = "ftckpt_"
# Artifacts that are the model itself; what tells of the run stays.
_WEIGHTS = ("adapter", "model")


@dataclass(frozen=True)
class TunedModel:
    """A model that a job has left, or one of its checkpoints."""

    name: str
    job: Job
    checkpoint: Checkpoint | None
    created_at: datetime


def list_newest(session: Session, caller: Caller, *, limit: int) -> list[TunedModel]:
    """The newest jobs' models of a project, checkpoints as many, and what others let it see, newest first."""
    jobs = repository.list_tuned_jobs(session, caller.project_id, limit=limit)
    found = [_of_job(job) for job in jobs]
    for checkpoint, job in repository.find_checkpoints(session, caller.project_id, limit=limit):
        found.append(_of_checkpoint(checkpoint, job, caller.organization_id))
    granted = select(CheckpointPermission).where(CheckpointPermission.granted_project_id == caller.project_id)
    for permission in session.scalars(granted.order_by(CheckpointPermission.created_at.desc()).limit(limit)):
        model = _find_in(session, permission.project_id, caller.organization_id, permission.model)
        found.extend([] if model is None else [model])
    return sorted(found, key=lambda model: (model.created_at, model.name), reverse=True)


def find(session: Session, caller: Caller, name: str) -> TunedModel | None:
    """A model that a project has or may see."""
    own = find_own(session, caller, name)
    if own is not None:
        return own
    query = select(CheckpointPermission.project_id).where(
        CheckpointPermission.granted_project_id == caller.project_id, CheckpointPermission.model == name
    )
    owner = session.scalars(query.limit(1)).one_or_none()
    return None if owner is None else _find_in(session, owner, caller.organization_id, name)


def find_own(session: Session, caller: Caller, name: str) -> TunedModel | None:
    """A model of a project itself."""
    return _find_in(session, caller.project_id, caller.organization_id, name)


def remove(session: Session, caller: Caller, name: str, *, now: datetime) -> list[str]:
    """Delete a model; its job stays, and all that tells of how it was made.

    Returns:
        Storage keys, whose bytes the caller removes after the commit.
    Raises:
        LuthierError: `model_not_found`; `insufficient_permissions`, where it is another project's;
            `model_in_use`, while a job that has not ended needs it.
    """
    model = find(session, caller, name)
    if model is None:
        raise not_found("model", name, "model_not_found", "model")
    if model.job.project_id != caller.project_id:
        text = f"{printable(name)} belongs to another project, which alone may delete it"
        raise LuthierError(text, "insufficient_permissions", "model")
    session.refresh(model.job, with_for_update=True)
    _refuse_used(session, model)
    permissions = select(CheckpointPermission).where(
        CheckpointPermission.project_id == caller.project_id, CheckpointPermission.model == model.name
    )
    # One by one: the audit log sees no other deletions.
    for permission in session.scalars(permissions).all():
        session.delete(permission)
    if model.checkpoint is not None:
        return _deleted(session, _of_step(session, model.checkpoint))
    model.job.model_deleted_at = now
    weights = [item for item in repository.list_artifacts(session, model.job.id) if item.kind in _WEIGHTS]
    return _deleted(session, weights)


def require_own(session: Session, caller: Caller, name: str) -> TunedModel:
    """A model of a project itself; raises LuthierError `model_not_found`."""
    model = find_own(session, caller, name)
    if model is None:
        raise not_found("model or checkpoint", name, "model_not_found", "checkpoint")
    return model


def permit(
    session: Session, caller: Caller, name: str, grants: Sequence[tuple[str, str]], *, now: datetime
) -> list[CheckpointPermission]:
    """Let projects of the same organisation see a model; who may already keeps the permission there is.

    Args:
        grants: a project's id, and the id of its permission where a new one is made.
    Raises:
        LuthierError: `model_not_found`; `invalid_value`, for a project that is not there.
    """
    model = require_own(session, caller, name)
    # Held, so that of two that permit the same at once the second one finds what the first one made.
    session.refresh(model.job, with_for_update=True)
    return [_permit_one(session, caller, model, *grant, now=now) for grant in dict(grants).items()]


def get_permission(session: Session, caller: Caller, name: str, permission_id: str) -> CheckpointPermission:
    """One permission on a model; raises LuthierError `not_found`."""
    model = require_own(session, caller, name)
    found = session.get(CheckpointPermission, permission_id)
    if found is None or (found.project_id, found.model) != (caller.project_id, model.name):
        raise not_found("permission", permission_id, param="permission_id")
    return found


def _find_in(session: Session, project_id: str, organization_id: str, name: str) -> TunedModel | None:
    job = repository.find_tuned_job(session, project_id, name)
    if job is not None:
        return _of_job(job)
    for checkpoint, owner in _candidates(session, project_id, name):
        model = _of_checkpoint(checkpoint, owner, organization_id)
        if name in (model.name, checkpoint.id):
            return model
    return None


def _candidates(session: Session, project_id: str, name: str) -> Sequence[tuple[Checkpoint, Job]]:
    """Checkpoints that may have this name, or this id, the newest first."""
    if name.startswith(_CHECKPOINT_ID):
        return repository.find_checkpoints(session, project_id, checkpoint_id=name)
    parts = _OF_CHECKPOINT.fullmatch(name)
    if parts is None:
        return []
    beginning = f"ftjob-{parts['model'].rpartition(':')[2]}"
    return repository.find_checkpoints(
        session, project_id, step=int(parts["step"]), job_id_beginning=beginning
    )


def _of_job(job: Job) -> TunedModel:
    return TunedModel(job.fine_tuned_model or "", job, None, job.finished_at or job.created_at)


def _of_checkpoint(checkpoint: Checkpoint, job: Job, organization_id: str) -> TunedModel:
    name = checkpoint_name(checkpoint, job, organization_id)
    return TunedModel(name, job, checkpoint, checkpoint.created_at)


def _refuse_used(session: Session, model: TunedModel) -> None:
    if model.checkpoint is None:
        uses = Job.request["model"].as_string() == model.name
    else:
        uses = Job.resume_from.in_([row.id for row in _of_step(session, model.checkpoint)])
    query = select(Job.id).where(in_state(*LIVE), Job.project_id == model.job.project_id, uses)
    user = session.scalars(query.limit(1)).one_or_none()
    # A job that has not ended may go on from any of its checkpoints.
    if user is None and model.checkpoint is not None and State(model.job.state) not in FINAL:
        user = model.job.id
    if user is not None:
        text = f"{model.name} is used by job {user}, which has not ended: cancel it or wait"
        raise LuthierError(text, "model_in_use", "model")


def _of_step(session: Session, checkpoint: Checkpoint) -> list[Checkpoint]:
    """All of a job that share a name: a run that went back may have made a step anew."""
    own = repository.all_checkpoints(session, checkpoint.job_id)
    return [other for other in own if other.step == checkpoint.step]


def _deleted(session: Session, rows: Sequence[Checkpoint | Artifact]) -> list[str]:
    """Delete rows; returns their storage keys."""
    for row in rows:
        session.delete(row)
    session.flush()
    return [row.storage_key for row in rows]


def _permit_one(
    session: Session, caller: Caller, model: TunedModel, project_id: str, new_id: str, *, now: datetime
) -> CheckpointPermission:
    project = session.get(Project, project_id)
    if project is None or project.organization_id != caller.organization_id:
        raise invalid(f"There is no project {printable(project_id)!r}", "project_ids")
    known = select(CheckpointPermission).where(
        CheckpointPermission.project_id == caller.project_id,
        CheckpointPermission.model == model.name,
        CheckpointPermission.granted_project_id == project_id,
    )
    permission = session.scalars(known).one_or_none()
    if permission is None:
        permission = CheckpointPermission(
            id=new_id,
            project_id=caller.project_id,
            job_id=model.job.id,
            model=model.name,
            granted_project_id=project_id,
            created_at=now,
        )
        session.add(permission)
        session.flush()
    return permission
