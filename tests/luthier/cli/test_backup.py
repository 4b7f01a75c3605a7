"""`luthier backup`, `luthier restore`, and what `luthier up` does with an older release's data folder."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pysqlite3
import pytest
from sqlalchemy import text

from luthier import schema
from luthier.artifacts import read_manifest, verify
from luthier.cli.up import _prepare
from luthier.database import Database
from luthier.service import backups
from luthier.settings import Settings
from tests.factories import create_file

Luthier = Callable[..., Any]

_ROWS = (
    "INSERT INTO organizations (id, name, created_at) VALUES ('org-local', 'o', '2026-01-01 00:00:00.0')",
    "INSERT INTO projects (id, organization_id, name, created_at) "
    "VALUES ('proj-default', 'org-local', 'p', '2026-01-01 00:00:00.000000')",
    "INSERT INTO files (id, project_id, filename, purpose, size_bytes, sha256, storage_key, status, "
    "created_at) VALUES ('file-1', 'proj-default', 'rows.jsonl', 'fine-tune', 1, 'a', 'k', 'processed', "
    "'2026-01-01 00:00:00.000000')",
    "INSERT INTO jobs (id, project_id, kind, queue, state, desired_state, priority, lease_epoch, run_count, "
    "next_number, request, training_file, seed, step, created_at) VALUES ('ftjob-1', 'proj-default', "
    "'train', 'train', 'queued', 'run', 0, 3, 0, 1, '{\"model\": \"tiny\"}', 'file-1', 1, 0, "
    "'2026-01-01 00:00:00.000000')",
)


def _older_revisions() -> Iterator[Any]:
    """All but the newest; those between the first and the last one in the long form of the tests alone."""
    revisions = schema.revisions()[:-1]
    for revision in revisions:
        is_between = revision not in (revisions[0], revisions[-1])
        yield pytest.param(revision, marks=[pytest.mark.full] if is_between else [])


@pytest.fixture(params=_older_revisions())
def older(request: pytest.FixtureRequest, data_dir: Path) -> str:
    """A data folder as an older release has left it; gives its revision."""
    database = Database(f"sqlite:///{data_dir / 'luthier.db'}")
    with schema.migrating(database) as connection:
        schema.migrate(connection, request.param)
        for statement in _ROWS:
            connection.execute(text(statement))
    database.close()
    return str(request.param)


def _jobs(data: Path) -> list[tuple[Any, ...]]:
    with pysqlite3.connect(str(data / "luthier.db")) as connection:
        found = connection.execute("SELECT id, state, lease_epoch FROM jobs").fetchall()
    connection.close()
    return list(found)


def _last_backup() -> str | None:
    database = Database(Settings().database)
    with database.reading() as session:
        last = backups.find_last(session)
    database.close()
    return last.folder if last else None


def test_up_backs_an_older_folder_up_migrates_it_and_says_so(
    older: str, data_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _prepare(Settings())
    said = capsys.readouterr().err
    (folder,) = (data_dir / "backups").iterdir()
    assert read_manifest(folder).meta["revision"] == older
    assert f"older schema {older}" in said
    assert str(folder) in said
    assert f"migrated from {older} to {schema.wanted_revision()}" in said
    assert _jobs(data_dir) == [("ftjob-1", "queued", 3)]


def test_the_backup_before_an_upgrade_leads_back_through_it(
    older: str, luthier: Luthier, data_dir: Path
) -> None:
    _prepare(Settings())
    (folder,) = (data_dir / "backups").iterdir()
    result = luthier("restore", folder, "--force")
    assert result.exit_code == 0, result.output
    assert _jobs(data_dir) == [("ftjob-1", "queued", 1_000_003)]


def test_a_backup_goes_to_another_folder_and_comes_back(
    luthier: Luthier, data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _prepare(Settings())
    key = (data_dir / "installation.key").read_bytes()
    made = luthier("backup", tmp_path)
    assert made.exit_code == 0, made.output
    folder = Path(made.stdout.strip())
    assert folder.parent == tmp_path
    verify(folder)
    assert _last_backup() == str(folder)
    shutil.rmtree(data_dir)
    monkeypatch.setenv("LUTHIER_DATA_DIR", str(tmp_path / "elsewhere"))
    assert luthier("restore", folder).exit_code == 0
    assert (tmp_path / "elsewhere" / "installation.key").read_bytes() == key
    assert (tmp_path / "elsewhere" / "installation.key").stat().st_mode & 0o777 == 0o600
    again = luthier("restore", folder)
    assert again.exit_code == 1
    assert "--force" in again.output


def test_a_backup_with_a_damaged_file_is_not_the_last_whole_one(
    luthier: Luthier, data_dir: Path, tmp_path: Path
) -> None:
    _prepare(Settings())
    assert luthier("backup", tmp_path / "whole").exit_code == 0
    database = Database(Settings().database)
    with database.transaction() as session:
        create_file(session)
    database.close()
    (data_dir / "storage" / "files").mkdir(parents=True)
    (data_dir / "storage" / "files" / "file-train").write_bytes(b"not what came")
    assert luthier("backup", tmp_path / "damaged").exit_code == 1
    assert _last_backup() == str(tmp_path / "whole")


def test_a_key_from_the_environment_must_be_the_same_at_the_restore(
    luthier: Luthier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LUTHIER_SECRET_KEY", "the one and only")
    _prepare(Settings())
    made = luthier("backup", tmp_path / "backup")
    assert "keep it elsewhere" in made.output
    assert not (tmp_path / "backup" / "keys").exists()
    monkeypatch.setenv("LUTHIER_DATA_DIR", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("LUTHIER_SECRET_KEY", "another")
    assert "LUTHIER_SECRET_KEY is not" in luthier("restore", tmp_path / "backup").output
    monkeypatch.delenv("LUTHIER_SECRET_KEY")
    assert "set LUTHIER_SECRET_KEY" in luthier("restore", tmp_path / "backup").output
    monkeypatch.setenv("LUTHIER_SECRET_KEY", "the one and only")
    assert luthier("restore", tmp_path / "backup").exit_code == 0


def test_a_damaged_database_is_not_started_on(luthier: Luthier, data_dir: Path) -> None:
    luthier("db", "upgrade")
    path = data_dir / "luthier.db"
    data = bytearray(path.read_bytes())
    # The pages behind the first; the header stays, so that the file still opens.
    data[4096 * 3 : 4096 * 9] = b"\xff" * (4096 * 6)
    path.write_bytes(data)
    result = luthier("up", "--port", "0")
    assert result.exit_code == 1
    assert "is damaged" in result.output
    assert "luthier restore" in result.output


def test_a_check_that_takes_too_long_is_broken_off(sqlite_url: str) -> None:
    from luthier.sqlite import quick_check

    database = Database(sqlite_url)
    with database.transaction() as session:
        session.execute(text("CREATE TABLE much (x)"))
        session.execute(
            text(
                "INSERT INTO much WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n LIMIT 50000)"
                " SELECT x FROM n"
            )
        )
    assert quick_check(database.engine, seconds=60).is_whole
    assert not quick_check(database.engine, seconds=-1).is_whole
    assert quick_check(database.engine, seconds=60).problems == ()
    database.close()
