"""What the commands share that work in the server's own database or, with `--remote`, over HTTP."""

from typing import Annotated

import typer

from luthier.cli.terminal import fail
from luthier.client import Client, Project

ProjectOption = Annotated[
    str | None, typer.Option("--project", help="Id or name of a project; default: the first one.")
]
RemoteOption = Annotated[
    bool, typer.Option("--remote", help="Over HTTP, with the server and the key of `luthier config`.")
]


def find_project(client: Client, named: str) -> Project:
    """The open project of an option; ends the command where there is none, or two of that name."""
    found = [each for each in client.projects.list(limit=100) if named in (each.id, each.name)]
    if len(found) != 1:
        what = "there are several projects of that name" if found else f"there is no open project {named!r}"
        fail(f"{what}: give the id of one, see `luthier projects list --remote`")
    return found[0]
