"""Commits that fail: what is known of them, what is tried again, and what is read back."""

import threading
from collections.abc import Sequence
from pathlib import Path

import psycopg
import pysqlite3
import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.orm import Session

from luthier.database import CommitUnknownError, Database, is_busy
from luthier.service import outcomes
from luthier.tables import Leader, Run
from tests.factories import NOW, OWNER, claim, create_prepared_job
from tests.faults import Fault, at_commit, by_chance, failing_commits


def _add(session: Session) -> int:
    leader = session.get(Leader, "counter", with_for_update=True)
    if leader is None:
        leader = Leader(name="counter", epoch=0)
        session.add(leader)
    leader.epoch += 1
    return leader.epoch


def _count(session: Session) -> int | None:
    leader = session.get(Leader, "counter")
    return leader.epoch if leader else None


def _stored(database: Database) -> int | None:
    with database.reading() as session:
        return _count(session)


@pytest.mark.parametrize(("fault", "stored"), [(Fault.BEFORE, None), (Fault.AFTER, 1)])
def test_a_commit_without_an_answer_is_told_apart(
    database: Database, fault: Fault, stored: int | None
) -> None:
    with failing_commits(database, at_commit(1, fault)), pytest.raises(CommitUnknownError) as caught:
        database.run(_add)
    assert isinstance(caught.value, OperationalError)
    assert _stored(database) == stored


def test_what_a_lost_answer_would_have_said_is_read_back(database: Database) -> None:
    with failing_commits(database, at_commit(1, Fault.AFTER)):
        assert database.run(_add, recall=_count) == 1
    assert _stored(database) == 1


def test_a_commit_that_did_not_happen_is_not_done_again(database: Database) -> None:
    with (
        failing_commits(database, at_commit(1, Fault.BEFORE)),
        pytest.raises(CommitUnknownError),
    ):
        database.run(_add, recall=_count)
    assert _stored(database) is None


def test_an_error_before_the_commit_is_no_unknown_one(database: Database) -> None:
    database.run(_add)
    with pytest.raises(DBAPIError) as caught, database.transaction() as session:
        session.add(Leader(name="counter", epoch=9))
    assert not isinstance(caught.value, CommitUnknownError)


def test_no_count_is_lost_or_doubled_among_failing_commits(database: Database) -> None:
    """Each caller re-reads, and does again only what did not happen."""
    with failing_commits(database, by_chance(seed=4, probability=0.5)):
        for number in range(1, 41):
            while (_stored(database) or 0) < number:
                try:
                    database.run(_add)
                except CommitUnknownError:
                    continue
    assert _stored(database) == 40


@pytest.mark.parametrize("error", [psycopg.errors.SerializationFailure, psycopg.errors.DeadlockDetected])
def test_a_conflict_is_tried_again_and_not_for_ever(
    postgres_url: str, error: type[psycopg.errors.Error]
) -> None:
    database, calls = Database(postgres_url), []

    def conflict(session: Session) -> None:
        calls.append(1)
        raising = f"RAISE EXCEPTION 'conflict' USING ERRCODE = '{error.sqlstate}'"
        session.execute(text(f"DO $$ BEGIN {raising}; END $$"))

    with pytest.raises(DBAPIError):
        database.run(conflict)
    database.close()
    assert len(calls) == 4


def test_two_transactions_that_deadlock_both_get_through(postgres_url: str) -> None:
    database, meeting = Database(postgres_url), threading.Barrier(2, timeout=20)
    with database.transaction() as session:
        session.add_all([Leader(name="a", epoch=0), Leader(name="b", epoch=0)])

    def count_both(names: list[str]) -> None:
        tries = []

        def work(session: Session) -> None:
            tries.append(1)
            session.get_one(Leader, names[0], with_for_update=True).epoch += 1
            session.flush()
            if len(tries) == 1:
                meeting.wait()
            session.get_one(Leader, names[1], with_for_update=True).epoch += 1

        database.run(work)

    threads = [threading.Thread(target=count_both, args=(names,)) for names in (["a", "b"], ["b", "a"])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with database.reading() as session:
        assert [session.get_one(Leader, name).epoch for name in "ab"] == [2, 2]
    database.close()


def test_a_writer_that_waits_too_long_is_told_so_and_loses_nothing(sqlite_url: str) -> None:
    database = Database(sqlite_url, busy_timeout_seconds=0.05)
    other = pysqlite3.connect(str(database.file), isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(OperationalError) as caught:
        database.run(_add)
    other.execute("ROLLBACK")
    other.close()
    assert is_busy(caught.value)
    assert not isinstance(caught.value, CommitUnknownError)
    assert database.run(_add) == 1
    database.close()


def test_a_claim_that_was_not_heard_of_is_found_by_its_owner(database: Database) -> None:
    with database.transaction() as session:
        create_prepared_job(session)
    with failing_commits(database, at_commit(1, Fault.AFTER)):
        found = database.run(claim, recall=lambda session: outcomes.find_claim(session, OWNER, now=NOW))
    assert found is not None
    assert (found.job.id, found.lease.epoch, found.number) == ("ftjob-1", 1, 1)
    with database.transaction() as session:
        session.get_one(Run, ("ftjob-1", 1)).pid = 7
    with database.reading() as session:
        assert outcomes.find_claim(session, OWNER, now=NOW) is None
        assert outcomes.find_claim(session, "host/gpu1#instance", now=NOW) is None


def test_the_file_belongs_to_its_owner_alone(sqlite_url: str, tmp_path: Path) -> None:
    (tmp_path / "luthier.db").chmod(0o644)
    database = Database(sqlite_url)
    database.run(_add)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.glob("luthier.db*")} == {0o600}
    database.close()


def _add_each(session: Session, asked: Sequence[str]) -> list[int]:
    if "bad" in asked:
        raise ValueError("no")
    return [_add(session) for _ in asked]


def _count_for(session: Session, asked: str) -> int | None:
    return _count(session) if asked == "found" else None


def test_what_several_asked_for_has_one_commit(database: Database) -> None:
    with failing_commits(database, at_commit(2, Fault.BEFORE)):
        assert database.run_all(["a", "b", "c"], _add_each, recall=_count_for) == [1, 2, 3]
    assert _stored(database) == 3


def test_one_that_fails_takes_nothing_of_the_others_along(database: Database) -> None:
    first, second, third = database.run_all(["a", "bad", "c"], _add_each, recall=_count_for)
    assert (first, third, _stored(database)) == (1, 2, 2)
    assert isinstance(second, ValueError)


def test_a_lost_answer_to_a_common_commit_is_read_back_for_each(database: Database) -> None:
    with failing_commits(database, at_commit(1, Fault.AFTER)):
        found, missing = database.run_all(["found", "missing"], _add_each, recall=_count_for)
    assert found == 2
    assert isinstance(missing, CommitUnknownError)
    assert _stored(database) == 2
