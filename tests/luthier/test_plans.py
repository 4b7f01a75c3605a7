"""How both databases find rows: no query that is asked often reads a table of jobs from end to end.

Each case calls what the service calls, and all statements that it sends are explained. On Postgres whole
reads are forbidden first, since in small tables they are the cheapest: what still reads all has no index.
"""

import json
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Connection, event
from sqlalchemy.orm import Session

from luthier import events, metrics, repository, statistics
from luthier.database import Database
from luthier.service import (
    blocking,
    claims,
    control,
    deletion,
    doorbells,
    errands,
    feed,
    idempotency,
    jobs,
    outbox,
    outcomes,
    queue,
    quotas,
    recording,
    retention,
    runs,
    sweep,
    versions,
    watching,
)
from luthier.service.claims import Offer
from luthier.service.quotas import QuotaLimits
from luthier.service.retries import Limits
from luthier.service.transitions import Lease
from luthier.status import BlockedOn, Queue
from luthier.tables import Job
from tests.factories import CALLER, NOW, OWNER, claim, create_job, create_prepared_job, make_request

LARGE_TABLES = ("jobs", "events", "metrics", "runs", "job_files", "checkpoints", "artifacts", "outbox")
# They hold only what has not ended, or has not been sent: reading all of one reads little.
SMALL_INDEXES = ("ix_jobs_claimable", "ix_jobs_waiting", "ix_jobs_leased", "ix_jobs_live", "ix_outbox_unsent")
# These, too, are the cheapest between small tables, and read one of them whole.
_WHOLE = ("enable_seqscan", "enable_hashjoin", "enable_mergejoin")
PROJECT = CALLER.project_id
LEASE = Lease("ftjob-runs", 1, OWNER)
LIMITS = Limits(5, 5, 3)
LATER, DAY = NOW + timedelta(hours=1), timedelta(days=1)

Case = Callable[[Session], object]


def _job(session: Session, job_id: str = "ftjob-runs") -> Job:
    return repository.get_job(session, PROJECT, job_id)


def _claim(session: Session, limits: QuotaLimits = quotas.NO_LIMITS, **fields: Any) -> None:
    claims.claim(
        session, fields.pop("queue", Queue.TRAIN), owner="host/gpu1#x", host="host", device="cpu",
        lease_seconds=180, now=LATER, limits=limits, **fields,
    )  # fmt: skip


def _submit(session: Session) -> None:
    quotas.require_queue_room(session, PROJECT, QuotaLimits(queued_jobs=100))
    jobs.submit(session, CALLER, make_request(), job_id="ftjob-new", work_id="work-new", seed=1, now=NOW)


def _ended_job(session: Session) -> Job:
    return control.request_cancel(session, _job(session, "ftjob-waits"), now=NOW)


def _list(session: Session, **fields: Any) -> None:
    repository.list_jobs(session, PROJECT, limit=20, **{"after": None} | fields)


