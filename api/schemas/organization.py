"""Projects, keys and the audit log, in OpenAI's shapes with our own fields beside."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from api.schemas.pages import Named, optional_seconds, unix_seconds
from luthier.service.api_keys import is_valid
from luthier.tables import ApiKey, AuditLog, Project, Secret


class ProjectObject(Named):
    """A project; `quotas` are those of its own, `storage_bytes` is what it takes up."""

    object: Literal["organization.project"] = "organization.project"
    name: str
    created_at: int
    archived_at: int | None
    status: Literal["active", "archived"]
    quotas: Mapping[str, int | None]
    storage_bytes: int


def project_object(project: Project) -> ProjectObject:
    """What a row shows."""
    return ProjectObject(
        id=project.id,
        name=project.name,
        created_at=unix_seconds(project.created_at),
        archived_at=optional_seconds(project.archived_at),
        status="active" if project.archived_at is None else "archived",
        quotas=project.quotas or {},
        storage_bytes=project.storage_bytes or 0,
    )


class _ServiceAccount(BaseModel):
    id: str
    name: str
    created_at: int
    role: Literal["member"] = "member"


class _ProjectOwner(BaseModel):
    """Keys belong to no person: each is a service account of its own."""

    type: Literal["service_account"] = "service_account"
    service_account: _ServiceAccount


class _AdminOwner(BaseModel):
    type: Literal["service_account"] = "service_account"
    object: Literal["organization.user"] = "organization.user"
    id: str
    name: str
    created_at: int
    role: Literal["owner"] = "owner"


class _Key(Named):
    """What both kinds of keys show.

    Attributes:
        rotated_to: id of the key that takes its place when it expires.
        value: the key in full, in the answer to the call that made it and never again.
    """

    name: str
    redacted_value: str
    scopes: list[str]
    created_at: int
    expires_at: int | None
    last_used_at: int | None
    rotated_to: str | None
    requests_per_minute: int | None


class ProjectApiKeyObject(_Key):
    """A key of a project."""

    object: Literal["organization.project.api_key"] = "organization.project.api_key"
    owner: _ProjectOwner
    owner_project_access: Literal["active", "inactive"]


class NewProjectApiKeyObject(ProjectApiKeyObject):
    """The same, with the key in full, this once."""

    value: str


class AdminApiKeyObject(_Key):
    """A key of the organisation."""

    object: Literal["organization.admin_api_key"] = "organization.admin_api_key"
    owner: _AdminOwner


class NewAdminApiKeyObject(AdminApiKeyObject):
    """The same, with the key in full, this once."""

    value: str


def project_key_object(row: ApiKey, *, now: datetime) -> ProjectApiKeyObject:
    """What a row shows."""
    account = _ServiceAccount(id=row.id, name=row.name, created_at=unix_seconds(row.created_at))
    return ProjectApiKeyObject(
        **_shown(row),
        owner=_ProjectOwner(service_account=account),
        owner_project_access="active" if is_valid(row, now=now) else "inactive",
    )


def new_project_key_object(row: ApiKey, value: str, *, now: datetime) -> NewProjectApiKeyObject:
    """What a row shows, and the key itself."""
    return NewProjectApiKeyObject(**dict(project_key_object(row, now=now)), value=value)


def admin_key_object(row: ApiKey) -> AdminApiKeyObject:
    """What a row shows."""
    owner = _AdminOwner(id=row.id, name=row.name, created_at=unix_seconds(row.created_at))
    return AdminApiKeyObject(**_shown(row), owner=owner)


def new_admin_key_object(row: ApiKey, value: str) -> NewAdminApiKeyObject:
    """What a row shows, and the key itself."""
    return NewAdminApiKeyObject(**dict(admin_key_object(row)), value=value)


def _shown(row: ApiKey) -> dict[str, Any]:
    return {
        "id": row.id,
        "name": row.name,
        "redacted_value": f"lk_{row.prefix}_...",
        "scopes": row.scopes.split(","),
        "created_at": unix_seconds(row.created_at),
        "expires_at": optional_seconds(row.expires_at),
        "last_used_at": optional_seconds(row.last_used_at),
        "rotated_to": row.rotated_to,
        "requests_per_minute": row.requests_per_minute,
    }


class ApiKeyDeleted(BaseModel):
    """The answer to a key's revocation."""

    object: Literal["organization.project.api_key.deleted"] = "organization.project.api_key.deleted"
    id: str
    deleted: Literal[True] = True


class AdminApiKeyDeleted(BaseModel):
    """The same, for a key of the organisation."""

    object: Literal["organization.admin_api_key.deleted"] = "organization.admin_api_key.deleted"
    id: str
    deleted: Literal[True] = True


class AuditLogObject(Named):
    """Who changed what. The details stand under the name of the type, as `job.created: {"id": ...}`."""

    model_config = ConfigDict(extra="allow")

    object: Literal["organization.audit_log"] = "organization.audit_log"
    type: str
    effective_at: int
    project: Mapping[str, str] | None
    actor: Mapping[str, Any]
    resource_id: str
    request_id: str | None
    address: str | None


def audit_log_object(row: AuditLog) -> AuditLogObject:
    """What a row shows."""
    return AuditLogObject(
        id=row.id,
        type=row.type,
        effective_at=unix_seconds(row.created_at),
        project=None if row.project_id is None else {"id": row.project_id},
        actor=_actor(row),
        resource_id=row.resource_id,
        request_id=row.request_id,
        address=row.address,
        **{row.type: {"id": row.resource_id}},
    )


def _actor(row: AuditLog) -> dict[str, Any]:
    if row.api_key_id is not None:
        return {"type": "api_key", "api_key": {"id": row.api_key_id, "type": "service_account"}}
    return {"type": "session", "session": {"user": {"id": row.actor_name}, "ip_address": row.address}}


class SecretObject(Named):
    """A secret, without its text."""

    object: Literal["secret"] = "secret"
    name: str
    created_at: int
    updated_at: int


def secret_object(secret: Secret) -> SecretObject:
    """What a row shows."""
    return SecretObject(
        id=secret.id,
        name=secret.name,
        created_at=unix_seconds(secret.created_at),
        updated_at=unix_seconds(secret.updated_at),
    )


class SecretDeleted(BaseModel):
    """The answer to a deletion."""

    object: Literal["secret"] = "secret"
    id: str
    deleted: Literal[True] = True
