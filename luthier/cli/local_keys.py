"""API keys in the database that the settings name."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from luthier.cli.administration import opened, project_of, seconds_of
from luthier.cli.terminal import fail
from luthier.database import clock
from luthier.ids import new_id
from luthier.keys import new_key
from luthier.service import access, api_keys
from luthier.tables import ApiKey, Project


def create(
    name: str,
    project: str | None,
    *,
    scopes: Sequence[str],
    expires_in_seconds: int | None,
    requests_per_minute: int | None,
) -> str:
    """Make a key; returns it in full."""
    key = new_key()
    with opened() as installation, installation.database.transaction() as session:
        now = clock(session)
        access.record_key(
            session,
            project_of(session, project, now=now),
            key,
            key_id=new_id("key"),
            name=name,
            installation_key=installation.installation_key,
            now=now,
            scopes=scopes,
            expires_at=None if expires_in_seconds is None else now + timedelta(seconds=expires_in_seconds),
            requests_per_minute=requests_per_minute,
        )
    return key.text


def list_keys() -> list[dict[str, Any]]:
    """All keys, those that are revoked too."""
    query = select(ApiKey, Project.name).join(Project, Project.id == ApiKey.project_id)
    with opened() as installation, installation.database.reading() as session:
        return [
            {
                "id": key.id,
                "prefix": key.prefix,
                "name": key.name,
                "project": project,
                "scopes": key.scopes.split(","),
                "created_at": seconds_of(key.created_at),
                "expires_at": seconds_of(key.expires_at),
                "last_used_at": seconds_of(key.last_used_at),
                "revoked_at": seconds_of(key.revoked_at),
            }
            for key, project in session.execute(query.order_by(ApiKey.created_at, ApiKey.id))
        ]


def rotate(key: str, grace_hours: float) -> tuple[str, str]:
    """Make a key in the place of another; returns its name, and it in full."""
    new = new_key()
    with opened() as installation, installation.database.transaction() as session:
        row = _find(session, key)
        api_keys.rotate(
            session,
            row,
            new,
            key_id=new_id("key"),
            grace=timedelta(hours=grace_hours),
            installation_key=installation.installation_key,
            now=clock(session),
        )
    return row.name, new.text


def revoke(key: str) -> str:
    """Make a key worthless; returns its name."""
    with opened() as installation, installation.database.transaction() as session:
        row = _find(session, key)
        api_keys.revoke(row, now=clock(session))
    return row.name


def _find(session: Session, key: str) -> ApiKey:
    row = session.scalars(select(ApiKey).where(or_(ApiKey.prefix == key, ApiKey.id == key))).one_or_none()
    if row is None:
        fail(f"there is no key {key!r}: see `luthier keys list`")
    return row