CASES: dict[str, Case] = {
    "claim": _claim,
    "claim within a limit": lambda s: _claim(s, QuotaLimits(running_jobs=9)),
    "claim of CPU work": lambda s: _claim(s, queue=Queue.CPU),
    "claim of an errand": lambda s: _claim(s, queue=Queue.CPU, errands_only=True),
    "look for work": lambda s: claims.has_work(s, Queue.TRAIN, "host/gpu1", now=NOW),
    "look for work with an offer": lambda s: claims.has_work(
        s,
        Queue.TRAIN,
        "host/gpu1",
        now=NOW,
        offer=Offer(1 << 30, labels=frozenset({"eu"})),
        limits=QuotaLimits(running_jobs=9, storage_bytes=1 << 40),
    ),
    "find a claim": lambda s: outcomes.find_claim(s, OWNER, now=NOW),
    "heartbeat": lambda s: runs.heartbeat(s, LEASE, lease_seconds=180, now=NOW),
    "wish": lambda s: runs.desired_state(s, LEASE),
    "record": lambda s: recording.record_events(
        s, LEASE, [events.StepLogged(step=1, total_steps=2, epoch=0)], offset=9, now=NOW
    ),
    "record a resumed start": lambda s: recording.record_events(
        s, LEASE, [events.RunStarted(resumed_from_step=1)], offset=9, now=NOW
    ),
    "submit": _submit,
    "cancel": lambda s: control.request_cancel(s, _job(s, "ftjob-waits"), now=NOW),
    "list": _list,
    "list from a cursor": lambda s: _list(s, after="ftjob-runs"),
    "list with metadata": lambda s: _list(s, metadata={"team": "a", "run": "1"}),
    "list without metadata": lambda s: _list(s, without_metadata=True),
    "get": lambda s: queue.places(s, [_job(s), _job(s, "ftjob-waits")], now=NOW),
    "list the queue": lambda s: queue.list_queue(s, PROJECT, after="ftjob-waits", limit=20),
    "next position": lambda s: queue.next_position(s, PROJECT, now=NOW),
    "events": lambda s: repository.list_events(s, _job(s), before=9, limit=100),
    "events behind": lambda s: repository.list_events_after(s, "ftjob-runs", after=2, limit=100),
    "heads": lambda s: feed.find_heads(s, ["ftjob-runs", "ftjob-waits"]),
    "heads of a project": lambda s: feed.list_heads(s, PROJECT, ended_since=NOW),
    "version": lambda s: versions.get_version(s, PROJECT, "ftjob-runs"),
    "delete": lambda s: deletion.delete_job(s, _ended_job(s), now=NOW),
    "metrics": lambda s: list(metrics.list_metrics(s, "ftjob-runs", max_points=12)),
    "checkpoints": lambda s: repository.list_checkpoints(s, _job(s), after=None, limit=10),
    "newest run": lambda s: repository.find_newest_run(s, "ftjob-runs"),
    "a job of a file": lambda s: repository.find_live_job_of_file(s, PROJECT, "file-train"),
    "jobs that await a file": lambda s: repository.lock_jobs_that_await_file(s, PROJECT, "file-train"),
    "work of a file": lambda s: repository.find_open_work(s, file_id="file-train"),
    "tuned models": lambda s: repository.list_tuned_jobs(s, PROJECT, limit=20),
    "tuned model": lambda s: repository.find_tuned_job(s, PROJECT, "ft:tiny:org-local::1"),
    "jobs of a model": lambda s: repository.list_succeeded_jobs(s, PROJECT, model="tiny", limit=20),
    "sweep": lambda s: sweep.sweep(s, limits=LIMITS, jitter=0, now=NOW, at_most=10),
    "new instance": lambda s: sweep.release_previous(s, "host/gpu7", limits=LIMITS, jitter=0, now=NOW),
    "wake": lambda s: sweep.wake_waiting(s, now=NOW, limit=100),
    "unblock": lambda s: blocking.unblock(s, blocked_on=BlockedOn.DISK, now=NOW, limit=100),
    "ring the forgotten": lambda s: doorbells.ring_forgotten(
        s, older_than_seconds=60, listeners={}, now=LATER
    ),
    "outbox": lambda s: outbox.due_messages(s, topic="doorbell", limit=100, now=NOW),
    "forget sent": lambda s: outbox.forget_sent(s, older_than=DAY, limit=100, now=NOW),
    "forget errands": lambda s: errands.forget_old(s, limit=100, now=NOW),
    "find an errand": lambda s: errands.find(s, PROJECT, "key", now=NOW),
    "forget keys": lambda s: idempotency.forget_old(s, limit=100, now=NOW),
    "forget checkpoints": lambda s: retention.drop_checkpoints(s, older_than=DAY, limit=100, now=NOW),
    "forget prepared": lambda s: retention.drop_prepared(s, unused_for=DAY, limit=100, now=NOW),
    "forget files": lambda s: retention.drop_expired_files(s, limit=100, now=NOW),
    "lost leases": lambda s: watching.lost_leases(s, limit=10, now=NOW),
    "what runs": watching.count_leased,
    "what waits": lambda s: [watching.count_waiting(s), watching.has_due(s, now=NOW)],
    "block on a quota": lambda s: blocking.block_queued(s, {PROJECT: "full"}, now=NOW, limit=100),
    "unblock what a quota blocked": lambda s: blocking.unblock(
        s, blocked_on=BlockedOn.QUOTA, now=NOW, limit=100, except_projects=[PROJECT]
    ),
    "unblock a model": lambda s: blocking.unblock_model(s, "tiny", now=NOW, limit=100),
    "queue loads": statistics.queue_loads,
    "newest step": statistics.newest_step_at,
}


