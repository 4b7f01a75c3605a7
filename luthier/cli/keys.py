"""`luthier keys`: API keys, made and revoked in the server's own database or, with `--remote`, over HTTP.

A key is shown once, when it is made; the database holds a keyed hash of it.
"""

from collections.abc import Iterator, Mapping
from enum import StrEnum
from typing import Annotated, Any

import typer

from luthier.cli.output import Column, Format, Output, show_rows
from luthier.cli.parts import needed
from luthier.cli.remote import ProjectOption, RemoteOption, find_project
from luthier.cli.terminal import fail, misuse, say, time_of
from luthier.client import ApiKey, Client, Project
from luthier.keys import MAX_GRACE_HOURS, new_key

_LOCAL = "luthier.cli.local_keys"
_LONGEST_NAME = 128
_MOST_DAYS, _DAY_SECONDS = 3650, 86400
_KEYS = (
    Column[Mapping[str, Any]]("KEY", lambda row: row["prefix"], "lk_{}_...".format, is_whole=True),
    Column[Mapping[str, Any]]("NAME", lambda row: row["name"]),
    Column[Mapping[str, Any]]("PROJECT", lambda row: row["project"]),
    Column[Mapping[str, Any]]("SCOPES", lambda row: ",".join(row["scopes"])),
    Column[Mapping[str, Any]]("CREATED", lambda row: row["created_at"], time_of, is_cut=True),
    Column[Mapping[str, Any]]("EXPIRES", lambda row: row["expires_at"], time_of, is_cut=True),
    Column[Mapping[str, Any]]("LAST USED", lambda row: row["last_used_at"], time_of, is_cut=True),
    Column[Mapping[str, Any]]("REVOKED", lambda row: row["revoked_at"], time_of, is_cut=True),
)
_KEY_HELP = "The 8 characters behind lk_, or the key's id."

app = typer.Typer(
    no_args_is_help=True,
    help="Make, list, rotate and revoke API keys: on the server's machine, or as an admin with --remote.",
)


class Scope(StrEnum):
    """What a key may do: within its project, or as an admin of the organisation."""

    READ = "read"
    WRITE = "write"
    ADMIN = "admin"


@app.command()
def create(
    *,
    name: Annotated[str, typer.Option(help="Whose key it is, or what for; shown in lists.")],
    scope: Annotated[
        list[Scope] | None, typer.Option(help="Give it for each scope. Default: read and write.")
    ] = None,
    expires_days: Annotated[
        float | None, typer.Option(min=0.01, max=_MOST_DAYS, help="Default: it does not expire.")
    ] = None,
    requests_per_minute: Annotated[
        int | None, typer.Option(min=0, help="In the place of LUTHIER_REQUESTS_PER_MINUTE; 0 is no limit.")
    ] = None,
    project: ProjectOption = None,
    remote: RemoteOption = False,
) -> None:
    """Make a key and show it, this once."""
    if not 1 <= len(name) <= _LONGEST_NAME:
        misuse(f"--name has {len(name)} characters; give it 1 to {_LONGEST_NAME}")
    scopes = [str(each) for each in scope or (Scope.READ, Scope.WRITE)]
    fields: dict[str, Any] = {
        "scopes": scopes,
        "expires_in_seconds": None if expires_days is None else round(expires_days * _DAY_SECONDS),
        "requests_per_minute": requests_per_minute,
    }
    if remote:
        is_admins = Scope.ADMIN in scopes
        if (project is None) is not is_admins:
            misuse("over HTTP a key with --scope admin has no --project, and every other one has")
        with Client() as client:
            owner = None if project is None else find_project(client, project).id
            text = client.api_keys.create(name, project_id=owner, **fields).value
    else:
        text = needed(f"{_LOCAL}:create", "server")(name, project, **fields)
    say(f"The key of {name}, shown this once:")
    print(text)


@app.command()
def generate() -> None:
    """Draw a key without storing it: LUTHIER_BOOTSTRAP_KEY makes it the first key of a first start."""
    print(new_key().text)


@app.command("list")
def list_keys(output: Output = Format.TABLE, remote: RemoteOption = False) -> None:
    """List keys by the part of them that is no secret."""
    if remote:
        with Client() as client:
            rows = [_row(key, project) for key, project in _all_keys(client)]
    else:
        rows = needed(f"{_LOCAL}:list_keys", "server")()
    show_rows(rows, _KEYS, output)


@app.command()
def rotate(
    key: Annotated[str, typer.Argument(help=_KEY_HELP)],
    grace_hours: Annotated[
        float, typer.Option(min=0, max=MAX_GRACE_HOURS, help="How long the old key stays good.")
    ] = 24,
    remote: RemoteOption = False,
) -> None:
    """Make a key in the place of another and show it, this once."""
    if remote:
        with Client() as client:
            old, project_id = _find(client, key)
            name = old.name
            text = client.api_keys.rotate(old.id, project_id=project_id, grace_hours=grace_hours).value
    else:
        name, text = needed(f"{_LOCAL}:rotate", "server")(key, grace_hours)
    say(f"The new key of {name}, shown this once; the old one is good for {grace_hours:g} hours at most:")
    print(text)


@app.command()
def revoke(key: Annotated[str, typer.Argument(help=_KEY_HELP)], remote: RemoteOption = False) -> None:
    """Make a key worthless; what it has made stays. A server that runs refuses it within a second."""
    if remote:
        with Client() as client:
            found, project_id = _find(client, key)
            client.api_keys.delete(found.id, project_id=project_id)
            name = found.name
    else:
        name = needed(f"{_LOCAL}:revoke", "server")(key)
    say(f"Revoked the key of {name}")


def _all_keys(client: Client) -> Iterator[tuple[ApiKey, Project | None]]:
    """The keys of all open projects, and those of the organisation's admins."""
    for project in client.projects.list(limit=100):
        for key in client.api_keys.list(project_id=project.id, limit=100):
            yield key, project
    for key in client.api_keys.list(limit=100):
        yield key, None


def _find(client: Client, named: str) -> tuple[ApiKey, str | None]:
    found = [each for each in _all_keys(client) if named in (each[0].id, _prefix_of(each[0]))]
    if not found:
        fail(f"there is no key {named!r}: see `luthier keys list --remote`")
    key, project = found[0]
    return key, project.id if project else None


def _row(key: ApiKey, project: Project | None) -> Mapping[str, Any]:
    return {
        "id": key.id,
        "prefix": _prefix_of(key),
        "name": key.name,
        "project": project.name if project else None,
        "scopes": key.scopes,
        "created_at": key.created_at,
        "expires_at": key.expires_at,
        "last_used_at": key.last_used_at,
        # Those that are revoked are not shown over HTTP.
        "revoked_at": None,
    }


def _prefix_of(key: ApiKey) -> str:
    return key.redacted_value.removeprefix("lk_").partition("_")[0]
