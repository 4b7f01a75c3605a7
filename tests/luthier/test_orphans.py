"""Which keys of storage are nobody's, on both databases."""

import threading
from collections.abc import Iterator

import pytest
from sqlalchemy.orm import Session

from luthier.database import Database
from luthier.service import access, endings, orphans, prepared, runs
from luthier.service.orphans import Unit, unit_of
from luthier.service.retries import Ending, Limits
from luthier.tables import Artifact
from tests.factories import CALLER, NOW, claim, create_file, create_prepared_job


@pytest.fixture
def session(database: Database) -> Iterator[Session]:
    with database.transaction() as session:
        yield session


def _orphans(session: Session, *keys: str) -> list[str]:
    units = [unit_of(key) for key in keys]
    return [unit.key for unit in orphans.find_orphans(session, [unit for unit in units if unit])]


@pytest.mark.parametrize(
    ("key", "form", "unit_key"),
    [
        ("files/file-4Xq", "file", "files/file-4Xq"),
        ("uploads/part_4Xq", "part", "uploads/part_4Xq"),
        ("prepared/proj-1/ab/rows.parquet", "prepared", "prepared/proj-1/ab"),
        ("ftjob-1/e0003/checkpoints/step-000500/a/b", "checkpoint", "ftjob-1/e0003/checkpoints/step-000500"),
        ("ftjob-1/e12345/artifacts/adapter/x", "artifacts", "ftjob-1/e12345/artifacts"),
        ("work-1/e0001/log.txt", "log", "work-1/e0001/log.txt"),
    ],
)
def test_a_key_tells_what_it_belongs_to(key: str, form: str, unit_key: str) -> None:
    unit = unit_of(key)
    assert unit is not None
    assert (unit.form, unit.key) == (form, unit_key)


@pytest.mark.parametrize(
    "key",
    ["notes.txt", "exports/exp-1/model.gguf", "ftjob-1/e0001/other/x", "ftjob-1/e0001/log.txt.old",
     "ftjob-1/e01/artifacts/x", "prepared/proj-1", "files/readme", ".tmp/x"],
)  # fmt: skip
def test_a_key_of_another_form_is_not_ours_to_judge(key: str) -> None:
    assert unit_of(key) is None


def test_files_are_known_by_their_rows(session: Session) -> None:
    create_file(session)
    assert _orphans(session, "files/file-train", "files/file-gone") == ["files/file-gone"]


def test_a_run_that_works_is_left_alone_and_what_it_left_is_not(session: Session) -> None:
    """F26: the bytes of a checkpoint were renamed into place, and the worker died before it wrote the row."""
    create_prepared_job(session)
    run = claim(session)
    assert run is not None
    torn = "ftjob-1/e0001/checkpoints/step-000010"
    assert _orphans(session, torn, "ftjob-1/e0001/artifacts") == []
    endings.requeue_run(
        session, run.lease, ending=Ending.LOST, message="", exit_code=None,
        limits=Limits(5, 5, 3), jitter=0, now=NOW,
    )  # fmt: skip
    assert _orphans(session, torn, "ftjob-1/e0001/log.txt") == [torn]
    assert claim(session) is not None
    assert _orphans(session, torn, "ftjob-1/e0002/checkpoints/step-000010") == [torn]


def test_a_checkpoint_with_a_row_is_never_an_orphan(session: Session) -> None:
    create_prepared_job(session)
    run = claim(session)
    assert run is not None
    key = "ftjob-1/e0001/checkpoints/step-000010"
    runs.record_checkpoint(
        session, run.lease, step=10, storage_key=key, manifest_sha256="0" * 64, size_bytes=1, metrics={},
        now=NOW,
    )  # fmt: skip
    endings.requeue_run(
        session, run.lease, ending=Ending.LOST, message="", exit_code=None,
        limits=Limits(5, 5, 3), jitter=0, now=NOW,
    )  # fmt: skip
    assert _orphans(session, key) == []


def test_artifacts_are_known_by_job_and_epoch(session: Session) -> None:
    job = create_prepared_job(session)
    session.add(
        Artifact(
            job_id=job.id, name="a", project_id=job.project_id, epoch=2, kind="adapter", size_bytes=1,
            sha256="0" * 64, storage_key="ftjob-1/e0002/artifacts/a", created_at=NOW,
        )
    )  # fmt: skip
    session.flush()
    assert _orphans(session, "ftjob-1/e0001/artifacts", "ftjob-1/e0002/artifacts") == [
        "ftjob-1/e0001/artifacts"
    ]


def test_nothing_of_a_job_that_is_forgotten_is_known(session: Session) -> None:
    keys = ["work-gone/e0001/log.txt", "ftjob-gone/e0001/artifacts"]
    assert _orphans(session, *keys) == keys


def _record_rows(session: Session) -> None:
    prepared.record_rows(
        session, CALLER.project_id, key="key", file_sha256="0" * 64, storage_key="prepared/proj-default/key",
        facts={"n": 1}, size_bytes=1, now=NOW,
    )  # fmt: skip


_PREPARED = Unit("prepared", "prepared/proj-default/key", "proj-default", "key")


def test_prepared_rows_are_known_by_their_rows(session: Session) -> None:
    create_file(session)
    assert _orphans(session, _PREPARED.key) == [_PREPARED.key]
    _record_rows(session)
    assert _orphans(session, _PREPARED.key) == []


def test_a_cache_key_with_rows_cannot_be_held(session: Session) -> None:
    create_file(session)
    assert orphans.hold_prepared(session, _PREPARED, now=NOW)
    _record_rows(session)
    assert not orphans.hold_prepared(session, _PREPARED, now=NOW)


def test_who_records_rows_waits_for_whoever_holds_their_key(database: Database) -> None:
    """So that it sees, in the same transaction, that the folder has gone."""
    with database.transaction() as session:
        access.ensure_project(session, now=NOW)
        create_file(session)
    recorded = threading.Event()

    def record() -> None:
        with database.transaction() as session:
            _record_rows(session)
            recorded.set()

    other = threading.Thread(target=record)
    with database.transaction() as session:
        assert orphans.hold_prepared(session, _PREPARED, now=NOW)
        other.start()
        # Waiting is the point here: the other one must not come through.
        assert not recorded.wait(0.3)
    other.join(10)
    assert recorded.is_set()
