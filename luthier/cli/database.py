"""`luthier db`: the schema of the database that the settings name."""

from collections.abc import Iterator
from contextlib import contextmanager

import typer
from sqlalchemy.exc import DBAPIError

from luthier import schema
from luthier.cli.terminal import fail, say
from luthier.database import Database
from luthier.settings import Settings

app = typer.Typer(no_args_is_help=True, help="Bring the database's tables to this release.")


@app.command()
def upgrade() -> None:
    """Migrate the database to this release; safe to repeat, and from several hosts at once.

    `luthier up` does this by itself. With Postgres, run it before starting the processes of a new release.
    """
    with answering(Database(Settings().database)) as database:
        before = schema.current_revision(database)
        schema.upgrade(database)
    say(f"The schema is {schema.wanted_revision()} (it was {before or 'empty'})")


@app.command()
def current() -> None:
    """Show the schema that the database has, and the one that this release wants."""
    with answering(Database(Settings().database)) as database:
        revision = schema.current_revision(database)
    print(f"{revision or 'empty'} (wanted: {schema.wanted_revision()})")
    if revision != schema.wanted_revision():
        fail("the database is not at this release's schema: run `luthier db upgrade`")


@contextmanager
def answering(database: Database) -> Iterator[Database]:
    """Use a database and close it; ends the command with a clear line where it does not answer."""
    try:
        yield database
    except DBAPIError as error:
        where = database.url.render_as_string(hide_password=True)
        fail(
            f"the database {where} does not answer: {error.orig}. "
            "Check LUTHIER_DATABASE_URL, or run `luthier doctor`"
        )
    finally:
        database.close()