@pytest.fixture
def session(shared_database: Database) -> Iterator[Session]:
    with shared_database.transaction() as session:
        create_prepared_job(session, "ftjob-runs")
        claim(session)
        create_prepared_job(session, "ftjob-waits")
        create_job(session, "ftjob-prepares")
        session.flush()
        yield session
        session.rollback()


@pytest.mark.parametrize("case", CASES)
def test_it_reads_no_large_table_from_end_to_end(session: Session, case: str) -> None:
    assert whole_reads(session, CASES[case]) == []


def whole_reads(session: Session, work: Case) -> list[str]:
    """What the statements of some work read whole, in the words of the database."""
    connection = session.connection()
    sent: list[tuple[str, Any]] = []

    def note(_connection: Any, _cursor: Any, statement: str, parameters: Any, _c: Any, many: bool) -> None:
        if not many and statement.split(maxsplit=1)[0] in ("SELECT", "UPDATE", "DELETE", "WITH"):
            sent.append((statement, parameters))

    event.listen(connection, "before_cursor_execute", note)
    work(session)
    session.flush()
    event.remove(connection, "before_cursor_execute", note)
    explain = _sqlite_reads if connection.dialect.name == "sqlite" else _postgres_reads
    return [found for statement, parameters in sent for found in explain(connection, statement, parameters)]


def _sqlite_reads(connection: Connection, statement: str, parameters: Any) -> Iterator[str]:
    for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters):
        words = row[3].split()
        is_small = any(name in words for name in SMALL_INDEXES)
        if words[0] == "SCAN" and _table_of(words[1], statement) in LARGE_TABLES and not is_small:
            yield f"{row[3]}: {statement}"


def _table_of(name: str, statement: str) -> str:
    """The table behind an alias."""
    words = statement.replace(",", " ").split()
    aliases = {
        alias: table for table, word, alias in zip(words, words[1:], words[2:], strict=False) if word == "AS"
    }
    return aliases.get(name, name)


def _postgres_reads(connection: Connection, statement: str, parameters: Any) -> Iterator[str]:
    for way in _WHOLE:
        connection.exec_driver_sql(f"SET LOCAL {way} = off")
    explained = connection.exec_driver_sql(f"EXPLAIN (FORMAT JSON) {statement}", parameters).scalar_one()
    for way in _WHOLE:
        connection.exec_driver_sql(f"SET LOCAL {way} = on")
    plan = json.loads(explained) if isinstance(explained, str) else explained
    for node in _nodes(plan[0]["Plan"]):
        is_small = node.get("Index Name") in SMALL_INDEXES or "Index Cond" in node
        is_scan = node["Node Type"] in ("Seq Scan", "Index Scan", "Index Only Scan", "Bitmap Index Scan")
        table = node.get("Relation Name") or "jobs"
        if is_scan and table in LARGE_TABLES and not is_small:
            yield f"{node['Node Type']} {table} {node.get('Index Name', '')} {node.get('Filter', '')}"


def _nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", ()):
        yield from _nodes(child)
