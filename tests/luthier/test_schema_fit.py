"""Which databases an agent of this release works with."""

import pytest
from sqlalchemy import text

from luthier import schema
from luthier.database import Database
from luthier.schema_fit import misfit


def _change(database: Database, *statements: str) -> None:
    with database.engine.begin() as connection:
        for statement in statements:
            connection.execute(text(statement))


def _migrate_on(database: Database, *statements: str) -> None:
    """What a newer release would do to a database."""
    _change(database, *statements, "UPDATE alembic_version SET version_num = '9999'")


def test_the_schema_of_this_release_fits(database: Database) -> None:
    assert misfit(database) is None


def test_a_newer_schema_that_only_added_fits(database: Database) -> None:
    _migrate_on(
        database,
        "ALTER TABLE jobs ADD COLUMN mood VARCHAR(16)",
        "ALTER TABLE jobs ADD COLUMN weight INTEGER DEFAULT 1 NOT NULL",
        "CREATE TABLE moods (id INTEGER PRIMARY KEY)",
    )
    assert misfit(database) is None


@pytest.mark.parametrize(
    ("statement", "reason"),
    [
        ("ALTER TABLE runs RENAME COLUMN boot_id TO start_id", "runs has no column boot_id"),
        ("DROP TABLE idempotency_keys", "there is no table idempotency_keys"),
    ],
)
def test_a_newer_schema_that_took_something_away_is_refused(
    database: Database, statement: str, reason: str
) -> None:
    _migrate_on(database, statement)
    told = misfit(database) or ""
    assert reason in told
    assert "install that release" in told


def test_an_older_and_an_empty_database_have_to_be_migrated(database: Database) -> None:
    schema.downgrade(database, schema.revisions()[-2])
    assert "luthier db upgrade" in (misfit(database) or "")
    schema.downgrade(database, "base")
    assert "luthier db upgrade" in (misfit(database) or "")
