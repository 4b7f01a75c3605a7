"""`luthier keys`: API keys, made and revoked on the server's own machine, straight in its database.

A key is shown once, when it is made; the database holds a keyed hash of it.
"""

from collections.abc import Mapping
from datetime import timedelta
from enum import StrEnum
from typing import Annotated, Any

import typer
from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from luthier.cli.administration import ProjectOption, moment, opened, project_of, seconds_of
from luthier.cli.output import Column, Format, Output, show_rows
from luthier.cli.terminal import fail, misuse, say, time_of
from luthier.database import clock
from luthier.ids import new_id
from luthier.keys import new_key
from luthier.service import access, api_keys
from luthier.service.api_keys import MAX_GRACE_HOURS
from luthier.tables import ApiKey, Project

_LONGEST_NAME = 128
_MOST_DAYS = 3650
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

app = typer.Typer(no_args_is_help=True, help="Make, list, rotate and revoke API keys, on the server.")


class Scope(StrEnum):
    """What a key may do: within its project, or as an admin of the organisation."""

    READ = access.READ
    WRITE = access.WRITE
    ADMIN = access.ADMIN


@app.command()
def create(
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
) -> None:
    """Make a key and show it, this once."""
    if not 1 <= len(name) <= _LONGEST_NAME:
        misuse(f"--name has {len(name)} characters; give it 1 to {_LONGEST_NAME}")
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
            scopes=map(str, scope) if scope else access.PROJECT_SCOPES,
            expires_at=None if expires_days is None else now + timedelta(days=expires_days),
            requests_per_minute=requests_per_minute,
        )
    say(f"The key of {name}, shown this once:")
    print(key.text)


@app.command()
def generate() -> None:
    """Draw a key without storing it: LUTHIER_BOOTSTRAP_KEY makes it the first key of a first start."""
    print(new_key().text)


@app.command("list")
def list_keys(output: Output = Format.TABLE) -> None:
    """List keys by the part of them that is no secret."""
    query = select(ApiKey, Project.name).join(Project, Project.id == ApiKey.project_id)
    with opened() as installation, installation.database.reading() as session:
        rows = [
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
    show_rows(rows, _KEYS, output)


@app.command()
def rotate(
    key: Annotated[str, typer.Argument(help=_KEY_HELP)],
    grace_hours: Annotated[
        float, typer.Option(min=0, max=MAX_GRACE_HOURS, help="How long the old key stays good.")
    ] = 24,
) -> None:
    """Make a key in the place of another and show it, this once."""
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
    say(f"The new key of {row.name}, shown this once; the old one is good until {moment(row.expires_at)}:")
    print(new.text)


@app.command()
def revoke(key: Annotated[str, typer.Argument(help=_KEY_HELP)]) -> None:
    """Make a key worthless; what it has made stays. A server that runs refuses it within a second."""
    with opened() as installation, installation.database.transaction() as session:
        row = _find(session, key)
        api_keys.revoke(row, now=clock(session))
    say(f"Revoked the key of {row.name}")


def _find(session: Session, key: str) -> ApiKey:
    row = session.scalars(select(ApiKey).where(or_(ApiKey.prefix == key, ApiKey.id == key))).one_or_none()
    if row is None:
        fail(f"there is no key {key!r}: see `luthier keys list`")
    return row
