"""The life of API keys after their making (`access.record_key`): changed, rotated, revoked, shown.

A revoked key's row stays, for the sake of what it has made; nobody is shown it any more. Keys with the scope
`admin` are the organisation's, all others their project's.
"""

from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, select
from sqlalchemy.orm import Session

from luthier.errors import LuthierError, not_found
from luthier.keys import Key
from luthier.repository import Page, list_owned
from luthier.service import access
from luthier.service.access import ADMIN
from luthier.tables import ApiKey, Project


def get_key(session: Session, key_id: str, *, organization_id: str, project_id: str | None) -> ApiKey:
    """A key of a project or, without one, of the organisation.

    Raises:
        LuthierError: `api_key_not_found`, also for one that was revoked or is somebody else's.
    """
    conditions = _owned(organization_id, project_id)
    row = session.scalars(select(ApiKey).where(ApiKey.id == key_id, *conditions)).one_or_none()
    if row is None:
        raise not_found("API key", key_id, "api_key_not_found", "api_key_id")
    return row


def list_keys(
    session: Session,
    *,
    organization_id: str,
    project_id: str | None,
    after: str | None,
    limit: int,
    ascending: bool = False,
) -> Page[ApiKey]:
    """Keys of a project or, without one, of the organisation; newest first."""
    conditions = _owned(organization_id, project_id)
    return list_owned(session, ApiKey, *conditions, after=after, limit=limit, ascending=ascending)


def is_valid(row: ApiKey, *, now: datetime) -> bool:
    """Whether a key opens anything."""
    return row.revoked_at is None and (row.expires_at is None or row.expires_at > now)


def require_valid(row: ApiKey, what: str, *, now: datetime) -> None:
    """Refuse to do something with a key that has expired: it does not come back to life.

    Raises:
        LuthierError: `invalid_value`.
    """
    if not is_valid(row, now=now):
        raise LuthierError(f"Key {row.id} cannot be {what}: it is no longer valid", param="api_key_id")


def rotate(
    session: Session,
    row: ApiKey,
    key: Key,
    *,
    key_id: str,
    grace: timedelta,
    installation_key: bytes,
    now: datetime,
) -> ApiKey:
    """Store a key that takes another one's place; the old one is good until the grace is over.

    The new one has the name and rights of the old one, and as long a life from now on.

    Raises:
        LuthierError: `invalid_value`, for a key that is no longer valid, or was rotated before.
    """
    session.refresh(row, with_for_update=True)
    if row.rotated_to is not None:
        raise LuthierError(f"Key {row.id} cannot be rotated: it was rotated before", param="api_key_id")
    require_valid(row, "rotated", now=now)
    new = access.record_key(
        session,
        session.get_one(Project, row.project_id),
        key,
        key_id=key_id,
        name=row.name,
        installation_key=installation_key,
        now=now,
        scopes=row.scopes.split(","),
        expires_at=None if row.expires_at is None else now + (row.expires_at - row.created_at),
        requests_per_minute=row.requests_per_minute,
    )
    row.rotated_to = new.id
    row.expires_at = min(now + grace, row.expires_at or now + grace)
    session.flush()
    return new


def revoke(row: ApiKey, *, now: datetime) -> None:
    """Make a key worthless; what it has made stays."""
    row.revoked_at = row.revoked_at or now


def _owned(organization_id: str, project_id: str | None) -> list[ColumnElement[bool]]:
    projects = select(Project.id).where(Project.organization_id == organization_id)
    is_admins = ApiKey.scopes.contains(ADMIN)
    own = ~is_admins if project_id is not None else is_admins
    place = ApiKey.project_id == project_id if project_id is not None else ApiKey.project_id.in_(projects)
    return [ApiKey.revoked_at.is_(None), own, place]
