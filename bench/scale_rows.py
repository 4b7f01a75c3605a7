"""A database as it is after a busy year: a million jobs, most of them ended, made by the database itself.

Every second job is a training job, the one behind it its preparation. Half of them belong to one project. The
newest training jobs have not ended: `LEASED` are being worked on, `QUEUED` wait in five projects, some wait to
be tried again or for room. Each job has a run and five events; some have checkpoints and a thousand metrics.
"""

# ruff: noqa: E501, S608 (statements made of constants, a column a word)

import hashlib
import json
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from luthier import schema
from luthier.database import Database
from luthier.service import access
from luthier.service.jobs import Caller
from luthier.spec import JobRequest

LEASED, QUEUED, WAITING, BLOCKED = 1_000, 10_000, 500, 500
LIVE = LEASED + QUEUED + WAITING + BLOCKED
PROJECTS, FILES, WORKERS = 50, 1_000, 100
EVENTS_PER_JOB, METRICS_PER_JOB = 5, 1_000
_LONG_RUNS = 200
_SPAN = timedelta(days=365)
_GIB = 1 << 30

_FINAL = "state IN ('succeeded', 'failed')"

Say = Callable[[str], object]


def build(database: Database, job_count: int, *, say: Say = print) -> None:
    """Migrate an empty database and fill it. Needs a superuser on Postgres.

    Args:
        job_count: of all kinds, even, at least 100,000.
    """
    schema.upgrade(database)
    with database.transaction() as session:
        access.ensure_project(session, now=datetime.now(UTC) - _SPAN)
    connection = database.engine.raw_connection()
    try:
        cursor = connection.cursor()
        _prepare(database, connection.driver_connection, cursor)
        for name, statement in _statements(database.is_sqlite, job_count):
            began = time.perf_counter()
            cursor.execute(statement)
            say(f"  {name}: {time.perf_counter() - began:.0f} s")
        connection.commit()
        if not database.is_sqlite:
            # As autovacuum does in its own time.
            connection.driver_connection.autocommit = True
            cursor.execute("RESET session_replication_role")
            cursor.execute("VACUUM ANALYZE")
    finally:
        connection.invalidate()


def caller(project: int = 0) -> Caller:
    """Somebody of one of the projects; 0 is the largest."""
    return Caller("org-local", project_id(project), "key-bench")


def project_id(project: int) -> str:
    return f"proj-{project}"


def job_id(number: int) -> str:
    """Id of the job with a number from 0; an even one is a training job."""
    return f"{'work' if number % 2 else 'ftjob'}-{_hash(number)[:24]}"


def request() -> JobRequest:
    """What every job asks for."""
    return JobRequest.model_validate(
        {"model": "tiny", "training_file": "file-0", "metadata": {"team": "team-0", "run": "0"}}
    )


def _hash(number: object) -> str:
    return hashlib.md5(str(number).encode(), usedforsecurity=False).hexdigest()


