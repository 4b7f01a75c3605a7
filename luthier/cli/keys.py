"""`luthier keys`: API keys, made and revoked on the server's own machine, straight in its database.

A key is shown once, when it is made; the database holds a keyed hash of it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Annotated

import typer
from sqlalchemy import or_, select

from luthier import schema
from luthier.cli.database import answering
from luthier.cli.terminal import fail, misuse, print_table, say, time_of
from luthier.database import clock
from luthier.ids import new_id
from luthier.installation import Installation, open_installation
from luthier.keys import new_key
from luthier.service import access
from luthier.settings import Settings
from luthier.tables import ApiKey

_LONGEST_NAME = 128

app = typer.Typer(no_args_is_help=True, help="Make, list and revoke API keys, on the server's machine.")


@app.command()
def create(
    name: Annotated[str, typer.Option(help="Whose key it is, or what for; shown in lists.")],
) -> None:
    """Make a key and show it, this once."""
    if not 1 <= len(name) <= _LONGEST_NAME:
        misuse(f"--name has {len(name)} characters; give it 1 to {_LONGEST_NAME}")
    key = new_key()
    with _opened() as installation, installation.database.transaction() as session:
        now = clock(session)
        access.record_key(
            session,
            access.ensure_project(session, now=now),
            key,
            key_id=new_id("key"),
            name=name,
            installation_key=installation.installation_key,
            now=now,
        )
    say(f"The key of {name}, shown this once:")
    print(key.text)


@app.command()
def generate() -> None:
    """Draw a key without storing it: LUTHIER_BOOTSTRAP_KEY makes it the first key of a first start."""
    print(new_key().text)


@app.command("list")
def list_keys() -> None:
    """List keys by the part of them that is no secret."""
    with _opened() as installation, installation.database.reading() as session:
        rows = [
            (
                f"lk_{key.prefix}_...",
                key.name,
                _moment(key.created_at),
                _moment(key.last_used_at),
                _moment(key.revoked_at),
            )
            for key in session.scalars(select(ApiKey).order_by(ApiKey.created_at, ApiKey.id))
        ]
    print_table(("KEY", "NAME", "CREATED", "LAST USED", "REVOKED"), rows)


@app.command()
def revoke(
    key: Annotated[str, typer.Argument(help="The 8 characters behind lk_, or the key's id.")],
) -> None:
    """Make a key worthless from now on; what it has made stays."""
    with _opened() as installation, installation.database.transaction() as session:
        row = session.scalars(select(ApiKey).where(or_(ApiKey.prefix == key, ApiKey.id == key))).one_or_none()
        if row is None:
            fail(f"there is no key {key!r}: see `luthier keys list`")
        row.revoked_at = row.revoked_at or clock(session)
    say(f"Revoked the key of {row.name}")


@contextmanager
def _opened() -> Iterator[Installation]:
    """The installation of the settings, with a schema that this release knows."""
    installation = open_installation(Settings())
    with answering(installation.database) as database:
        if schema.current_revision(database) != schema.wanted_revision():
            fail("the database is not at this release's schema: run `luthier db upgrade`")
        yield installation


def _moment(time: datetime | None) -> str:
    return "" if time is None else time_of(time.timestamp())
