"""Doorbells for work that nobody came for, on both databases."""

from datetime import timedelta

import pytest
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from luthier.database import Database
from luthier.service import doorbells, outbox
from luthier.status import Queue
from luthier.tables import Outbox
from tests.factories import NOW, create_job, create_prepared_job

LATER = NOW + timedelta(hours=1)


def _record_all_sent(session: Session) -> None:
    outbox.record_sent(session, session.scalars(select(Outbox.id)).all(), now=NOW)


@pytest.mark.parametrize(("listeners", "rung"), [({}, 1), ({"cpu": 3, "train": 5}, 3), ({"cpu": 500}, 50)])
def test_as_many_doorbells_as_there_are_workers(
    database: Database, listeners: dict[str, int], rung: int
) -> None:
    with database.transaction() as session:
        for number in range(50):
            create_job(session, f"ftjob-{number}")
        _record_all_sent(session)
        count = doorbells.ring_forgotten(session, older_than_seconds=60, listeners=listeners, now=LATER)
        unsent = session.scalar(select(func.count()).where(Outbox.sent_at.is_(None)))
    assert (count, unsent) == (rung, rung)


def test_each_queue_with_work_is_rung(database: Database) -> None:
    with database.transaction() as session:
        create_prepared_job(session, "ftjob-prepared")
        create_job(session, "ftjob-unprepared")
        _record_all_sent(session)
        doorbells.ring_forgotten(session, older_than_seconds=60, listeners={}, now=LATER)
        rung = session.scalars(select(Outbox.key).where(Outbox.sent_at.is_(None))).all()
    assert sorted(rung) == [Queue.CPU, Queue.TRAIN]


def test_new_work_is_not_forgotten_yet(database: Database) -> None:
    with database.transaction() as session:
        create_job(session)
        _record_all_sent(session)
        assert not doorbells.ring_forgotten(session, older_than_seconds=60, listeners={}, now=NOW)
