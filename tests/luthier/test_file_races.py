"""Two transactions about one file at once, on Postgres: whichever comes second sees what the first has done.

The second one begins before the first one's commit, and either waits for it or is done before.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import TypeVar

import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session

from luthier import accounts
from luthier.database import Database
from luthier.errors import LuthierError
from luthier.service import control, files, retention
from luthier.status import State
from luthier.tables import File, Job, Project
from tests.factories import CALLER, NOW, create_file, create_job, create_tuned_job
from tests.waiting import wait_for

Result = TypeVar("Result")
Work = Callable[[Session], Result]


@pytest.fixture
def database(postgres_url: str) -> Iterator[Database]:
    """An empty database; on SQLite there is one writer at a time."""
    database = Database(postgres_url)
    yield database
    database.close()


def _once(database: Database, work: Work[Result]) -> Result:
    with database.transaction() as session:
        return work(session)


def _at_once(database: Database, first: Work[object], second: Work[Result]) -> Result:
    """What the second gives."""
    with ThreadPoolExecutor(1) as pool:
        with database.transaction() as session:
            first(session)
            session.flush()
            other = pool.submit(_once, database, second)
            wait_for(lambda: other.done() or _somebody_waits(database))
        return other.result(60)


def _somebody_waits(database: Database) -> bool:
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
    with database.reading() as session:
        return bool(session.scalar(text(f"{waiting} AND datname = current_database()")))


def _submit(session: Session) -> str:
    return create_job(session, dataset={"files": [{"id": "file-train"}, {"id": "file-2"}]}).id


def _find_valid(file_id: str) -> Work[None]:
    def find_valid(session: Session) -> None:
        file = session.get_one(File, file_id)
        ids = iter(f"work-{file_id}-{number}" for number in range(9))
        files.record_validation(
            session, file, report={"valid": True}, message=None, new_work_id=ids.__next__, now=NOW
        )

    return find_valid


def _delete(session: Session) -> None:
    files.delete_file(session, session.get_one(File, "file-2"), now=NOW)


def _add_files(database: Database, *waiting: str) -> None:
    with database.transaction() as session:
        for file_id in ("file-train", "file-2"):
            more = {"report": None} if file_id in waiting else {}
            create_file(session, file_id, sha256=file_id, **more)


def _state(database: Database) -> str:
    with database.reading() as session:
        return session.get_one(Job, "ftjob-1").state


@pytest.mark.parametrize("is_first", [True, False])
def test_a_job_that_comes_as_its_file_is_found_valid_is_queued(database: Database, is_first: bool) -> None:
    _add_files(database, "file-2")
    both: tuple[Work[object], Work[object]] = (_submit, _find_valid("file-2"))
    _at_once(database, *(both if is_first else both[::-1]))
    assert _state(database) == State.QUEUED


def test_a_job_whose_files_are_found_valid_at_once_is_queued(database: Database) -> None:
    _add_files(database, "file-train", "file-2")
    _once(database, _submit)
    _at_once(database, _find_valid("file-train"), _find_valid("file-2"))
    assert _state(database) == State.QUEUED


def test_a_file_is_not_deleted_under_a_job_that_comes(database: Database) -> None:
    _add_files(database)
    with pytest.raises(LuthierError) as caught:
        _at_once(database, _submit, _delete)
    assert caught.value.code == "file_in_use"


def test_a_job_does_not_come_on_a_file_that_is_being_deleted(database: Database) -> None:
    _add_files(database)
    with pytest.raises(LuthierError) as caught:
        _at_once(database, _delete, _submit)
    assert (caught.value.code, caught.value.param) == ("invalid_training_file", "dataset.files[1].id")


def test_a_job_is_not_tried_again_on_a_file_that_is_being_deleted(database: Database) -> None:
    with database.transaction() as session:
        control.request_cancel(session, create_job(session), now=NOW)

    def retry(session: Session) -> None:
        job = session.get_one(Job, "ftjob-1")
        control.retry(
            session, CALLER, job, from_="start", job_id="ftjob-2", work_id="work-9", seed=1, now=NOW
        )

    def delete(session: Session) -> None:
        files.delete_file(session, session.get_one(File, "file-train"), now=NOW)

    with pytest.raises(LuthierError, match="file-train"):
        _at_once(database, delete, retry)


def test_a_file_that_two_delete_is_counted_down_once(database: Database) -> None:
    _add_files(database)
    with pytest.raises(LuthierError) as caught:
        _at_once(database, _delete, _delete)
    with database.reading() as session:
        project = session.get_one(Project, CALLER.project_id)
        stored = (project.storage_bytes, accounts.recount(session, project.id))
    assert (caught.value.code, stored) == ("file_not_found", (10, 10))


def test_a_file_that_its_owner_deletes_as_it_expires_holds_up_no_other(database: Database) -> None:
    with database.transaction() as session:
        create_tuned_job(session)
        for file_id in ("file-2", "file-3"):
            create_file(session, file_id, sha256=file_id, expires_at=NOW)

    def drop(session: Session) -> list[str]:
        return retention.drop_expired_files(session, limit=9, now=NOW + timedelta(seconds=1))

    assert _at_once(database, _delete, drop) == ["files/file-3"]
