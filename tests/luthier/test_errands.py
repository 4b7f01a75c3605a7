"""Errands in the database: found again, before other work and not for ever, forgotten with their file."""

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy.orm import Session

from luthier.database import Database
from luthier.errors import Failure
from luthier.service import claims, endings, errands, files
from luthier.service.errands import ConvertErrand, ErrandFile, PreviewErrand
from luthier.spec import DatasetRequest
from luthier.status import Queue, State
from luthier.tables import File, Job, JobEvent, Run
from tests.factories import CALLER, NOW, claim, create_file, create_job


@pytest.fixture
def session(database: Database) -> Iterator[Session]:
    with database.transaction() as session:
        yield session


def _ask(
    session: Session, work_id: str, *, file: File | None = None, key: str = "key", now: datetime = NOW
) -> Job:
    file = file or session.get(File, "file-train") or create_file(session)
    rules = DatasetRequest(columns={"instruction": "question"})
    look = PreviewErrand(
        file=ErrandFile(file_id=file.id), model="tiny", dataset=rules, max_seq_length=64, offset=0, count=5
    )
    return errands.ask(session, look, key=key, subject=file, work_id=work_id, now=now)


def _answer(session: Session) -> None:
    taken = claim(session, Queue.CPU)
    assert taken is not None
    endings.start_finalizing(session, taken.lease, now=NOW)
    endings.succeed_work(session, taken.lease, result={"rows": []}, message="done", now=NOW)


def _fail(session: Session, code: str = "invalid_training_file") -> None:
    taken = claim(session, Queue.CPU)
    assert taken is not None
    endings.fail_run(session, taken.lease, Failure(code, "no"), exit_code=65, now=NOW)


def test_an_errand_is_read_back_as_it_was_asked(session: Session) -> None:
    errand = errands.read_errand(_ask(session, "work-1"))
    assert isinstance(errand, PreviewErrand)
    assert (errand.count, errand.dataset.columns) == (5, {"instruction": "question"})


def test_the_same_question_finds_the_work_under_way_and_then_its_answer(session: Session) -> None:
    _ask(session, "work-1")
    assert _ask(session, "work-2").id == "work-1"
    _answer(session)
    assert _ask(session, "work-3").result == {"rows": []}


def test_a_failure_is_told_once_more_and_then_tried_anew(session: Session) -> None:
    _ask(session, "work-1")
    _fail(session)
    assert _ask(session, "work-2").id == "work-1"
    assert _ask(session, "work-3", now=NOW + timedelta(minutes=2)).id == "work-3"


def test_a_look_that_fails_leaves_its_file_alone(session: Session) -> None:
    file = create_file(session)
    _ask(session, "work-1", file=file)
    _fail(session)
    assert (file.status, file.report) == ("processed", {"valid": True})


def test_errands_go_before_preparation_but_not_before_what_has_waited_long(session: Session) -> None:
    create_job(session)
    _ask(session, "work-1", now=NOW + timedelta(seconds=1))
    first = claim(session, Queue.CPU, now=NOW + timedelta(seconds=1))
    late = NOW + timedelta(seconds=31)
    _ask(session, "work-2", now=late, key="other")
    second = claim(session, Queue.CPU, now=late)
    assert [taken.job.id for taken in (first, second) if taken] == ["work-1", "work-ftjob-1"]


def test_an_agent_for_errands_takes_nothing_else(session: Session) -> None:
    create_job(session)
    fields: dict[str, Any] = {
        "owner": "host/errands#1",
        "host": "host",
        "device": "cpu",
        "lease_seconds": 60.0,
        "now": NOW,
    }
    assert claims.claim(session, Queue.CPU, **fields, errands_only=True) is None
    assert not claims.has_work(session, Queue.CPU, "host/errands", now=NOW, errands_only=True)
    _ask(session, "work-1", now=NOW + timedelta(seconds=1))
    taken = claims.claim(session, Queue.CPU, **fields, errands_only=True)
    assert taken is not None
    assert taken.job.id == "work-1"


def test_a_conversion_gives_its_file_bytes_and_has_it_validated(session: Session) -> None:
    source = create_file(session)
    errand = ConvertErrand(file=ErrandFile(file_id=source.id))
    made = files.convert(
        session, CALLER, source, errand, key="k", filename="qa.jsonl", file_id="file-2", work_id="w", now=NOW
    )
    taken = claim(session, Queue.CPU)
    assert taken is not None
    endings.start_finalizing(session, taken.lease, now=NOW)
    endings.succeed_conversion(
        session, taken.lease, row_count=3, size_bytes=9, sha256="2" * 64, work_id="work-v", now=NOW
    )
    assert (made.status, made.size_bytes, made.sha256) == ("uploaded", 9, "2" * 64)
    assert (session.get_one(Job, "work-v").kind, session.get_one(Job, "work-v").subject_file_id) == (
        "validate",
        "file-2",
    )


def test_a_conversion_that_fails_puts_its_file_into_error(session: Session) -> None:
    source = create_file(session)
    errand = ConvertErrand(file=ErrandFile(file_id=source.id))
    made = files.convert(
        session, CALLER, source, errand, key="k", filename="qa.jsonl", file_id="file-2", work_id="w", now=NOW
    )
    _fail(session)
    assert (made.status, made.status_details, source.status) == ("error", "no", "processed")


def test_answers_are_forgotten_with_their_file(session: Session) -> None:
    file = create_file(session)
    _ask(session, "work-1", file=file)
    _answer(session)
    assert files.delete_file(session, file, now=NOW) == ["files/file-train", "work-1"]
    session.flush()
    assert (session.query(Job).count(), session.query(Run).count(), session.query(JobEvent).count()) == (
        0,
        0,
        0,
    )


def test_answers_are_forgotten_after_a_while(session: Session) -> None:
    _ask(session, "work-1")
    _answer(session)
    assert errands.forget_old(session, limit=10, now=NOW) == []
    assert errands.forget_old(session, limit=10, now=NOW + timedelta(hours=2)) == ["work-1"]
    assert session.query(Job).count() == 0


def test_a_deleted_file_cancels_what_is_asked_of_it(session: Session) -> None:
    file = create_file(session)
    work = _ask(session, "work-1", file=file)
    files.delete_file(session, file, now=NOW)
    assert session.get(Job, work.id) is None or work.state == State.CANCELLED
