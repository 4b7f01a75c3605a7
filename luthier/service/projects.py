"""Projects of an organisation: what owns files, jobs, keys and secrets, and has quotas.

An archived one is closed for good: its keys are refused, its live jobs are cancelled, and what it has can be
read and deleted by the organisation's admins alone.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, select
from sqlalchemy.orm import Session

from luthier.errors import LuthierError, not_found
from luthier.repository import Page, list_owned
from luthier.service import control
from luthier.service.access import ADMIN, archived
from luthier.status import LIVE, DesiredState, Kind
from luthier.tables import ApiKey, Job, Project, in_state


def create(
    session: Session,
    organization_id: str,
    *,
    project_id: str,
    name: str,
    quotas: Mapping[str, Any] | None,
    now: datetime,
) -> Project:
    """Make a project."""
    project = Project(
        id=project_id,
        organization_id=organization_id,
        name=name,
        quotas=dict(quotas) if quotas else None,
        created_at=now,
    )
    session.add(project)
    session.flush()
    return project


def get_project(session: Session, organization_id: str, project_id: str) -> Project:
    """A project of an organisation.

    Raises:
        LuthierError: `project_not_found`, also for one of another organisation.
    """
    project = session.get(Project, project_id)
    if project is None or project.organization_id != organization_id:
        raise not_found("project", project_id, "project_not_found", "project_id")
    return project


def list_projects(
    session: Session,
    organization_id: str,
    *,
    after: str | None,
    limit: int,
    with_archived: bool,
) -> Page[Project]:
    """Projects of an organisation, newest first."""
    conditions: list[ColumnElement[bool]] = [Project.organization_id == organization_id]
    if not with_archived:
        conditions.append(Project.archived_at.is_(None))
    return list_owned(session, Project, *conditions, after=after, limit=limit)


def get_open_project(session: Session, organization_id: str, project_id: str) -> Project:
    """A project that takes new things.

    Raises:
        LuthierError: `project_not_found` or `project_archived`.
    """
    project = get_project(session, organization_id, project_id)
    if project.archived_at is not None:
        raise archived(project_id)
    return project


def archive(session: Session, project: Project, *, now: datetime) -> None:
    """Close a project; nothing happens where it is closed. `cancel_left` then ends its jobs.

    Raises:
        LuthierError: `invalid_value`, where valid keys of the organisation belong to it: they would be lost.
    """
    admins = select(ApiKey.id).where(
        ApiKey.project_id == project.id, ApiKey.revoked_at.is_(None), ApiKey.scopes.contains(ADMIN)
    )
    if (key_id := session.scalars(admins.limit(1)).one_or_none()) is not None:
        text = f"Project {project.id} is the home of admin key {key_id}: revoke its admin keys first"
        raise LuthierError(text, param="project_id")
    project.archived_at = project.archived_at or now
    session.flush()


def cancel_left(session: Session, *, limit: int, now: datetime) -> int:
    """Cancel some training jobs of archived projects that have not ended; returns how many."""
    archived = select(Project.id).where(Project.archived_at.is_not(None))
    query = (
        select(Job)
        .where(Job.project_id.in_(archived), Job.kind == Kind.TRAIN, in_state(*LIVE))
        .where(Job.desired_state != DesiredState.CANCEL)
        .order_by(Job.id)
        .limit(limit)
    )
    found = session.scalars(query).all()
    for job in found:
        control.request_cancel(session, job, now=now)
    return len(found)
