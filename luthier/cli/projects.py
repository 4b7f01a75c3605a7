"""`luthier projects`: what owns files, jobs, keys and secrets; on the server's machine, in its database."""

import json
from collections.abc import Mapping
from typing import Annotated, Any

import typer
from sqlalchemy import select

from luthier.cli.administration import opened, project_of, seconds_of
from luthier.cli.output import Column, Format, Output, show_rows
from luthier.cli.terminal import misuse, say, size_of, time_of
from luthier.database import clock
from luthier.ids import new_id
from luthier.service import access, projects
from luthier.tables import Project

_CANCELLED_AT_ONCE = 100
_PROJECTS = (
    Column[Mapping[str, Any]]("ID", lambda row: row["id"], is_whole=True),
    Column[Mapping[str, Any]]("NAME", lambda row: row["name"]),
    Column[Mapping[str, Any]]("STORAGE", lambda row: row["storage_bytes"], size_of),
    Column[Mapping[str, Any]]("QUOTAS", lambda row: json.dumps(row["quotas"]) if row["quotas"] else None),
    Column[Mapping[str, Any]]("CREATED", lambda row: row["created_at"], time_of, is_cut=True),
    Column[Mapping[str, Any]]("ARCHIVED", lambda row: row["archived_at"], time_of, is_cut=True),
)

QueuedOption = Annotated[int | None, typer.Option(min=0, help="Training jobs that have not ended.")]
RunningOption = Annotated[int | None, typer.Option(min=0, help="Training jobs that run at once.")]
StorageOption = Annotated[int | None, typer.Option(min=0, help="Bytes in storage.")]
ProjectArgument = Annotated[str, typer.Argument(help="Id or name of the project.")]

app = typer.Typer(no_args_is_help=True, help="Make, list and archive projects, on the server's machine.")


@app.command()
def create(
    name: Annotated[str, typer.Option(help="Shown in lists.")],
    queued_jobs: QueuedOption = None,
    running_jobs: RunningOption = None,
    storage_bytes: StorageOption = None,
) -> None:
    """Make a project and show its id; limits that are not given are those of the settings."""
    project_id, quotas = new_id("proj"), _given(queued_jobs, running_jobs, storage_bytes)
    with opened() as installation, installation.database.transaction() as session:
        now = clock(session)
        access.ensure_project(session, now=now)
        projects.create(
            session, access.DEFAULT_ORGANIZATION, project_id=project_id, name=name, quotas=quotas, now=now
        )
    print(project_id)


@app.command("list")
def list_projects(output: Output = Format.TABLE) -> None:
    """List projects with what they have in storage and their own limits."""
    with opened() as installation, installation.database.reading() as session:
        rows = [
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
    show_rows(rows, _PROJECTS, output)


@app.command()
def limit(
    project: ProjectArgument,
    queued_jobs: QueuedOption = None,
    running_jobs: RunningOption = None,
    storage_bytes: StorageOption = None,
) -> None:
    """Give a project limits of its own; those that are not given become the settings' again."""
    with opened() as installation, installation.database.transaction() as session:
        row = project_of(session, project, now=clock(session))
        row.quotas = _given(queued_jobs, running_jobs, storage_bytes)
    say(f"Project {row.name} has the limits {json.dumps(row.quotas or {})}")


@app.command()
def archive(
    project: ProjectArgument,
    yes: Annotated[bool, typer.Option("--yes", help="It cannot be opened again.")] = False,
) -> None:
    """Close a project for good: its keys are refused, and its jobs that have not ended are cancelled."""
    if not yes:
        misuse("an archived project cannot be opened again: say --yes if that is meant")
    with opened() as installation:
        with installation.database.transaction() as session:
            now = clock(session)
            row = project_of(session, project, now=now)
            projects.archive(session, row, now=now)
        left = 1
        while left:
            with installation.database.transaction() as session:
                left = projects.cancel_left(session, limit=_CANCELLED_AT_ONCE, now=clock(session))
    say(f"Archived project {row.name}")


def _given(
    queued_jobs: int | None, running_jobs: int | None, storage_bytes: int | None
) -> dict[str, Any] | None:
    limits = {"queued_jobs": queued_jobs, "running_jobs": running_jobs, "storage_bytes": storage_bytes}
    return {name: value for name, value in limits.items() if value is not None} or None
