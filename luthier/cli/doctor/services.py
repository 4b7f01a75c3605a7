"""Checks of what Luthier talks to: the database and, where they are set, bucket and broker."""

from collections.abc import Iterator
from pathlib import Path

import redis
from sqlalchemy.exc import DBAPIError

from luthier import schema
from luthier.cli.doctor.finding import Finding, failed, ok, warning
from luthier.cli.doctor.keeping import check_keeping
from luthier.database import Database
from luthier.errors import LuthierError
from luthier.settings import Settings
from luthier.sqlite import sqlite_version, wal_is_safe
from luthier.storage import S3Storage, StorageUnavailableError, open_storage

_WANTED_POLICY = "noeviction"
_PATIENCE_SECONDS = 5


def check_services(settings: Settings) -> Iterator[Finding]:
    """The database, SQLite's own version where it is used, bucket and broker."""
    if _may_open(settings):
        yield from _check_database(settings)
    else:
        yield ok("database", f"{settings.database} is not there yet; the first start makes it")
    if settings.database.startswith("sqlite"):
        yield _check_sqlite()
    if settings.s3_bucket is not None:
        yield _check_bucket(settings)
    if settings.redis_url is not None:
        yield _check_broker(settings.redis_url.get_secret_value())


def _check_database(settings: Settings) -> Iterator[Finding]:
    database = Database(settings.database, reserve_bytes=settings.reserve_bytes)
    try:
        found = _check_schema(database)
        yield found
        if found.status != "failed":
            yield from check_keeping(settings, database)
    except LuthierError as error:
        yield failed("database", error.message, "see the finding about the file system")
    finally:
        database.close()


def _may_open(settings: Settings) -> bool:
    """Whether opening the database would make no file that was not there."""
    return settings.database_url is not None or Path(settings.data / "luthier.db").exists()


def _check_schema(database: Database) -> Finding:
    where = database.url.render_as_string(hide_password=True)
    try:
        revision, wanted = schema.current_revision(database), schema.wanted_revision()
    except DBAPIError as error:
        remedy = "start the database, or correct LUTHIER_DATABASE_URL"
        return failed("database", f"{where} does not answer: {error.orig}".strip(), remedy)
    if revision == wanted:
        return ok("database", f"{where}, schema {revision}")
    if revision is None:
        return warning("database", f"{where} is empty", "run `luthier db upgrade`, or `luthier up`")
    return failed(
        "database",
        f"{where} has schema {revision}, this release wants {wanted}",
        "run `luthier db upgrade`; where that refuses, install the newer release that made it",
    )


def _check_sqlite() -> Finding:
    text = ".".join(str(part) for part in sqlite_version())
    if wal_is_safe(sqlite_version()):
        return ok("sqlite", f"{text}, write-ahead log in use")
    remedy = "pip install --upgrade pysqlite3 (3.51.3 or newer) for faster writes"
    return warning(
        "sqlite", f"{text} could corrupt a write-ahead log, so the rollback journal is used", remedy
    )


def _check_bucket(settings: Settings) -> Finding:
    storage = open_storage(settings)
    try:
        is_good = not isinstance(storage, S3Storage) or storage.has_conditional_put()
    except StorageUnavailableError as error:
        return failed("bucket", error.message, "start the S3 server, or correct the setting that is named")
    if not is_good:
        text = "the server overwrites in spite of `If-None-Match: *`, so two workers could mix their files"
        return failed("bucket", text, "use a server that honours it, in a release of 2025 or newer")
    return ok("bucket", f"{settings.s3_bucket} takes files, and each but once")


def _check_broker(url: str) -> Finding:
    try:
        with redis.Redis.from_url(
            url, socket_connect_timeout=_PATIENCE_SECONDS, socket_timeout=_PATIENCE_SECONDS
        ) as broker:
            broker.ping()
            policy = broker.config_get("maxmemory-policy")
    except (redis.RedisError, ValueError) as error:
        return failed("broker", f"does not answer: {error}", "start Redis, or correct LUTHIER_REDIS_URL")
    name = policy.get("maxmemory-policy") if isinstance(policy, dict) else None
    if name != _WANTED_POLICY:
        remedy = f"set `maxmemory-policy {_WANTED_POLICY}` in redis.conf"
        return failed("broker", f"may drop messages: its maxmemory-policy is {name}", remedy)
    return ok("broker", f"answers, maxmemory-policy {name}")
