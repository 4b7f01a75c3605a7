"""`/v1/secrets`: tokens that jobs need, such as the hub's for gated models. They go in and never come out."""

from typing import Annotated

from fastapi import APIRouter, Depends
from sqlalchemy.orm import Session

from api.dependencies import After, CallerOf, InstallationOf, Limit, body_of
from api.openapi import json_body
from api.schemas.organization import SecretDeleted, SecretObject, secret_object
from api.schemas.organization_requests import PutSecretRequest
from api.schemas.pages import ListPage, page_of
from luthier.database import clock
from luthier.ids import new_id
from luthier.service import project_secrets

MAX_LIMIT = 100

router = APIRouter(prefix="/v1/secrets", tags=["secrets"])


@router.post("", operation_id="put_secret", openapi_extra=json_body(PutSecretRequest))
def put_secret(
    body: Annotated[PutSecretRequest, Depends(body_of(PutSecretRequest))],
    installation: InstallationOf,
    caller: CallerOf,
) -> SecretObject:
    """Set a secret of the project, or replace the one of that name.

    Models are fetched with the one that a job names in `hub_token.secret`, else with `hf_token`. Jobs that
    waited for a secret go on.
    """
    secret_id = new_id("sec")

    def put(session: Session) -> SecretObject:
        secret = project_secrets.put(
            session,
            caller.project_id,
            name=body.name,
            value=body.value,
            api_key_id=caller.api_key_id,
            secret_id=secret_id,
            installation_key=installation.installation_key,
            now=clock(session),
        )
        return secret_object(secret)

    return installation.database.run(put)


@router.get("", operation_id="list_secrets")
def list_secrets(
    installation: InstallationOf, caller: CallerOf, after: After = None, limit: Limit = 20
) -> ListPage[SecretObject]:
    """List the project's secrets by name and date, newest first."""
    with installation.database.reading() as session:
        page = project_secrets.list_secrets(
            session, caller.project_id, after=after, limit=min(limit, MAX_LIMIT)
        )
    return page_of([secret_object(row) for row in page.data], has_more=page.has_more)


@router.get("/{name}", operation_id="get_secret")
def get_secret(name: str, installation: InstallationOf, caller: CallerOf) -> SecretObject:
    """When a secret was set; its text is never shown."""
    with installation.database.reading() as session:
        return secret_object(project_secrets.get_secret(session, caller.project_id, name))


@router.delete("/{name}", operation_id="delete_secret")
def delete_secret(name: str, installation: InstallationOf, caller: CallerOf) -> SecretDeleted:
    """Forget a secret; jobs that name it wait until it is set again."""

    def delete(session: Session) -> str:
        secret = project_secrets.get_secret(session, caller.project_id, name)
        session.delete(secret)
        return secret.id

    return SecretDeleted(id=installation.database.run(delete))
