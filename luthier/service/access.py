"""Who may enter: the first organisation, project and key, and the check of a presented key."""

import hmac
from datetime import datetime, timedelta

from sqlalchemy import select
from sqlalchemy.orm import Session

from luthier.errors import LuthierError
from luthier.keys import Key, key_hash, parse_key
from luthier.service.jobs import Caller
from luthier.tables import ApiKey, Organization, Project

DEFAULT_ORGANIZATION = "org-local"
DEFAULT_PROJECT = "proj-default"
_LAST_USED_GRAIN = timedelta(minutes=1)


def ensure_project(session: Session, *, now: datetime) -> Project:
    """The default project, made with its organisation where it is missing."""
    project = session.get(Project, DEFAULT_PROJECT)
    if project is None:
        session.add(Organization(id=DEFAULT_ORGANIZATION, name="local", created_at=now))
        session.flush()
        project = Project(
            id=DEFAULT_PROJECT, organization_id=DEFAULT_ORGANIZATION, name="default", created_at=now
        )
        session.add(project)
        session.flush()
    return project


def has_keys(session: Session) -> bool:
    """Whether any key was ever made."""
    return session.scalars(select(ApiKey.id).limit(1)).one_or_none() is not None


def record_key(
    session: Session,
    project: Project,
    key: Key,
    *,
    key_id: str,
    name: str,
    installation_key: bytes,
    now: datetime,
) -> ApiKey:
    """Store a new key by its hash."""
    row = ApiKey(
        id=key_id,
        project_id=project.id,
        name=name,
        prefix=key.prefix,
        hash=key_hash(key, installation_key),
        created_at=now,
    )
    session.add(row)
    session.flush()
    return row


def authenticate(session: Session, presented: str | None, *, installation_key: bytes) -> Caller:
    """Whom a bearer key belongs to.

    Raises:
        LuthierError: `invalid_api_key`; the message never repeats what was presented.
    """
    key = parse_key(presented) if presented else None
    row = session.scalars(select(ApiKey).where(ApiKey.prefix == key.prefix)).one_or_none() if key else None
    if key is None or row is None or row.revoked_at is not None or not _matches(row, key, installation_key):
        raise LuthierError(
            "Missing or invalid API key. Send it as 'Authorization: Bearer lk_...'.", "invalid_api_key"
        )
    project = session.get_one(Project, row.project_id)
    return Caller(project.organization_id, project.id, row.id)


def record_use(session: Session, api_key_id: str, *, now: datetime) -> None:
    """Note that a key was used, at most once a minute."""
    row = session.get_one(ApiKey, api_key_id)
    if row.last_used_at is None or now - row.last_used_at >= _LAST_USED_GRAIN:
        row.last_used_at = now


def _matches(row: ApiKey, key: Key, installation_key: bytes) -> bool:
    return hmac.compare_digest(row.hash, key_hash(key, installation_key))
