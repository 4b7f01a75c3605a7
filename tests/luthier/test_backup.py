"""Backups: made while the service works, whole or not at all, and brought back to either database."""

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from luthier import schema
from luthier.artifacts import seal, verify
from luthier.backup import Restored, back_up, back_up_rows, restore
from luthier.database import Database
from luthier.errors import LuthierError
from luthier.installation import Installation, open_installation, prepare
from luthier.service import access, leadership, runs
from luthier.service.transitions import LeaseLostError
from luthier.settings import Settings
from luthier.status import Queue, State
from luthier.storage import FileStorage, Storage, open_storage
from luthier.tables import ApiKey, Base, Checkpoint, File, Job, Leader, Metric, Run, Worker
from tests.factories import NOW, claim, create_file, create_job, create_prepared_job
from tests.s3 import S3Server

_BYTES = b'{"messages": []}\n'


@dataclass
class Target:
    """An installation that is not there yet."""

    settings: Settings
    database: Database

    @property
    def storage(self) -> Storage:
        return open_storage(self.settings)

    def restore(self, source: Path, *, force: bool = False) -> Restored:
        return restore(self.settings, self.database, self.storage, source, force=force, stamp="now")


@pytest.fixture
def installation(tmp_path: Path, sqlite_or_long_url: str) -> Iterator[Installation]:
    installation = _at_work(Settings(data_dir=tmp_path / "source", database_url=sqlite_or_long_url), tmp_path)
    yield installation
    installation.database.close()


def _at_work(settings: Settings, tmp_path: Path) -> Installation:
    """An installation at work: a job that runs and has a checkpoint, one that waits, a worker, a leader."""
    installation = open_installation(settings)
    prepare(installation)
    with installation.storage.receive() as incoming:
        incoming.write(_BYTES)
        sha256 = incoming.sha256
        installation.storage.keep(incoming, "files/file-train")
    with installation.database.transaction() as session:
        create_file(session, sha256=sha256)
        create_prepared_job(session, "ftjob-runs")
        _run_with_checkpoint(session, installation.storage, tmp_path)
        create_job(session, "ftjob-waits")
        leadership.lead(session, "dispatcher", lease_seconds=60, now=NOW)
        session.add(_worker())
    return installation


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Target]:
    """An empty place with SQLite."""
    settings = Settings(data_dir=tmp_path / "target")
    database = Database(settings.database)
    yield Target(settings, database)
    database.close()


def _run_with_checkpoint(session: Session, storage: Storage, folder: Path) -> None:
    taken = claim(session)
    assert taken is not None
    (folder / "checkpoint").mkdir()
    (folder / "checkpoint" / "adapter.txt").write_text("weights", encoding="utf-8")
    key = "ftjob-runs/e0001/checkpoints/step-000002"
    manifest = storage.put_sealed(folder / "checkpoint", key, {"step": 2})
    runs.record_checkpoint(
        session, taken.lease, step=2, storage_key=key, manifest_sha256="0" * 64,
        size_bytes=manifest.size_bytes, metrics={"train_loss": 0.1 + 0.2, "eval_loss": None}, now=NOW,
    )  # fmt: skip
    session.add(
        Metric(
            job_id="ftjob-runs", number=99, project_id=access.DEFAULT_PROJECT, epoch=1, at=NOW, step=1,
            total_steps=4, train_loss=1 / 3,
        )
    )  # fmt: skip


def _worker() -> Worker:
    return Worker(
        id="host/gpu0", instance_id="i", host="host", queue="train", device="cpu", version="1", resources={},
        state="active", started_at=NOW, heartbeat_at=NOW,
    )  # fmt: skip


def _make(installation: Installation, folder: Path) -> Path:
    return back_up(installation, folder, now=NOW).folder


def _contents(database: Database) -> dict[str, list[tuple[object, ...]]]:
    """All rows of all tables."""
    with database.reading() as session:
        return {
            table.name: [tuple(row) for row in session.execute(select(table).order_by(*table.primary_key))]
            for table in Base.metadata.sorted_tables
        }


def test_every_row_comes_back_as_it_was(installation: Installation, target: Target, tmp_path: Path) -> None:
    with installation.database.transaction() as session:
        # Nothing runs, so that a restore changes no more than epochs.
        for job in session.scalars(select(Job).where(Job.lease_owner.is_not(None))):
            job.state, job.lease_owner = State.CANCELLED, None
    before = _contents(installation.database)
    target.restore(_make(installation, tmp_path / "backup"))
    after = _contents(target.database)
    changed = {"jobs", "leaders", "workers"}
    assert {name: rows for name, rows in after.items() if name not in changed} == {
        name: rows for name, rows in before.items() if name not in changed
    }
    assert (len(after["jobs"]), after["workers"]) == (len(before["jobs"]), [])


