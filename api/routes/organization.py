"""`/v1/organization/...`: projects, and the audit log. `api.access` lets only keys of admins come here."""

from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request
from sqlalchemy.orm import Session

from api.dependencies import After, CallerOf, InstallationOf, Limit, body_of
from api.openapi import json_body
from api.schemas.organization import AuditLogObject, ProjectObject, audit_log_object, project_object
from api.schemas.organization_requests import CreateProjectRequest, UpdateProjectRequest
from api.schemas.pages import ListPage, page_of
from luthier.database import clock
from luthier.ids import new_id
from luthier.service import audit_logs, projects
from luthier.service.audit_logs import AuditFilter
from luthier.tables import Project

MAX_LIMIT = 100
_CANCELLED_AT_ONCE = 100

router = APIRouter(prefix="/v1/organization", tags=["organization"])


@router.post(
    "/projects",
    operation_id="create_project",
    openapi_extra=json_body(CreateProjectRequest),
)
def create_project(
    body: Annotated[CreateProjectRequest, Depends(body_of(CreateProjectRequest))],
    installation: InstallationOf,
    caller: CallerOf,
) -> ProjectObject:
    """Make a project, which owns files, jobs, keys and secrets; quotas replace those of the settings."""
    project_id = new_id("proj")

    def create(session: Session) -> ProjectObject:
        project = projects.create(
            session,
            caller.organization_id,
            project_id=project_id,
            name=body.name,
            quotas=body.quotas.model_dump(exclude_unset=True) if body.quotas else None,
            now=clock(session),
        )
        return project_object(project)

    def find(session: Session) -> ProjectObject | None:
        project = session.get(Project, project_id)
        return project_object(project) if project else None

    return installation.database.run(create, recall=find)


@router.get("/projects", operation_id="list_projects")
def list_projects(
    *,
    installation: InstallationOf,
    caller: CallerOf,
    after: After = None,
    limit: Limit = 20,
    include_archived: bool = False,
) -> ListPage[ProjectObject]:
    """List projects, newest first."""
    with installation.database.reading() as session:
        page = projects.list_projects(
            session,
            caller.organization_id,
            after=after,
            limit=min(limit, MAX_LIMIT),
            with_archived=include_archived,
        )
    return page_of([project_object(row) for row in page.data], has_more=page.has_more)


@router.get("/projects/{project_id}", operation_id="get_project")
def get_project(project_id: str, installation: InstallationOf, caller: CallerOf) -> ProjectObject:
    """One project."""
    with installation.database.reading() as session:
        return project_object(projects.get_project(session, caller.organization_id, project_id))


@router.post(
    "/projects/{project_id}", operation_id="update_project", openapi_extra=json_body(UpdateProjectRequest)
)
def update_project(
    project_id: str,
    body: Annotated[UpdateProjectRequest, Depends(body_of(UpdateProjectRequest))],
    installation: InstallationOf,
    caller: CallerOf,
) -> ProjectObject:
    """Change a project's name or quotas."""

    def change(session: Session) -> ProjectObject:
        project = projects.get_open_project(session, caller.organization_id, project_id)
        if body.name is not None:
            project.name = body.name
        if "quotas" in body.model_fields_set:
            project.quotas = body.quotas.model_dump(exclude_unset=True) if body.quotas else None
        session.flush()
        return project_object(project)

    return installation.database.run(change)


@router.post("/projects/{project_id}/archive", operation_id="archive_project")
def archive_project(project_id: str, installation: InstallationOf, caller: CallerOf) -> ProjectObject:
    """Close a project for good: its keys are refused, and its jobs that have not ended are cancelled."""

    def archive(session: Session) -> ProjectObject:
        project = projects.get_project(session, caller.organization_id, project_id)
        projects.archive(session, project, now=clock(session))
        return project_object(project)

    archived = installation.database.run(archive)
    # Where this breaks off, the dispatcher goes on with it.
    while installation.database.run(_cancel_some):
        pass
    return archived


@router.get("/audit_logs", operation_id="list_audit_logs")
def list_audit_logs(
    *,
    request: Request,
    installation: InstallationOf,
    caller: CallerOf,
    after: After = None,
    before: Annotated[str | None, Query(description="Id of the first row of the page behind")] = None,
    limit: Limit = 20,
) -> ListPage[AuditLogObject]:
    """List who changed what, newest first.

    `effective_at[gt|gte|lt|lte]`, `event_types[]`, `actor_ids[]`, `project_ids[]` and `resource_ids[]` pick
    some; an actor is known by the id of its key.
    """
    with installation.database.reading() as session:
        page = audit_logs.list_logs(
            session,
            caller.organization_id,
            AuditFilter.of(request.query_params.multi_items()),
            after=after,
            before=before,
            limit=min(limit, MAX_LIMIT),
        )
    return page_of([audit_log_object(row) for row in page.data], has_more=page.has_more)


def _cancel_some(session: Session) -> int:
    return projects.cancel_left(session, limit=_CANCELLED_AT_ONCE, now=clock(session))
