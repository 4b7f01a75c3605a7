"""Housekeeping on real storage and on both databases: what a crash left goes, what somebody needs stays."""

import os
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from luthier.artifacts import Manifest, ManifestError
from luthier.database import clock
from luthier.installation import Installation
from luthier.service import leadership, prepared, uploads
from luthier.service.leadership import LeadershipLostError
from luthier.status import Queue, State
from luthier.storage import FileStorage, StorageUnavailableError
from luthier.tables import Checkpoint, File, Job, Outbox, PreparedRows
from tests.factories import CALLER, create_file, create_job
from worker.agent import Agent
from worker.housekeeping import Housekeeper
from worker.seat import Seat


@pytest.fixture
def worker_database_url(database_url: str) -> str:
    """All of this on both databases."""
    return database_url


@pytest.fixture
def seat(installation: Installation) -> Seat:
    seat = Seat(installation, "a")
    assert seat.keep(0.0)
    return seat


@pytest.fixture
def housekeeper(installation: Installation, seat: Seat) -> Housekeeper:
    return Housekeeper(installation, seat)


@pytest.fixture
def root(installation: Installation) -> Path:
    assert isinstance(installation.storage, FileStorage)
    return installation.storage.root


def _leave(root: Path, key: str, *, days_ago: float) -> Path:
    """Bytes under a key that were written so long ago."""
    path = root / key
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"left")
    _age(path, days_ago)
    return path


def _age(path: Path, days_ago: float) -> None:
    at = time.time() - 24 * 3600 * days_ago
    for item in (path, *path.rglob("*")):
        os.utime(item, (at, at))


def test_orphans_go_when_they_are_old(housekeeper: Housekeeper, root: Path) -> None:
    old = [
        _leave(root, key, days_ago=2)
        for key in (
            "files/file-gone", "uploads/part_gone", "prepared/proj-default/k/rows.parquet",
            "work-gone/e0001/log.txt",
        )
    ]  # fmt: skip
    young = _leave(root, "files/file-young", days_ago=0.5)
    foreign = _leave(root, "exports/exp-1/model.gguf", days_ago=400)
    housekeeper.collect_orphans()
    assert [path.exists() for path in (*old, young, foreign)] == [False] * 4 + [True] * 2


def test_of_a_folder_its_newest_file_counts(housekeeper: Housekeeper, root: Path) -> None:
    old = _leave(root, "prepared/proj-default/k/rows.parquet", days_ago=2)
    _leave(root, "prepared/proj-default/k/MANIFEST.json", days_ago=0)
    housekeeper.collect_orphans()
    assert old.exists()


def test_all_that_a_job_made_and_recorded_outlives_a_walk(
    installation: Installation,
    make_agent: Callable[..., Agent],
    housekeeper: Housekeeper,
    prepared_job: str,
    root: Path,
) -> None:
    make_agent(Queue.TRAIN, "done").drain()
    _age(root, 100)
    before = sorted(file.key for file in installation.storage.list_files())
    housekeeper.collect_orphans()
    assert sorted(file.key for file in installation.storage.list_files()) == before
    with installation.database.reading() as session:
        assert session.get_one(Job, prepared_job).state == State.SUCCEEDED


def test_a_crash_between_rename_and_row_leaves_nothing_for_ever(
    installation: Installation, housekeeper: Housekeeper, prepared_job: str, root: Path
) -> None:
    """F26: a checkpoint lies whole in storage under an epoch that nobody holds, and has no row."""
    torn = _leave(root, f"{prepared_job}/e0001/checkpoints/step-000010/adapter.safetensors", days_ago=2)
    housekeeper.collect_orphans()
    assert not torn.exists()
    assert installation.storage.find_size("files/file-train") is not None


