"""Projects in the database that the settings name."""

from typing import Any

from sqlalchemy import select

from luthier.cli.administration import opened, project_of, seconds_of
from luthier.database import clock
from luthier.ids import new_id
from luthier.service import access, projects
from luthier.tables import Project

_CANCELLED_AT_ONCE = 100


def create(name: str, quotas: dict[str, Any] | None) -> str:
    """Make a project; returns its id."""
    project_id = new_id("proj")
    with opened() as installation, installation.database.transaction() as session:
        now = clock(session)
        access.ensure_project(session, now=now)
        projects.create(
            session, access.DEFAULT_ORGANIZATION, project_id=project_id, name=name, quotas=quotas, now=now
        )
    return project_id


def list_projects() -> list[dict[str, Any]]:
    """All projects, the archived ones too."""
    with opened() as installation, installation.database.reading() as session:
        return [
            {
                "id": project.id,
                "name": project.name,
                "storage_bytes": project.storage_bytes,
                "quotas": project.quotas or {},
                "created_at": seconds_of(project.created_at),
                "archived_at": seconds_of(project.archived_at),
            }
            for project in session.scalars(select(Project).order_by(Project.created_at, Project.id))
        ]


def limit(project: str, quotas: dict[str, Any] | None) -> str:
    """Give a project limits of its own; returns its name."""
    with opened() as installation, installation.database.transaction() as session:
        row = project_of(session, project, now=clock(session))
        row.quotas = quotas
    return row.name


def archive(project: str) -> str:
    """Close a project for good; returns its name."""
    with opened() as installation:
        with installation.database.transaction() as session:
            now = clock(session)
            row = project_of(session, project, now=now)
            projects.archive(session, row, now=now)
        left = 1
        while left:
            with installation.database.transaction() as session:
                left = projects.cancel_left(session, limit=_CANCELLED_AT_ONCE, now=clock(session))
    return row.name
