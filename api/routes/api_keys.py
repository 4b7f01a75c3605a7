"""`/v1/organization/...api_keys`: keys of projects, and of the organisation.

`api.access` lets only keys of admins come here. A key is shown in full in the answer that made it, and never
again.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Annotated, Literal, TypeVar

from fastapi import APIRouter, Depends
from sqlalchemy.orm import Session

from api.dependencies import After, CallerOf, InstallationOf, Limit, body_of, optional_body_of
from api.openapi import json_body
from api.schemas.organization import (
    AdminApiKeyDeleted,
    AdminApiKeyObject,
    ApiKeyDeleted,
    NewAdminApiKeyObject,
    NewProjectApiKeyObject,
    ProjectApiKeyObject,
    admin_key_object,
    new_admin_key_object,
    new_project_key_object,
    project_key_object,
)
from api.schemas.organization_requests import (
    CreateAdminApiKeyRequest,
    CreateApiKeyRequest,
    RotateApiKeyRequest,
    UpdateApiKeyRequest,
)
from api.schemas.pages import ListPage, page_of
from luthier.database import clock
from luthier.ids import new_id
from luthier.installation import Installation
from luthier.keys import Key, new_key
from luthier.service import access, api_keys, projects
from luthier.service.jobs import Caller
from luthier.tables import ApiKey, Project

MAX_LIMIT = 100
Shown = TypeVar("Shown")

router = APIRouter(prefix="/v1/organization", tags=["organization"])


@router.post(
    "/projects/{project_id}/api_keys",
    operation_id="create_project_api_key",
    openapi_extra=json_body(CreateApiKeyRequest),
)
def create_project_key(
    project_id: str,
    body: Annotated[CreateApiKeyRequest, Depends(body_of(CreateApiKeyRequest))],
    installation: InstallationOf,
    caller: CallerOf,
) -> NewProjectApiKeyObject:
    """Make a key of a project; `value` is shown this once."""
    key, key_id = new_key(), new_id("key")

    def show(session: Session, row: ApiKey) -> NewProjectApiKeyObject:
        return new_project_key_object(row, key.text, now=clock(session))

    def create(session: Session) -> NewProjectApiKeyObject:
        now = clock(session)
        project = projects.get_open_project(session, caller.organization_id, project_id)
        row = _record(session, installation, project, key, key_id=key_id, body=body, now=now)
        return show(session, row)

    return installation.database.run(create, recall=_recall(key_id, show))


@router.get("/projects/{project_id}/api_keys", operation_id="list_project_api_keys")
def list_project_keys(
    project_id: str, installation: InstallationOf, caller: CallerOf, after: After = None, limit: Limit = 20
) -> ListPage[ProjectApiKeyObject]:
    """List the keys of a project, newest first; revoked ones are gone."""
    with installation.database.reading() as session:
        now = clock(session)
        project = projects.get_project(session, caller.organization_id, project_id)
        page = api_keys.list_keys(
            session,
            organization_id=caller.organization_id,
            project_id=project.id,
            after=after,
            limit=min(limit, MAX_LIMIT),
        )
    return page_of([project_key_object(row, now=now) for row in page.data], has_more=page.has_more)


@router.get("/projects/{project_id}/api_keys/{api_key_id}", operation_id="get_project_api_key")
def get_project_key(
    project_id: str, api_key_id: str, installation: InstallationOf, caller: CallerOf
) -> ProjectApiKeyObject:
    """One key of a project."""
    with installation.database.reading() as session:
        now = clock(session)
        return project_key_object(_Of(caller, project_id).key(session, api_key_id), now=now)


@router.post(
    "/projects/{project_id}/api_keys/{api_key_id}",
    operation_id="update_project_api_key",
    openapi_extra=json_body(UpdateApiKeyRequest),
)
def update_project_key(
    project_id: str,
    api_key_id: str,
    body: Annotated[UpdateApiKeyRequest, Depends(body_of(UpdateApiKeyRequest))],
    installation: InstallationOf,
    caller: CallerOf,
) -> ProjectApiKeyObject:
    """Change what a key may do, or until when; known to all processes within a second."""

    def change(session: Session) -> ProjectApiKeyObject:
        now = clock(session)
        row = _Of(caller, project_id).key(session, api_key_id)
        api_keys.require_valid(row, "changed", now=now)
        given = body.model_fields_set
        if body.name is not None:
            row.name = body.name
        if body.scopes is not None:
            row.scopes = access.stored_scopes(body.scopes)
        if "expires_in_seconds" in given:
            row.expires_at = _expiry(body.expires_in_seconds, now)
        if "requests_per_minute" in given:
            row.requests_per_minute = body.requests_per_minute
        session.flush()
        return project_key_object(row, now=now)

    return installation.database.run(change)


@router.post(
    "/projects/{project_id}/api_keys/{api_key_id}/rotate",
    operation_id="rotate_project_api_key",
    openapi_extra=json_body(RotateApiKeyRequest, required=False),
)
def rotate_project_key(
    project_id: str,
    api_key_id: str,
    body: Annotated[RotateApiKeyRequest, Depends(optional_body_of(RotateApiKeyRequest))],
    installation: InstallationOf,
    caller: CallerOf,
) -> NewProjectApiKeyObject:
    """Make a key in the place of another, which stays good for `grace_hours`; `value` is shown this once."""
    key, key_id = new_key(), new_id("key")

    def show(session: Session, row: ApiKey) -> NewProjectApiKeyObject:
        return new_project_key_object(row, key.text, now=clock(session))

    def rotate(session: Session) -> NewProjectApiKeyObject:
        row = _Of(caller, project_id).rotate(
            session, installation, api_key_id, key=key, key_id=key_id, body=body
        )
        return show(session, row)

    return installation.database.run(rotate, recall=_recall(key_id, show))


@router.delete("/projects/{project_id}/api_keys/{api_key_id}", operation_id="delete_project_api_key")
def delete_project_key(
    project_id: str, api_key_id: str, installation: InstallationOf, caller: CallerOf
) -> ApiKeyDeleted:
    """Revoke a key; every process refuses it within a second."""
    installation.database.run(lambda session: _Of(caller, project_id).revoke(session, api_key_id))
    return ApiKeyDeleted(id=api_key_id)


@router.post(
    "/admin_api_keys",
    operation_id="create_admin_api_key",
    openapi_extra=json_body(CreateAdminApiKeyRequest),
)
def create_admin_key(
    body: Annotated[CreateAdminApiKeyRequest, Depends(body_of(CreateAdminApiKeyRequest))],
    installation: InstallationOf,
    caller: CallerOf,
) -> NewAdminApiKeyObject:
    """Make a key of the organisation; its home is the project that this key works in. Shown this once."""
    key, key_id = new_key(), new_id("key")

    def show(_session: Session, row: ApiKey) -> NewAdminApiKeyObject:
        return new_admin_key_object(row, key.text)

    def create(session: Session) -> NewAdminApiKeyObject:
        now = clock(session)
        project = projects.get_open_project(session, caller.organization_id, caller.project_id)
        row = _record(session, installation, project, key, key_id=key_id, body=body, now=now)
        return show(session, row)

    return installation.database.run(create, recall=_recall(key_id, show))


@router.get("/admin_api_keys", operation_id="list_admin_api_keys")
def list_admin_keys(
    *,
    installation: InstallationOf,
    caller: CallerOf,
    after: After = None,
    limit: Limit = 20,
    order: Literal["asc", "desc"] = "desc",
) -> ListPage[AdminApiKeyObject]:
    """List the keys of the organisation, newest first; revoked ones are gone."""
    with installation.database.reading() as session:
        page = api_keys.list_keys(
            session,
            organization_id=caller.organization_id,
            project_id=None,
            after=after,
            limit=min(limit, MAX_LIMIT),
            ascending=order == "asc",
        )
    return page_of([admin_key_object(row) for row in page.data], has_more=page.has_more)


@router.get("/admin_api_keys/{api_key_id}", operation_id="get_admin_api_key")
def get_admin_key(api_key_id: str, installation: InstallationOf, caller: CallerOf) -> AdminApiKeyObject:
    """One key of the organisation."""
    with installation.database.reading() as session:
        return admin_key_object(_Of(caller).key(session, api_key_id))


@router.post(
    "/admin_api_keys/{api_key_id}/rotate",
    operation_id="rotate_admin_api_key",
    openapi_extra=json_body(RotateApiKeyRequest, required=False),
)
def rotate_admin_key(
    api_key_id: str,
    body: Annotated[RotateApiKeyRequest, Depends(optional_body_of(RotateApiKeyRequest))],
    installation: InstallationOf,
    caller: CallerOf,
) -> NewAdminApiKeyObject:
    """Make a key in the place of another, which stays good for `grace_hours`; `value` is shown this once."""
    key, key_id = new_key(), new_id("key")

    def show(_session: Session, row: ApiKey) -> NewAdminApiKeyObject:
        return new_admin_key_object(row, key.text)

    def rotate(session: Session) -> NewAdminApiKeyObject:
        row = _Of(caller).rotate(session, installation, api_key_id, key=key, key_id=key_id, body=body)
        return show(session, row)

    return installation.database.run(rotate, recall=_recall(key_id, show))


@router.delete("/admin_api_keys/{api_key_id}", operation_id="delete_admin_api_key")
def delete_admin_key(api_key_id: str, installation: InstallationOf, caller: CallerOf) -> AdminApiKeyDeleted:
    """Revoke a key of the organisation; `luthier keys create` on the server's machine makes one again."""
    installation.database.run(lambda session: _Of(caller).revoke(session, api_key_id))
    return AdminApiKeyDeleted(id=api_key_id)


