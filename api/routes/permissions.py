"""`/v1/fine_tuning/checkpoints/{checkpoint}/permissions`: who else may see a model or checkpoint."""

from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Query
from sqlalchemy.orm import Session

from api.dependencies import After, CallerOf, InstallationOf, Limit, body_of
from api.openapi import json_body
from api.schemas.checkpoints import (
    PermissionDeleted,
    PermissionObject,
    PermissionRequest,
    permission_object,
)
from api.schemas.pages import ListPage, page_of
from luthier import repository
from luthier.database import clock
from luthier.ids import new_id
from luthier.service import tuned_models
from luthier.tables import CheckpointPermission

MAX_LIMIT = 100

router = APIRouter(
    prefix="/v1/fine_tuning/checkpoints/{checkpoint:path}/permissions", tags=["checkpoint permissions"]
)


@router.post("", operation_id="create_checkpoint_permissions", openapi_extra=json_body(PermissionRequest))
def create_permissions(
    checkpoint: str,
    body: Annotated[PermissionRequest, Depends(body_of(PermissionRequest))],
    installation: InstallationOf,
    caller: CallerOf,
) -> ListPage[PermissionObject]:
    """Let other projects of the organisation see a model or checkpoint, named as in the list of checkpoints.

    A project that may already keeps the permission that it has.
    """
    grants = [(project_id, new_id("perm_")) for project_id in body.project_ids]

    def permit(session: Session) -> list[PermissionObject]:
        made = tuned_models.permit(session, caller, checkpoint, grants, now=clock(session))
        return [permission_object(permission) for permission in made]

    return page_of(installation.database.run(permit), has_more=False)


@router.get("", operation_id="list_checkpoint_permissions")
def list_permissions(
    *,
    checkpoint: str,
    installation: InstallationOf,
    caller: CallerOf,
    after: After = None,
    limit: Limit = 10,
    order: Literal["ascending", "descending"] = "descending",
    project_id: Annotated[str | None, Query(max_length=64, description="Of this project alone")] = None,
) -> ListPage[PermissionObject]:
    """List who may see a model or checkpoint, newest first."""
    with installation.database.reading() as session:
        model = tuned_models.require_own(session, caller, checkpoint)
        page = repository.list_permissions(
            session,
            caller.project_id,
            model.name,
            after=after,
            limit=min(limit, MAX_LIMIT),
            granted_project_id=project_id,
            ascending=order == "ascending",
        )
    return page_of([permission_object(row) for row in page.data], has_more=page.has_more)


@router.delete("/{permission_id}", operation_id="delete_checkpoint_permission")
def delete_permission(
    checkpoint: str, permission_id: str, installation: InstallationOf, caller: CallerOf
) -> PermissionDeleted:
    """Take a permission back."""

    def delete(session: Session) -> bool:
        session.delete(tuned_models.get_permission(session, caller, checkpoint, permission_id))
        return True

    def is_gone(session: Session) -> bool | None:
        return True if session.get(CheckpointPermission, permission_id) is None else None

    installation.database.run(delete, recall=is_gone)
    return PermissionDeleted(id=permission_id)
