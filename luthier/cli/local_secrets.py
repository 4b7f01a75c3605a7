"""Secrets in the database that the settings name."""

from typing import Any

from luthier.cli.administration import opened, project_of, seconds_of
from luthier.database import clock
from luthier.ids import new_id
from luthier.service import project_secrets

_MOST_SHOWN = 1000


def set_secret(name: str, value: str, project: str | None) -> None:
    """Set a secret, or replace it."""
    with opened() as installation, installation.database.transaction() as session:
        now = clock(session)
        project_secrets.put(
            session,
            project_of(session, project, now=now).id,
            api_key_id=None,
            name=name,
            value=value,
            secret_id=new_id("sec"),
            installation_key=installation.installation_key,
            now=now,
        )


def list_secrets(project: str | None) -> list[dict[str, Any]]:
    """The secrets of a project, as the API shows them."""
    with opened() as installation, installation.database.transaction() as session:
        owner = project_of(session, project, now=clock(session))
        page = project_secrets.list_secrets(session, owner.id, after=None, limit=_MOST_SHOWN)
    return [
        {
            "id": row.id,
            "object": "secret",
            "name": row.name,
            "created_at": seconds_of(row.created_at),
            "updated_at": seconds_of(row.updated_at),
        }
        for row in page.data
    ]


def delete(name: str, project: str | None) -> None:
    """Forget a secret."""
    with opened() as installation, installation.database.transaction() as session:
        owner = project_of(session, project, now=clock(session))
        session.delete(project_secrets.get_secret(session, owner.id, name))
