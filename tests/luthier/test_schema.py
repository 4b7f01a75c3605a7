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


def test_the_files_of_older_jobs_are_listed_and_their_rows_survive_both_ways(database: Database) -> None:
    schema.downgrade(database, "0001")
    with database.engine.begin() as connection:
        for statement in _OLDER_ROWS:
            connection.execute(text(statement))
    schema.upgrade(database)
    with database.engine.connect() as connection:
        listed = connection.execute(text("SELECT role, file_id, weight FROM job_files ORDER BY role")).all()
    assert [tuple(row) for row in listed] == [("training", "file-1", 1.0), ("validation", "file-2", 1.0)]
    schema.downgrade(database, "0001")
    with database.engine.connect() as connection:
        assert connection.execute(text("SELECT id FROM jobs")).all() == [("ftjob-1",)]
        assert connection.execute(text("SELECT filename FROM files")).all() == [("rows.jsonl",)]


_OLDER_ROWS = (
    "INSERT INTO organizations (id, name, created_at) VALUES ('org', 'org', '2026-01-01')",
    "INSERT INTO projects (id, organization_id, name, created_at) VALUES ('proj', 'org', 'p', '2026-01-01')",
    "INSERT INTO files (id, project_id, filename, purpose, size_bytes, sha256, storage_key, status, "
    "created_at) VALUES ('file-1', 'proj', 'rows.jsonl', 'fine-tune', 1, '', 'k', 'processed', '2026-01-01')",
    "INSERT INTO jobs (id, project_id, kind, queue, state, desired_state, priority, lease_epoch, run_count, "
    "next_number, request, training_file, validation_file, seed, step, created_at) VALUES ('ftjob-1', "
    "'proj', 'train', 'train', 'queued', 'run', 0, 0, 0, 1, '{}', 'file-1', 'file-2', 1, 0, '2026-01-01')",
)