def _prepare(database: Database, connection: Any, cursor: Any) -> None:
    if not database.is_sqlite:
        # No look at what each foreign key refers to.
        cursor.execute("SET session_replication_role = replica")
        return
    connection.create_function("md5", 1, _hash, deterministic=True)
    for pragma in ("synchronous=OFF", "foreign_keys=OFF", "cache_size=-2000000"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.execute("BEGIN")


class _Sql:
    """The words that statements for both databases are made of.

    Attributes:
        state, project: of the job with the number `n`.
    """

    def __init__(self, is_sqlite: bool, job_count: int) -> None:
        self.is_sqlite, self.job_count = is_sqlite, job_count
        self.start = datetime.now(UTC) - _SPAN
        self.step_seconds = _SPAN.total_seconds() / job_count
        self.json = "" if is_sqlite else "::jsonb"
        first_live = job_count - 2 * LIVE
        rank = f"((n - {first_live}) / 2)"
        self.state = (
            f"CASE WHEN n % 2 = 1 OR n < {first_live} THEN CASE WHEN n % 20 = 4 THEN 'failed' ELSE 'succeeded' END "
            f"WHEN {rank} < {LEASED} THEN 'running' WHEN {rank} < {LEASED + QUEUED} THEN 'queued' "
            f"WHEN {rank} < {LEASED + QUEUED + WAITING} THEN 'retry_wait' ELSE 'blocked' END"
        )
        self.project = (
            f"'proj-' || CASE WHEN n >= {first_live} AND {rank} < {LEASED} THEN (n / 2) % 20 "
            f"WHEN n >= {first_live} THEN (n / 2) % 5 WHEN (n / 2) % 2 = 0 THEN 0 ELSE (n / 2) % {PROJECTS} END"
        )

    def at(self, number: str, more_seconds: float = 0) -> str:
        """When the job with a number was submitted, or some seconds later."""
        seconds = f"{self.start.timestamp() + more_seconds} + {number} * {self.step_seconds}"
        if self.is_sqlite:
            return f"strftime('%Y-%m-%d %H:%M:%f000', {seconds}, 'unixepoch')"
        return f"to_timestamp({seconds})"

    def end(self, more_seconds: float = 0) -> str:
        """When the last job was submitted, or some seconds later."""
        return self.at(str(self.job_count), more_seconds)


def _numbers(count: int) -> str:
    return (
        f"WITH RECURSIVE numbers(n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM numbers WHERE n + 1 < {count}) "
    )


def _statements(is_sqlite: bool, job_count: int) -> list[tuple[str, str]]:
    """The statements that fill each table, in order; both databases understand them."""
    sql = _Sql(is_sqlite, job_count)
    return [*_around_jobs(sql), ("jobs", _jobs(sql)), *_of_jobs(sql), *_of_runs(sql)]


def _around_jobs(sql: _Sql) -> list[tuple[str, str]]:
    """Projects, their files, and the workers."""
    return [
        ("projects", "INSERT INTO projects (id, organization_id, name, storage_bytes, created_at) "
            + _numbers(PROJECTS)
            + f"SELECT 'proj-' || n, 'org-local', 'project ' || n, 0, {sql.at('0')} FROM numbers"),
        ("files", "INSERT INTO files (id, project_id, filename, purpose, size_bytes, sha256, storage_key, "
            "status, created_at) " + _numbers(FILES)
            + "SELECT 'file-' || n, 'proj-' || (n % 5), 'rows.jsonl', 'fine-tune', 1000, md5(CAST(n AS text)), "
            f"'files/' || n, 'processed', {sql.at('n')} FROM numbers"),
        ("workers", "INSERT INTO workers (id, instance_id, host, queue, device, version, resources, state, "
            "started_at, heartbeat_at) " + _numbers(WORKERS)
            + "SELECT 'host' || n || '/gpu0', 'i', 'host' || n, 'train', 'GPU', '0', "
            f"'{{\"memory_bytes\": {80 * _GIB}}}'{sql.json}, 'active', {sql.at('0')}, {sql.end()} "
            "FROM numbers"),
    ]  # fmt: skip


def _jobs(sql: _Sql) -> str:
    body = json.dumps(request().model_dump(mode="json")).replace("'", "''")
    shaped = _numbers(sql.job_count) + (
        f", shaped AS (SELECT n, {sql.state} AS state, {sql.project} AS project_id, "
        "CASE WHEN n % 2 = 1 THEN 'work-' ELSE 'ftjob-' END || substr(md5(CAST(n AS text)), 1, 24) AS id, "
        "CASE WHEN n % 2 = 1 THEN 'ftjob-' || substr(md5(CAST(n - 1 AS text)), 1, 24) END AS subject "
        "FROM numbers) "
    )
    return (
        "INSERT INTO jobs (id, project_id, kind, queue, state, phase, desired_state, priority, "
        "queue_key, not_before, blocked_on, lease_epoch, lease_owner, lease_expires_at, run_count, "
        "next_number, memory_bytes, gpu_count, subject_job_id, prepared_at, request, model, training_file, "
        "user_metadata, seed, step, total_steps, trained_tokens, progress, error_code, estimated_seconds, "
        "fine_tuned_model, created_at, queued_at, started_at, finished_at) " + shaped
        + "SELECT id, project_id, CASE WHEN n % 2 = 1 THEN 'prepare' ELSE 'train' END, "
        "CASE WHEN n % 2 = 1 THEN 'cpu' ELSE 'train' END, state, "
        "CASE WHEN state = 'running' THEN 'training' END, 'run', 0, "
        f"CAST(({sql.start.timestamp()} + n * {sql.step_seconds}) * 1000000 AS bigint), "
        f"CASE WHEN state = 'retry_wait' THEN {sql.at('n', 86400)} END, "
        "CASE WHEN state = 'blocked' THEN 'disk' END, CASE WHEN state IN ('queued', 'blocked') THEN 0 ELSE 1 "
        "END, CASE WHEN state = 'running' THEN 'host' || (n % 100) || '/gpu' || (n / 100) || '#i' END, "
        f"CASE WHEN state = 'running' THEN {sql.end(3600)} END, "
        f"CASE WHEN state IN ('queued', 'blocked') THEN 0 ELSE 1 END, "
        f"{EVENTS_PER_JOB + 1} + CASE WHEN state = 'running' THEN {METRICS_PER_JOB} ELSE 0 END, "
        f"{8 * _GIB}, CASE WHEN n % 2 = 1 THEN 0 ELSE 1 END, subject, {sql.at('n', 5)}, '{body}'{sql.json}, "
        "'tiny', 'file-' || (n % 5), "
        "CASE WHEN n % 2 = 0 THEN CAST('{\"team\": \"team-' || (n / 2 % 100) || '\", \"run\": \"' || n || "
        f"'\"}}' AS {'text' if sql.is_sqlite else 'jsonb'}) END, 7, "
        f"CASE WHEN n % 2 = 1 OR state = 'queued' THEN 0 ELSE 100 END, 100, "
        f"CASE WHEN {_FINAL} AND n % 2 = 0 THEN 123456 END, "
        f"CASE WHEN state = 'running' THEN '{{\"seconds_remaining\": 600}}'{sql.json} END, "
        "CASE WHEN state = 'failed' THEN 'server_error' END, 900.0, "
        "CASE WHEN state = 'succeeded' AND n % 2 = 0 THEN 'ft:tiny:org-local::' || n END, "
        f"{sql.at('n')}, {sql.at('n', 1)}, CASE WHEN state NOT IN ('queued', 'blocked') THEN {sql.at('n', 20)} END, "
        f"CASE WHEN {_FINAL} THEN {sql.at('n', 900)} END FROM shaped"
    )  # fmt: skip


def _of_jobs(sql: _Sql) -> list[tuple[str, str]]:
    """What each job has."""
    return [
        ("metadata", "INSERT INTO job_metadata (job_id, key, project_id, value, created_at) "
            "SELECT jobs.id, pair.key, project_id, pair.value, created_at FROM jobs, "
            f"{'json_each' if sql.is_sqlite else 'jsonb_each_text'}(user_metadata) AS pair WHERE kind = 'train'"),
        ("runs", "INSERT INTO runs (job_id, epoch, project_id, number, worker_id, host, device, event_offset, "
            "from_step, outcome, started_at, ended_at) SELECT id, 1, project_id, 1, 'host0/gpu0', 'host0', "
            f"'GPU', 1000, 0, CASE WHEN {_FINAL} THEN state END, started_at, finished_at FROM jobs "
            "WHERE run_count > 0 ORDER BY id"),
        ("job_files", "INSERT INTO job_files (job_id, role, position, project_id, file_id, weight) "
            "SELECT id, 'training', 0, project_id, training_file, 1.0 FROM jobs WHERE kind = 'train' "
            "ORDER BY id"),
        ("events", "INSERT INTO events (job_id, number, project_id, epoch, at, kind, level, message, data) "
            + _numbers(EVENTS_PER_JOB)
            + "SELECT id, n + 1, project_id, lease_epoch, created_at, CASE "
            f"WHEN n < {EVENTS_PER_JOB - 1} THEN CASE n WHEN 0 THEN 'job_created' WHEN 1 THEN 'job_queued' "
            "ELSE 'setting_noted' END "
            "WHEN state = 'succeeded' THEN 'job_succeeded' WHEN state = 'failed' THEN 'job_failed' "
            f"ELSE 'job_queued' END, 'info', 'Something happened to the job', '{{}}'{sql.json} "
            "FROM jobs CROSS JOIN numbers ORDER BY id"),
    ]  # fmt: skip


def _of_runs(sql: _Sql) -> list[tuple[str, str]]:
    """What running and ended jobs have left."""
    return [
        ("metrics", "INSERT INTO metrics (job_id, number, project_id, epoch, at, step, total_steps, train_loss, "
            "learning_rate, grad_norm, tokens_per_second, is_superseded) "
            + _numbers(METRICS_PER_JOB)
            + f"SELECT id, {EVENTS_PER_JOB + 1} + n, project_id, 1, created_at, n + 1, {METRICS_PER_JOB}, "
            "2.0, 0.0001, 1.0, 9000, false FROM (SELECT * FROM jobs WHERE state = 'running' ORDER BY id "
            f"LIMIT {_LONG_RUNS}) AS running CROSS JOIN numbers"),
        ("checkpoints", "INSERT INTO checkpoints (id, project_id, job_id, epoch, number, step, storage_key, "
            "manifest_sha256, size_bytes, metrics, created_at) "
            "SELECT 'ftckpt_' || id, project_id, id, 1, 3, 100, id, '0', 1000, "
            f"'{{}}'{sql.json}, created_at FROM jobs WHERE kind = 'train' AND state = 'succeeded' ORDER BY id"),
        ("artifacts", "INSERT INTO artifacts (job_id, name, project_id, epoch, kind, size_bytes, sha256, "
            "storage_key, created_at) SELECT id, 'adapter_model.safetensors', project_id, 1, 'adapter', 1000, "
            "'0', id, created_at FROM jobs WHERE kind = 'train' AND state = 'succeeded' ORDER BY id"),
        ("outbox", "INSERT INTO outbox (project_id, topic, key, payload, created_at, next_at, tries, sent_at) "
            f"SELECT project_id, 'doorbell', queue, '{{}}'{sql.json}, created_at, created_at, 0, "
            f"CASE WHEN {_FINAL} THEN created_at END FROM jobs WHERE created_at > {sql.at(str(sql.job_count - 100_000))}"),
    ]  # fmt: skip