def test_what_was_sqlite_can_become_postgres_and_counts_on(
    installation: Installation, postgres_server: str, postgres_url: str, tmp_path: Path
) -> None:
    source = _make(installation, tmp_path / "backup")
    settings = Settings(data_dir=tmp_path / "target", database_url=postgres_url)
    database = Database(postgres_url)
    if installation.settings.database_url == postgres_url:
        installation.database.close()
    schema.downgrade(database, "base")
    with database.engine.begin() as connection:
        connection.exec_driver_sql("DROP TABLE alembic_version")
    Target(settings, database).restore(source)
    with database.transaction() as session:
        assert session.scalar(select(func.count()).select_from(ApiKey)) == 1
        create_job(session, "ftjob-new")
    database.close()


def test_a_running_job_goes_back_to_its_queue_and_is_charged_nothing(
    installation: Installation, target: Target, tmp_path: Path
) -> None:
    done = target.restore(_make(installation, tmp_path / "backup"))
    assert done.requeued == ("ftjob-runs",)
    with target.database.reading() as session:
        job = session.get_one(Job, "ftjob-runs")
        assert (job.state, job.lease_owner, job.lease_expires_at) == (State.QUEUED, None, None)
        assert session.get_one(Run, (job.id, 1)).outcome == "stopped"
    with target.database.transaction() as session:
        taken = claim(session, now=NOW + timedelta(days=400))
    assert taken is not None
    assert taken.job.id == "ftjob-runs"
    target.storage.verify("ftjob-runs/e0001/checkpoints/step-000002")


def test_epochs_go_on_above_all_that_were_given_since(
    installation: Installation, target: Target, tmp_path: Path
) -> None:
    source = _make(installation, tmp_path / "backup")
    with installation.database.reading() as session:
        job = session.get_one(Job, "ftjob-runs")
        stale = runs.Lease(job.id, job.lease_epoch, job.lease_owner or "")
    target.restore(source)
    with target.database.reading() as session:
        assert session.get_one(Leader, "dispatcher").epoch == 1_000_001
    with target.database.transaction() as session:
        taken = claim(session, now=NOW + timedelta(days=400))
    assert taken is not None
    assert taken.lease.epoch == 1_000_002
    with pytest.raises(LeaseLostError), target.database.transaction() as session:
        runs.heartbeat(session, stale, lease_seconds=60, now=NOW)


def test_files_are_linked_and_checked_and_the_key_is_its_owners(
    installation: Installation, tmp_path: Path
) -> None:
    source = _make(installation, tmp_path / "backup")
    stored = installation.storage.fetch_file("files/file-train", tmp_path / "unused")
    assert (source / "files" / "files" / "file-train").samefile(stored)
    assert verify(source).meta["row_counts"]["files"] == 1
    assert (source / "keys" / "installation.key").stat().st_mode & 0o777 == 0o600
    assert source.stat().st_mode & 0o777 == 0o700
    assert [path.name for path in tmp_path.glob(".*")] == []


def test_the_keys_of_users_still_open_the_restored_service(
    installation: Installation, target: Target, tmp_path: Path
) -> None:
    target.restore(_make(installation, tmp_path / "backup"))
    restored = open_installation(target.settings)
    assert restored.installation_key == installation.installation_key
    restored.database.close()


def test_what_changes_while_a_backup_is_made_is_not_in_it(
    installation: Installation, target: Target, tmp_path: Path
) -> None:
    """One moment is kept: the snapshot is open when a job is added, and does not see it."""
    with installation.database.snapshot() as connection:
        before = connection.execute(select(func.count()).select_from(Job)).scalar()
        with installation.database.transaction() as session:
            create_job(session, "ftjob-later")
        assert connection.execute(select(func.count()).select_from(Job)).scalar() == before


def test_a_run_without_log_and_artifacts_is_not_told_as_a_loss(
    installation: Installation, tmp_path: Path
) -> None:
    assert back_up(installation, tmp_path / "backup", now=NOW).facts.missing == []


def test_a_file_that_was_deleted_meanwhile_is_told_and_its_row_says_so(
    installation: Installation, target: Target, tmp_path: Path
) -> None:
    installation.storage.delete("files/file-train")
    installation.storage.delete("ftjob-runs/e0001/checkpoints/step-000002")
    done = target.restore(_make(installation, tmp_path / "backup"))
    assert len(done.missing) == 2
    with target.database.reading() as session:
        file = session.get_one(File, "file-train")
        assert (file.status, session.scalars(select(Checkpoint)).all()) == ("error", [])


def test_a_backup_without_checkpoints_restores_the_jobs(
    installation: Installation, target: Target, tmp_path: Path
) -> None:
    made = back_up(installation, tmp_path / "backup", now=NOW, with_checkpoints=False)
    target.restore(made.folder)
    with target.database.reading() as session:
        assert session.scalars(select(Checkpoint)).all() == []
        assert session.get_one(Job, "ftjob-runs").state == State.QUEUED


