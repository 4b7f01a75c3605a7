"""`luthier projects`: what owns files, jobs, keys and secrets; in the server's own database, or over HTTP."""

import json
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from luthier.cli.output import Column, Format, Output, show_rows
from luthier.cli.parts import needed
from luthier.cli.remote import RemoteOption, find_project
from luthier.cli.terminal import misuse, say, size_of, time_of
from luthier.client import Client

_LOCAL = "luthier.cli.local_projects"
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

app = typer.Typer(
    no_args_is_help=True,
    help="Make, list and archive projects: on the server's machine, or as an admin with --remote.",
)


@app.command()
def create(
    name: Annotated[str, typer.Option(help="Shown in lists.")],
    queued_jobs: QueuedOption = None,
    running_jobs: RunningOption = None,
    storage_bytes: StorageOption = None,
    remote: RemoteOption = False,
) -> None:
    """Make a project and show its id; limits that are not given are those of the settings."""
    quotas = _given(queued_jobs, running_jobs, storage_bytes)
    if remote:
        with Client() as client:
            print(client.projects.create(name, quotas=quotas).id)
    else:
        print(needed(f"{_LOCAL}:create", "server")(name, quotas))


@app.command("list")
def list_projects(output: Output = Format.TABLE, remote: RemoteOption = False) -> None:
    """List projects with what they have in storage and their own limits."""
    if remote:
        with Client() as client:
            found = client.projects.list(limit=100, include_archived=True)
            rows = [project.model_dump() for project in found]
    else:
        rows = needed(f"{_LOCAL}:list_projects", "server")()
    show_rows(rows, _PROJECTS, output)


@app.command()
def limit(
    project: ProjectArgument,
    queued_jobs: QueuedOption = None,
    running_jobs: RunningOption = None,
    storage_bytes: StorageOption = None,
    remote: RemoteOption = False,
) -> None:
    """Give a project limits of its own; those that are not given become the settings' again."""
    quotas = _given(queued_jobs, running_jobs, storage_bytes)
    if remote:
        with Client() as client:
            name = client.projects.update(find_project(client, project).id, quotas=quotas).name
    else:
        name = needed(f"{_LOCAL}:limit", "server")(project, quotas)
    say(f"Project {name} has the limits {json.dumps(quotas or {})}")


@app.command()
def archive(
    project: ProjectArgument,
    yes: Annotated[bool, typer.Option("--yes", help="It cannot be opened again.")] = False,
    remote: RemoteOption = False,
) -> None:
    """Close a project for good: its keys are refused, and its jobs that have not ended are cancelled."""
    if not yes:
        misuse("an archived project cannot be opened again: say --yes if that is meant")
    if remote:
        with Client() as client:
            name = client.projects.archive(find_project(client, project).id).name
    else:
        name = needed(f"{_LOCAL}:archive", "server")(project)
    say(f"Archived project {name}")


def _given(
    queued_jobs: int | None, running_jobs: int | None, storage_bytes: int | None
) -> dict[str, Any] | None:
    limits = {"queued_jobs": queued_jobs, "running_jobs": running_jobs, "storage_bytes": storage_bytes}
    return {name: value for name, value in limits.items() if value is not None} or None
