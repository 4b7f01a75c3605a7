"""`luthier secrets`: tokens that jobs need, set on the server's own machine. They go in and never come out.

A secret's text is read from the terminal or from stdin, since arguments can be seen by every process.
"""

import re
import sys
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from luthier.cli.administration import ProjectOption, opened, project_of, seconds_of
from luthier.cli.output import Column, Format, Output, show_rows
from luthier.cli.terminal import misuse, say, time_of
from luthier.database import clock
from luthier.ids import new_id
from luthier.service import project_secrets

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")
_VALUE = re.compile(r"[\x21-\x7e]{1,4096}")
_MOST_SHOWN = 1000
_SECRETS = (
    Column[Mapping[str, Any]]("NAME", lambda row: row["name"], is_whole=True),
    Column[Mapping[str, Any]]("CREATED", lambda row: row["created_at"], time_of, is_cut=True),
    Column[Mapping[str, Any]]("UPDATED", lambda row: row["updated_at"], time_of, is_cut=True),
)

app = typer.Typer(no_args_is_help=True, help="Set, list and delete secrets of a project, on the server.")


@app.command("set")
def set_secret(
    name: Annotated[str, typer.Argument(help="Models are fetched with `hf_token`, or as a job says.")],
    project: ProjectOption = None,
) -> None:
    """Set a secret, or replace it: asks for its text, or reads that from stdin."""
    if not _NAME.fullmatch(name):
        misuse("a secret's name has up to 64 letters, digits, - and _, a letter first")
    value = (typer.prompt("Value", hide_input=True) if sys.stdin.isatty() else sys.stdin.read()).strip()
    if not _VALUE.fullmatch(value):
        misuse("a secret's text has 1 to 4096 visible ASCII characters")
    with opened() as installation, installation.database.transaction() as session:
        now = clock(session)
        owner = project_of(session, project, now=now)
        project_secrets.put(
            session,
            owner.id,
            api_key_id=None,
            name=name,
            value=value,
            secret_id=new_id("sec"),
            installation_key=installation.installation_key,
            now=now,
        )
    say(f"Set the secret {name} of project {owner.name}")


@app.command("list")
def list_secrets(project: ProjectOption = None, output: Output = Format.TABLE) -> None:
    """List secrets by name and date."""
    with opened() as installation, installation.database.transaction() as session:
        owner = project_of(session, project, now=clock(session))
        page = project_secrets.list_secrets(session, owner.id, after=None, limit=_MOST_SHOWN)
    rows = [
        {"name": row.name, "created_at": seconds_of(row.created_at), "updated_at": seconds_of(row.updated_at)}
        for row in page.data
    ]
    show_rows(rows, _SECRETS, output)


@app.command()
def delete(name: Annotated[str, typer.Argument()], project: ProjectOption = None) -> None:
    """Forget a secret; jobs that name it wait until it is set again."""
    with opened() as installation, installation.database.transaction() as session:
        owner = project_of(session, project, now=clock(session))
        session.delete(project_secrets.get_secret(session, owner.id, name))
    say(f"Deleted the secret {name}")