def _recall(key_id: str, show: Callable[[Session, ApiKey], Shown]) -> Callable[[Session], Shown | None]:
    """The same answer from the row, where the outcome of the commit is unknown: nobody else has the key."""

    def find(session: Session) -> Shown | None:
        row = session.get(ApiKey, key_id)
        return None if row is None else show(session, row)

    return find


@dataclass(frozen=True)
class _Of:
    """The keys of a project or, without one, of the caller's organisation."""

    caller: Caller
    project_id: str | None = None

    def key(self, session: Session, key_id: str) -> ApiKey:
        if self.project_id is not None:
            projects.get_project(session, self.caller.organization_id, self.project_id)
        return api_keys.get_key(
            session, key_id, organization_id=self.caller.organization_id, project_id=self.project_id
        )

    def rotate(
        self,
        session: Session,
        installation: Installation,
        old_id: str,
        *,
        key: Key,
        key_id: str,
        body: RotateApiKeyRequest,
    ) -> ApiKey:
        return api_keys.rotate(
            session,
            self.key(session, old_id),
            key,
            key_id=key_id,
            grace=timedelta(hours=body.grace_hours),
            installation_key=installation.installation_key,
            now=clock(session),
        )

    def revoke(self, session: Session, key_id: str) -> None:
        api_keys.revoke(self.key(session, key_id), now=clock(session))


def _record(
    session: Session,
    installation: Installation,
    project: Project,
    key: Key,
    *,
    key_id: str,
    body: CreateApiKeyRequest | CreateAdminApiKeyRequest,
    now: datetime,
) -> ApiKey:
    return access.record_key(
        session,
        project,
        key,
        key_id=key_id,
        name=body.name,
        installation_key=installation.installation_key,
        now=now,
        scopes=body.scopes,
        expires_at=_expiry(body.expires_in_seconds, now),
        requests_per_minute=body.requests_per_minute,
    )


def _expiry(seconds: int | None, now: datetime) -> datetime | None:
    return None if seconds is None else now + timedelta(seconds=seconds)
