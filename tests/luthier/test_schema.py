"""Migrations build exactly the tables of `luthier.tables`, on both databases, and can be taken back."""

from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import inspect, text

from luthier import schema
from luthier.database import Database
from luthier.errors import LuthierError
from luthier.tables import Base


def test_migrations_and_tables_agree(database: Database) -> None:
    with database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Base.metadata) == []


def test_upgrade_of_a_current_database_does_nothing(database: Database) -> None:
    assert schema.upgrade(database) is False


def test_downgrade_to_base_removes_every_table(database: Database) -> None:
    schema.downgrade(database, "base")
    assert inspect(database.engine).get_table_names() == ["alembic_version"]


def test_a_database_of_a_newer_release_is_refused(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'new.db'}")
    schema.upgrade(database)
    with database.engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = 'from-the-future'"))
    with pytest.raises(LuthierError, match="newer"):
        schema.upgrade(database)
    database.close()