def test_an_upload_that_has_changed_is_found(installation: Installation, tmp_path: Path) -> None:
    installation.storage.fetch_file("files/file-train", tmp_path / "unused").write_bytes(b"another")
    assert back_up(installation, tmp_path / "backup", now=NOW).damaged == ("files/file-train",)


def _flip(folder: Path) -> None:
    path = next(folder.glob("database/jobs.*"))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _claim_the_future(folder: Path) -> None:
    meta = verify(folder).meta
    (folder / "MANIFEST.json").unlink()
    seal(folder, meta | {"revision": "9999"})


def _name_otherwise(folder: Path) -> None:
    (folder / "MANIFEST.json").write_text(json.dumps({"files": [], "meta": {"step": 1}}), encoding="utf-8")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [(_flip, "another SHA-256"), (_claim_the_future, "schema 9999"), (_name_otherwise, "no backup")],
)
def test_a_bad_backup_is_refused_before_anything_is_written(
    installation: Installation, target: Target, tmp_path: Path, spoil: Callable[[Path], None], words: str
) -> None:
    source = _make(installation, tmp_path / "backup")
    spoil(source)
    with pytest.raises(LuthierError, match=words):
        target.restore(source)
    assert not target.settings.storage.exists()
    assert schema.current_revision(target.database) is None


def test_an_installation_that_is_there_is_replaced_only_by_force(
    installation: Installation, target: Target, tmp_path: Path
) -> None:
    first = _make(installation, tmp_path / "first")
    target.restore(first)
    storage = FileStorage(target.settings.storage)
    with storage.receive() as incoming:
        incoming.write(b"later")
        storage.keep(incoming, "ftjob-runs/e1000002/artifacts/late.txt")
    with pytest.raises(LuthierError, match="--force"):
        target.restore(first)
    done = target.restore(first, force=True)
    assert done.orphans is not None
    late = "ftjob-runs/e1000002/artifacts/late.txt"
    assert storage.path(f"{done.orphans}/{late}").read_bytes() == b"later"
    assert storage.find_size(late) is None
    assert storage.path("files/file-train").read_bytes() == _BYTES


@pytest.mark.parametrize(("source_kind", "target_kind"), [("s3", "files"), ("files", "s3")])
def test_what_lay_in_a_bucket_can_lie_in_a_folder_and_the_other_way(
    s3_server: S3Server, tmp_path: Path, sqlite_url: str, source_kind: str, target_kind: str
) -> None:
    prefix = os.urandom(4).hex()
    fields = {
        kind: s3_server.settings(f"{prefix}-{kind}") if kind == "s3" else {} for kind in ("s3", "files")
    }
    settings = Settings(data_dir=tmp_path / "one", database_url=sqlite_url, **fields[source_kind])
    installation = _at_work(settings, tmp_path)
    other = Settings(data_dir=tmp_path / "other", **fields[target_kind])
    place = Target(other, Database(other.database))
    done = place.restore(_make(installation, tmp_path / "backup"))
    assert (done.missing, done.orphans) == ((), None)
    assert place.storage.verify("ftjob-runs/e0001/checkpoints/step-000002").meta == {"step": 2}
    assert b"".join(place.storage.read_range("files/file-train", 0, len(_BYTES))) == _BYTES
    place.database.close()
    installation.database.close()


def test_a_service_at_work_is_not_replaced_even_by_force(
    installation: Installation, target: Target, tmp_path: Path
) -> None:
    source = _make(installation, tmp_path / "backup")
    target.restore(source)
    with target.database.transaction() as session:
        leadership.lead(session, "dispatcher-2", lease_seconds=60, now=datetime.now(UTC))
    with pytest.raises(LuthierError, match="dispatcher-2"):
        target.restore(source, force=True)


def test_a_backup_that_breaks_off_leaves_nothing(
    installation: Installation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("luthier.backup.making.publish", fail)
    with pytest.raises(OSError, match="No space"):
        _make(installation, tmp_path / "backup")
    assert [path.name for path in tmp_path.iterdir() if "backup" in path.name] == []


def test_rows_alone_are_restored_over_storage_as_it_is(installation: Installation, tmp_path: Path) -> None:
    source = back_up_rows(installation, tmp_path / "backup", now=NOW).folder
    with installation.database.transaction() as session:
        session.execute(Job.__table__.update().values(suffix="changed since"))
    target = Target(installation.settings, installation.database)
    done = target.restore(source, force=True)
    assert (done.missing, done.orphans) == ((), None)
    with installation.database.reading() as session:
        assert session.get_one(Job, "ftjob-runs").suffix is None
    with installation.database.transaction() as session:
        assert claim(session, Queue.CPU, now=NOW + timedelta(days=400)) is not None
