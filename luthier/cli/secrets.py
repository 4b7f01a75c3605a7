"""`luthier secrets`: tokens that jobs need. They go in and never come out.

A secret's text is read from the terminal or from stdin, since arguments can be seen by every process.
"""

import re
import sys
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from luthier.cli.output import MOST_ROWS, Column, Format, Output, show_rows
from luthier.cli.parts import needed
from luthier.cli.remote import ProjectOption, RemoteOption
from luthier.cli.terminal import misuse, say, time_of
from luthier.client import Client

_LOCAL = "luthier.cli.local_secrets"
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")
_VALUE = re.compile(r"[\x21-\x7e]{1,4096}")
_SECRETS = (
    Column[Mapping[str, Any]]("NAME", lambda row: row["name"], is_whole=True),
    Column[Mapping[str, Any]]("CREATED", lambda row: row["created_at"], time_of, is_cut=True),
    Column[Mapping[str, Any]]("UPDATED", lambda row: row["updated_at"], time_of, is_cut=True),
)

app = typer.Typer(
    no_args_is_help=True,
    help="Set, list and delete secrets of a project: on the server's machine, or with --remote from any.",
)


@app.command("set")
def set_secret(
    name: Annotated[str, typer.Argument(help="Models are fetched with `hf_token`, or as a job says.")],
    project: ProjectOption = None,
    remote: RemoteOption = False,
) -> None:
    """Set a secret, or replace it: asks for its text, or reads that from stdin."""
    _check(project, remote)
    if not _NAME.fullmatch(name):
        misuse("a secret's name has up to 64 letters, digits, - and _, a letter first")
    value = (typer.prompt("Value", hide_input=True) if sys.stdin.isatty() else sys.stdin.read()).strip()
    if not _VALUE.fullmatch(value):
        misuse("a secret's text has 1 to 4096 visible ASCII characters")
    if remote:
        with Client() as client:
            client.secrets.set(name, value)
    else:
        needed(f"{_LOCAL}:set_secret", "server")(name, value, project)
    say(f"Set the secret {name}")


@app.command("list")
def list_secrets(
    project: ProjectOption = None, output: Output = Format.TABLE, remote: RemoteOption = False
) -> None:
    """List secrets by name and date."""
    _check(project, remote)
    if remote:
        with Client() as client:
            rows = [secret.model_dump() for secret in client.secrets.list(limit=MOST_ROWS)]
    else:
        rows = needed(f"{_LOCAL}:list_secrets", "server")(project)
    show_rows(rows, _SECRETS, output)


@app.command()
def delete(
    name: Annotated[str, typer.Argument()], project: ProjectOption = None, remote: RemoteOption = False
) -> None:
    """Forget a secret; jobs that name it wait until it is set again."""
    _check(project, remote)
    if remote:
        with Client() as client:
            client.secrets.delete(name)
    else:
        needed(f"{_LOCAL}:delete", "server")(name, project)
    say(f"Deleted the secret {name}")


def _check(project: str | None, remote: bool) -> None:
    if remote and project is not None:
        misuse("--project goes without --remote: over HTTP a key works in its own project")