def test_a_crash_between_a_dropped_row_and_its_bytes_is_mended_by_a_walk(
    installation: Installation, housekeeper: Housekeeper, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F27, as retention may cause it: the row is gone, and the process dies before it deletes the bytes."""
    with installation.database.transaction() as session:
        create_file(session, "file-old", sha256="1" * 64, expires_at=clock(session) - timedelta(days=1))
    kept = _leave(root, "files/file-old", days_ago=2)

    def die(_keys: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as crash:
        crash.setattr(housekeeper, "_delete", die)
        with pytest.raises(KeyboardInterrupt):
            housekeeper.drop_rows()
    with installation.database.reading() as session:
        assert session.get(File, "file-old") is None
    assert kept.exists()
    housekeeper.drop_rows()
    housekeeper.collect_orphans()
    assert not kept.exists()


def test_a_round_drops_old_checkpoints_with_their_bytes(
    installation: Installation,
    seat: Seat,
    make_agent: Callable[..., Agent],
    prepared_job: str,
) -> None:
    make_agent(Queue.TRAIN, "done").drain()
    with installation.database.reading() as session:
        keys = session.scalars(select(Checkpoint.storage_key)).all()
    assert keys
    Housekeeper(installation, seat).drop_rows()
    assert installation.storage.manifest(keys[0])
    short = installation.settings.model_copy(update={"keep_checkpoints_days": 1e-9})
    Housekeeper(replace(installation, settings=short), seat).drop_rows()
    with installation.database.reading() as session:
        assert session.scalars(select(Checkpoint.id).where(Checkpoint.job_id == prepared_job)).all() == []
    with pytest.raises(ManifestError):
        installation.storage.manifest(keys[0])


def test_a_round_drops_the_parts_of_an_upload_whose_time_is_over(
    installation: Installation, housekeeper: Housekeeper, root: Path
) -> None:
    with installation.database.transaction() as session:
        begun_at = clock(session) - timedelta(hours=2)
        uploads.begin(
            session, CALLER, upload_id="upload_1", filename="a", purpose="fine-tune", size_bytes=9,
            on_bad_row="refuse", file_expires_seconds=None, now=begun_at,
        )  # fmt: skip
        uploads.add_part(
            session, CALLER, "upload_1", part_id="part_1", size_bytes=4, sha256="0" * 64,
            storage_key="uploads/part_1", now=begun_at,
        )  # fmt: skip
    part = _leave(root, "uploads/part_1", days_ago=0)
    housekeeper.drop_rows()
    assert not part.exists()


def test_rows_that_are_recorded_anew_keep_their_folder(
    installation: Installation, housekeeper: Housekeeper, root: Path
) -> None:
    """A job found the folder whole after its row was dropped, and before its bytes were to go."""
    path = _leave(root, "prepared/proj-default/key/rows.parquet", days_ago=2)
    with installation.database.transaction() as session:
        prepared.record_rows(
            session, CALLER.project_id, key="key", file_sha256="0" * 64,
            storage_key="prepared/proj-default/key", facts={"n": 1}, size_bytes=1, now=clock(session),
        )  # fmt: skip
    housekeeper._delete(["prepared/proj-default/key"])
    assert path.exists()
    with installation.database.reading() as session:
        assert session.get_one(PreparedRows, (CALLER.project_id, "key")).size_bytes == 1


def test_what_was_begun_and_left_goes(housekeeper: Housekeeper, root: Path) -> None:
    old, young = _leave(root, ".tmp/old", days_ago=2), _leave(root, ".tmp/young", days_ago=0.1)
    housekeeper.collect_orphans()
    assert (old.exists(), young.exists()) == (False, True)


def test_messages_that_went_out_long_ago_are_forgotten(
    installation: Installation, housekeeper: Housekeeper
) -> None:
    with installation.database.transaction() as session:
        for number in range(3):
            create_job(session, f"ftjob-{number}", model="tiny")
        now = clock(session)
        first, second, _ = session.scalars(select(Outbox).order_by(Outbox.id))
        first.sent_at, second.sent_at = now - timedelta(days=2), now - timedelta(hours=1)
    housekeeper.drop_rows()
    with installation.database.reading() as session:
        assert session.scalars(select(Outbox.id).order_by(Outbox.id)).all() == [2, 3]


def test_a_storage_that_is_away_leaves_orphans_for_later(
    installation: Installation, seat: Seat, root: Path
) -> None:
    class Away(FileStorage):
        def delete(self, key: str) -> None:
            raise StorageUnavailableError(f"cannot reach {key}")

    left = _leave(root, "files/file-gone", days_ago=2)
    Housekeeper(replace(installation, storage=Away(root)), seat).collect_orphans()
    assert left.exists()
    Housekeeper(installation, seat).collect_orphans()
    assert not left.exists()


def test_who_does_not_lead_tidies_nothing(installation: Installation, seat: Seat, root: Path) -> None:
    left = _leave(root, "files/file-gone", days_ago=2)
    housekeeper = Housekeeper(installation, seat)
    with installation.database.transaction() as session:
        _follow(session)
    for part in (housekeeper.drop_rows, housekeeper.collect_orphans):
        with pytest.raises(LeadershipLostError):
            part()
    seat.leave()
    housekeeper.tick(1e9)
    assert left.exists()


def _follow(session: Any) -> None:
    later = clock(session) + timedelta(hours=1)
    assert leadership.lead(session, "b", lease_seconds=60, now=later) is not None


class _Losing(FileStorage):
    """Its first folder of prepared rows is taken for an orphan right after it was found whole."""

    lost = 0

    def keep_sealed(self, source: Path, key: str, meta: dict[str, object]) -> Manifest:
        manifest = super().keep_sealed(source, key, meta)
        if not self.lost:
            self.lost += 1
            self.delete(key)
        return manifest


class TestOfAFolderThatGoes:
    """What a preparation does whose folder has gone before it recorded the rows."""

    @pytest.fixture
    def installation(self, installation: Installation) -> Installation:
        assert isinstance(installation.storage, FileStorage)
        return replace(installation, storage=_Losing(installation.storage.root))

    def test_it_is_done_again_and_no_row_is_without_its_folder(
        self, installation: Installation, prepared_job: str
    ) -> None:
        with installation.database.reading() as session:
            assert session.get_one(Job, prepared_job).prepared_at is not None
            rows = session.scalars(select(PreparedRows)).one()
            assert session.get_one(Job, f"work-{prepared_job}").run_count == 2
        assert installation.storage.verify(rows.storage_key).files
