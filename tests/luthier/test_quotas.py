"""What a project may have: the limits, and the sum of its bytes, which is right at every commit."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import event
from sqlalchemy.orm import Session

from luthier import accounts
from luthier.database import Database
from luthier.errors import LuthierError
from luthier.service import access, blocking, control, endings, files, prepared, quotas, runs
from luthier.service.quotas import QuotaLimits
from luthier.status import BlockedOn, Queue, State
from luthier.tables import File, JobEvent, Project
from tests.factories import (
    CALLER,
    NOW,
    claim,
    create_file,
    create_job,
    create_prepared_job,
    create_project,
)

PROJECT = CALLER.project_id


@pytest.fixture
def session(database: Database) -> Iterator[Session]:
    with database.transaction() as session:
        yield session


def _stored(session: Session, project_id: str = PROJECT) -> tuple[int, int]:
    """The sum as it is kept, and as it is counted."""
    session.flush()
    kept = session.query(Project.storage_bytes).filter(Project.id == project_id).scalar()
    return kept, accounts.recount(session, project_id)


def _record_rows(session: Session, size_bytes: int) -> None:
    prepared.record_rows(
        session, PROJECT, key="k", file_sha256="0" * 64, storage_key="p/k", facts={}, size_bytes=size_bytes,
        now=NOW,
    )  # fmt: skip


def test_files_and_what_is_prepared_of_them_count_until_they_go(session: Session) -> None:
    file = create_file(session, size_bytes=1000)
    create_file(session, "file-2", size_bytes=30, sha256="2" * 64)
    _record_rows(session, 500)
    assert _stored(session) == (1530, 1530)
    _record_rows(session, 400)
    assert _stored(session) == (1430, 1430)
    files.delete_file(session, file, now=NOW)
    assert _stored(session) == (30, 30)


def test_checkpoints_artifacts_and_results_count(session: Session) -> None:
    job = create_prepared_job(session)
    taken = claim(session)
    assert taken is not None
    before, _ = _stored(session)
    for step in (1, 2, 2):
        runs.record_checkpoint(
            session, taken.lease, step=step, storage_key=f"k{step}", manifest_sha256="0" * 64,
            size_bytes=100 * step, metrics={}, now=NOW,
        )  # fmt: skip
    assert _stored(session) == (before + 300, before + 300)
    runs.drop_checkpoints(session, taken.lease, keep=1)
    endings.start_finalizing(session, taken.lease, now=NOW)
    result_file = File(
        id="file-r", project_id=job.project_id, filename="m.csv", purpose="fine-tune-results", size_bytes=7,
        sha256="1" * 64, storage_key="x", status="processed", created_at=NOW,
    )  # fmt: skip
    artifacts = [endings.NewArtifact("a", "adapter", 50, "1" * 64, "x/a")]
    endings.succeed_training(
        session, taken.lease, artifacts=artifacts, result={}, result_file=result_file, now=NOW
    )
    assert _stored(session) == (before + 257, before + 257)


def test_what_is_rolled_back_does_not_count(database: Database) -> None:
    with database.transaction() as session:
        create_file(session, size_bytes=10)
    with pytest.raises(RuntimeError), database.transaction() as session:  # noqa: PT012
        create_file(session, "file-2", size_bytes=1000)
        raise RuntimeError
    with database.reading() as session:
        assert _stored(session) == (10, 10)


def test_d79_of_a_hundred_uploads_at_once_only_those_within_the_quota_are_kept(database: Database) -> None:
    with database.transaction() as session:
        access.ensure_project(session, now=NOW)
    with ThreadPoolExecutor(8) as pool:
        kept = list(pool.map(lambda n: _upload(database, f"file-{n}", 100), range(100)))
    with database.reading() as session:
        assert (sum(kept), *_stored(session)) == (10, 1000, 1000)


def _upload(database: Database, file_id: str, size_bytes: int) -> bool:
    try:
        with database.transaction() as session:
            create_file(session, file_id, size_bytes=size_bytes)
            quotas.require_storage(session, PROJECT, QuotaLimits(storage_bytes=1099))
    except LuthierError:
        return False
    return True


def test_an_upload_that_will_not_fit_is_known_before_it_comes(session: Session) -> None:
    create_file(session, size_bytes=90)
    limits = QuotaLimits(storage_bytes=100)
    quotas.require_storage(session, PROJECT, limits, more_bytes=10)
    with pytest.raises(LuthierError, match="101 bytes"):
        quotas.require_storage(session, PROJECT, limits, more_bytes=11)


def test_jobs_that_have_ended_do_not_count_as_queued(session: Session) -> None:
    limits = QuotaLimits(queued_jobs=2)
    first = create_job(session, "ftjob-1")
    quotas.require_queue_room(session, PROJECT, limits)
    create_job(session, "ftjob-2")
    with pytest.raises(LuthierError, match="2 jobs") as caught:
        quotas.require_queue_room(session, PROJECT, limits)
    assert caught.value.retry_after_seconds == 30
    control.request_cancel(session, first, now=NOW)
    quotas.require_queue_room(session, PROJECT, limits)


def test_far_from_the_limit_jobs_are_counted_once_a_second(session: Session) -> None:
    create_project(session, "proj-far")
    sent: list[str] = []
    event.listen(session.connection(), "before_cursor_execute", lambda *asked: sent.append(asked[2]))
    for _ in range(5):
        quotas.require_queue_room(session, "proj-far", QuotaLimits(queued_jobs=5_000))
    assert len([statement for statement in sent if "count" in statement]) == 1
    assert len([statement for statement in sent if "FOR " in statement]) == 0


def test_a_project_has_limits_of_its_own(session: Session) -> None:
    create_project(session, "proj-b", quotas={"queued_jobs": None, "storage_bytes": 5})
    limits = QuotaLimits(queued_jobs=0, storage_bytes=100)
    quotas.require_queue_room(session, "proj-b", limits)
    with pytest.raises(LuthierError, match="and 5 is its limit"):
        quotas.require_storage(session, "proj-b", limits)


def test_of_many_submits_at_once_no_more_than_the_quota_pass(database: Database) -> None:
    with database.transaction() as session:
        create_file(session)
    with ThreadPoolExecutor(8) as pool:
        passed = list(pool.map(lambda n: _submit(database, f"ftjob-{n}"), range(16)))
    assert sum(passed) == 5


def _submit(database: Database, job_id: str) -> bool:
    try:
        with database.transaction() as session:
            quotas.require_queue_room(session, PROJECT, QuotaLimits(queued_jobs=5))
            create_job(session, job_id)
    except LuthierError:
        return False
    return True


def test_a_project_without_room_in_storage_starts_no_job_and_goes_on_once_it_has_some(
    session: Session,
) -> None:
    limits = QuotaLimits(storage_bytes=100)
    job = create_prepared_job(session)
    extra = create_file(session, "file-extra", size_bytes=100, sha256="2" * 64)
    assert claim(session, limits=limits) is None
    full = quotas.full_projects(session, limits)
    assert blocking.block_queued(session, full, now=NOW, limit=9) == [job.id]
    assert (job.state, job.blocked_on) == (State.BLOCKED, "quota")
    told = session.query(JobEvent).filter_by(job_id=job.id, kind="job_blocked").one()
    assert "bytes in storage, and 100 is its limit" in told.message
    assert _unblock(session, limits) == []
    files.delete_file(session, extra, now=NOW)
    assert _unblock(session, limits) == [job.id]
    assert claim(session, limits=limits) is not None


def test_the_quota_of_one_project_holds_up_no_other(session: Session) -> None:
    create_project(session, "proj-b", quotas={"storage_bytes": 1})
    for job_id, project_id in (("ftjob-a", PROJECT), ("ftjob-b", "proj-b")):
        create_prepared_job(session, job_id, project_id=project_id)
    full = quotas.full_projects(session, QuotaLimits())
    assert (list(full), blocking.block_queued(session, full, now=NOW, limit=9)) == (["proj-b"], ["ftjob-b"])
    taken = claim(session)
    assert taken is not None
    assert (taken.job.id, claim(session)) == ("ftjob-a", None)


def test_a_job_that_runs_ends_well_beyond_the_quota(session: Session) -> None:
    limits = QuotaLimits(storage_bytes=11)
    job = create_prepared_job(session)
    taken = claim(session, limits=limits)
    assert taken is not None
    runs.record_checkpoint(
        session, taken.lease, step=1, storage_key="k", manifest_sha256="0" * 64, size_bytes=1000, metrics={},
        now=NOW,
    )  # fmt: skip
    session.flush()
    assert list(quotas.full_projects(session, limits)) == [PROJECT]
    assert blocking.block_queued(session, quotas.full_projects(session, limits), now=NOW, limit=9) == []
    assert job.state == State.STARTING


def _unblock(session: Session, limits: QuotaLimits) -> list[str]:
    session.flush()
    full = quotas.full_projects(session, limits)
    return blocking.unblock(session, blocked_on=BlockedOn.QUOTA, now=NOW, limit=9, except_projects=full)


def test_what_waits_on_the_cpu_queue_is_no_running_job(session: Session) -> None:
    create_job(session)
    assert claim(session, Queue.CPU, limits=QuotaLimits(running_jobs=0)) is not None
