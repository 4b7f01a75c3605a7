"""The audit log: one line for each thing that somebody did, in the transaction that did it."""

from datetime import timedelta

import pytest
from sqlalchemy import select

from luthier.audit import Actor, acting_as
from luthier.database import Database
from luthier.keys import new_key
from luthier.service import access, api_keys, audit_logs, control, files, jobs
from luthier.tables import ApiKey, AuditLog, File, Job
from tests.factories import CALLER, NOW, create_file, create_job, create_project

ACTOR = Actor(CALLER.organization_id, api_key_id="key-1", request_id="req-1", address="203.0.113.7")


def _logged(database: Database) -> list[tuple[str, str]]:
    with database.reading() as session:
        rows = session.scalars(select(AuditLog).order_by(AuditLog.created_at, AuditLog.id)).all()
    return sorted((row.type, row.resource_id) for row in rows)


def test_what_somebody_does_is_logged_once_with_who_and_whence(database: Database) -> None:
    with acting_as(ACTOR):
        with database.transaction() as session:
            create_job(session)
            create_job(session, "ftjob-2")
            create_file(session, "file-2", sha256="2" * 64)
        with database.transaction() as session:
            control.request_pause(session, session.get_one(Job, "ftjob-2"), now=NOW)
            files.delete_file(session, session.get_one(File, "file-2"), now=NOW)
        with database.transaction() as session:
            job = session.get_one(Job, "ftjob-1")
            jobs.annotate(session, job, {"name": "other"})
            control.request_cancel(session, job, now=NOW)
    assert _logged(database) == [
        ("file.created", "file-2"),
        ("file.created", "file-train"),
        ("file.deleted", "file-2"),
        ("job.cancelled", "ftjob-1"),
        ("job.created", "ftjob-1"),
        ("job.created", "ftjob-2"),
        ("job.paused", "ftjob-2"),
        ("job.updated", "ftjob-1"),
        ("project.created", CALLER.project_id),
    ]
    with database.reading() as session:
        line = session.scalars(select(AuditLog).where(AuditLog.type == "job.paused")).one()
    told = (line.organization_id, line.project_id, line.api_key_id, line.request_id, line.address)
    assert told == (CALLER.organization_id, CALLER.project_id, "key-1", "req-1", "203.0.113.7")


def test_keys_leave_their_makings_changes_and_ends(database: Database) -> None:
    with acting_as(ACTOR), database.transaction() as session:
        project = create_project(session, "proj-b")
        access.record_key(
            session, project, new_key(), key_id="key-a", name="a", installation_key=b"k", now=NOW
        )
    with acting_as(ACTOR), database.transaction() as session:
        row = session.get_one(ApiKey, "key-a")
        api_keys.rotate(
            session, row, new_key(), key_id="key-b", grace=timedelta(0), installation_key=b"k", now=NOW
        )
        access.record_use(session, "key-a", now=NOW)
    with acting_as(ACTOR), database.transaction() as session:
        api_keys.revoke(session.get_one(ApiKey, "key-a"), now=NOW)
    kept = [line for line in _logged(database) if line[0].startswith("api_key")]
    assert kept == [
        ("api_key.created", "key-a"),
        ("api_key.created", "key-b"),
        ("api_key.deleted", "key-a"),
        ("api_key.rotated", "key-a"),
    ]


def test_what_did_not_happen_and_what_nobody_did_is_not_logged(database: Database) -> None:
    with database.transaction() as session:
        create_file(session)
    with pytest.raises(RuntimeError), acting_as(ACTOR), database.transaction() as session:  # noqa: PT012
        create_file(session, "file-2")
        session.flush()
        raise RuntimeError
    assert _logged(database) == []


def test_old_lines_go(database: Database) -> None:
    with acting_as(ACTOR), database.transaction() as session:
        create_file(session)
    with database.transaction() as session:
        year = timedelta(days=365)
        count = len(_logged(database))
        newest = max(session.scalars(select(AuditLog.created_at)))
        assert audit_logs.forget_old(session, older_than=year, limit=9, now=newest) == 0
        later = newest + year + timedelta(seconds=1)
        assert audit_logs.forget_old(session, older_than=year, limit=9, now=later) == count
    assert _logged(database) == []
