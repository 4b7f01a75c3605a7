"""What goes because its time is over, and what stays because somebody needs it, on both databases."""

from collections.abc import Iterator
from datetime import timedelta

import pytest
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from luthier import accounts, repository
from luthier.database import Database
from luthier.errors import Failure, LuthierError
from luthier.service import control, endings, files, prepared, retention, runs, uploads
from luthier.spec import SourceFile
from luthier.status import State
from luthier.tables import Checkpoint, File, Job, PreparedRows, Project, Upload
from tests.factories import CALLER, NOW, claim, create_file, create_job, create_prepared_job

DAYS = timedelta(days=30)
LATER = NOW + DAYS + timedelta(seconds=1)


@pytest.fixture
def session(database: Database) -> Iterator[Session]:
    with database.transaction() as session:
        yield session


def _end(session: Session, ending: str, job_id: str = "ftjob-1") -> Job:
    """A job with two checkpoints whose run ended so."""
    job = create_prepared_job(session, job_id)
    run = claim(session)
    assert run is not None
    for step in (10, 20):
        runs.record_checkpoint(
            session, run.lease, step=step, storage_key=f"{job_id}/e0001/checkpoints/step-{step:06}",
            manifest_sha256="0" * 64, size_bytes=100, metrics={}, now=NOW,
        )  # fmt: skip
    if ending == "failed":
        endings.fail_run(session, run.lease, Failure("server_error", "broken"), exit_code=1, now=NOW)
    elif ending == "cancelled":
        control.request_cancel(session, job, now=NOW)
        endings.stop_run(session, run.lease, exit_code=-15, now=NOW)
    elif ending == "paused":
        control.request_pause(session, job, now=NOW)
        endings.stop_run(session, run.lease, exit_code=85, now=NOW)
    elif ending == "quarantined":
        job.state, job.lease_owner, job.lease_expires_at, job.finished_at = State.QUARANTINED, None, None, NOW
        session.flush()
    return job


def _drop_checkpoints(session: Session, *, limit: int = 100, now: object = LATER) -> list[str]:
    return retention.drop_checkpoints(session, older_than=DAYS, limit=limit, now=now)  # type: ignore[arg-type]


@pytest.mark.parametrize("ending", ["failed", "cancelled", "quarantined"])
def test_checkpoints_of_an_ended_job_go_after_their_time(session: Session, ending: str) -> None:
    _end(session, ending)
    assert _drop_checkpoints(session, now=NOW + DAYS) == []
    assert sorted(_drop_checkpoints(session)) == [
        "ftjob-1/e0001/checkpoints/step-000010",
        "ftjob-1/e0001/checkpoints/step-000020",
    ]
    assert session.scalar(select(func.count()).select_from(Checkpoint)) == 0


@pytest.mark.parametrize("ending", ["paused", "running"])
def test_a_job_that_has_not_ended_keeps_its_checkpoints(session: Session, ending: str) -> None:
    _end(session, ending)
    assert _drop_checkpoints(session) == []


def test_what_a_retry_starts_from_stays_as_long_as_it_may_be_needed(session: Session) -> None:
    job = _end(session, "failed")
    child = control.retry(
        session, CALLER, job, from_="checkpoint", job_id="ftjob-2", work_id="work-2", seed=1, now=NOW
    )
    session.flush()
    assert child.resume_from is not None
    assert _drop_checkpoints(session) == ["ftjob-1/e0001/checkpoints/step-000010"]
    control.request_cancel(session, child, now=LATER)
    session.flush()
    # It made none of its own, and may be tried again as long as other ended jobs.
    assert _drop_checkpoints(session) == []
    assert _drop_checkpoints(session, now=LATER + DAYS) == []
    assert _drop_checkpoints(session, now=LATER + 2 * DAYS) == ["ftjob-1/e0001/checkpoints/step-000020"]


def test_no_more_go_at_once_than_asked(session: Session) -> None:
    _end(session, "failed")
    assert [len(_drop_checkpoints(session, limit=1)) for _ in range(3)] == [1, 1, 0]


def test_the_project_gets_its_room_back(session: Session) -> None:
    job = _end(session, "failed")
    before = accounts.recount(session, job.project_id)
    _drop_checkpoints(session, limit=1)
    session.expire_all()
    after = session.get_one(Project, job.project_id).storage_bytes
    assert (after < before, after) == (True, accounts.recount(session, job.project_id))


def _record_prepared(session: Session, sha256: str = "0" * 64) -> None:
    prepared.record_rows(
        session, CALLER.project_id, key="key", file_sha256=sha256, storage_key="prepared/proj-default/key",
        facts={"n": 1}, size_bytes=100, now=NOW,
    )  # fmt: skip


def _drop_prepared(session: Session) -> list[str]:
    return retention.drop_prepared(session, unused_for=DAYS, limit=100, now=LATER)


def test_prepared_rows_that_nobody_used_for_long_go(session: Session) -> None:
    create_file(session)
    _record_prepared(session)
    assert _drop_prepared(session) == ["prepared/proj-default/key"]
    assert session.scalar(select(func.count()).select_from(PreparedRows)) == 0


def test_a_use_keeps_prepared_rows(session: Session) -> None:
    create_file(session)
    _record_prepared(session)
    source = SourceFile(
        path="rows.jsonl", filename="rows.jsonl", param="training_file", weight=1.0, cache_key="key"
    )
    prepared.use(session, CALLER.project_id, source, now=LATER)
    assert _drop_prepared(session) == []


def test_prepared_rows_of_a_job_that_has_not_ended_stay(session: Session) -> None:
    """Though it may wait in its queue, or be paused, for longer than they are kept."""
    job = create_job(session)
    _record_prepared(session)
    assert _drop_prepared(session) == []
    control.request_cancel(session, job, now=NOW)
    session.flush()
    assert _drop_prepared(session) == ["prepared/proj-default/key"]


def test_a_file_goes_at_its_time_with_what_was_prepared_from_it(session: Session) -> None:
    create_file(session, expires_at=LATER)
    _record_prepared(session)
    assert retention.drop_expired_files(session, limit=10, now=LATER - timedelta(seconds=1)) == []
    keys = retention.drop_expired_files(session, limit=10, now=LATER)
    assert keys == ["files/file-train", "prepared/proj-default/key"]


def test_of_two_files_with_one_content_the_other_stays_whole(session: Session) -> None:
    """F39."""
    create_file(session, "file-a", expires_at=LATER)
    create_file(session, "file-b")
    _record_prepared(session)
    assert retention.drop_expired_files(session, limit=10, now=LATER) == ["files/file-a"]
    assert [file.id for file in session.scalars(select(File))] == ["file-b"]
    assert session.get(PreparedRows, (CALLER.project_id, "key")) is not None


def test_a_file_that_a_job_needs_outlives_its_time_and_cannot_be_deleted(session: Session) -> None:
    """F40."""
    file = create_file(session, expires_at=LATER)
    job = create_job(session)
    assert retention.drop_expired_files(session, limit=10, now=LATER) == []
    with pytest.raises(LuthierError) as caught:
        files.delete_file(session, file, now=LATER)
    assert caught.value.code == "file_in_use"
    control.request_cancel(session, job, now=LATER)
    session.flush()
    assert retention.drop_expired_files(session, limit=10, now=LATER) == ["files/file-train"]


def test_files_in_use_do_not_stand_in_the_way_of_others(session: Session) -> None:
    create_file(session, expires_at=NOW)
    create_job(session)
    create_file(session, "file-b", expires_at=LATER, sha256="1" * 64)
    assert retention.drop_expired_files(session, limit=1, now=LATER) == ["files/file-b"]


def _begin_upload(session: Session, upload_id: str = "upload_1") -> Upload:
    """An upload with a part, begun now."""
    create_file(session, f"file-{upload_id}")
    upload = uploads.begin(
        session, CALLER, upload_id=upload_id, filename="rows.jsonl", purpose="fine-tune", size_bytes=9,
        on_bad_row="refuse", file_expires_seconds=None, now=NOW,
    )  # fmt: skip
    part_id = upload_id.replace("upload", "part")
    uploads.add_part(
        session, CALLER, upload_id, part_id=part_id, size_bytes=5, sha256="0" * 64,
        storage_key=f"uploads/{part_id}", now=NOW,
    )  # fmt: skip
    return upload


def test_the_parts_of_an_upload_go_an_hour_after_its_time_is_over(session: Session) -> None:
    """Until then it may be being completed."""
    upload = _begin_upload(session)
    before = accounts.recount(session, CALLER.project_id)
    end = upload.expires_at + timedelta(hours=1)
    assert retention.drop_parts(session, limit=10, now=end - timedelta(seconds=1)) == []
    assert retention.drop_parts(session, limit=10, now=end) == ["uploads/part_1"]
    session.flush()
    assert accounts.recount(session, CALLER.project_id) == before - 5


def test_the_parts_of_an_upload_that_is_being_ended_are_left_alone(postgres_url: str) -> None:
    database = Database(postgres_url)
    with database.transaction() as session:
        late = _begin_upload(session).expires_at + timedelta(hours=2)
    with database.transaction() as ending, database.transaction() as session:
        repository.get_upload(ending, CALLER.project_id, "upload_1", is_locked=True)
        assert retention.drop_parts(session, limit=10, now=late) == []
    database.close()


def test_an_upload_is_forgotten_long_after_its_time_and_after_its_parts(session: Session) -> None:
    upload, late = _begin_upload(session), NOW + timedelta(days=2)
    day = timedelta(days=1)
    assert retention.drop_uploads(session, older_than=day, limit=10, now=late) == 0
    retention.drop_parts(session, limit=10, now=late)
    session.flush()
    assert retention.drop_uploads(session, older_than=day, limit=10, now=upload.expires_at + day) == 0
    assert retention.drop_uploads(session, older_than=day, limit=10, now=late) == 1
