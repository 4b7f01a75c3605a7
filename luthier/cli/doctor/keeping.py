"""Checks of what keeps data safe: the database file's soundness, the room held back, the last backup."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

from luthier.cli.doctor.finding import Finding, failed, ok, warning
from luthier.cli.terminal import size_of
from luthier.database import Database
from luthier.service import backups
from luthier.settings import Settings
from luthier.sqlite import quick_check

_CHECK_SECONDS = 600.0
_OLD = timedelta(days=7)


def check_keeping(settings: Settings, database: Database) -> Iterator[Finding]:
    """Findings about a database that is there; nothing is changed."""
    if database.file is not None:
        yield _check_file(database)
        yield _check_reserve(settings, database)
    yield _check_backup(database, datetime.now(UTC))


def _check_file(database: Database) -> Finding:
    health = quick_check(database.engine, seconds=_CHECK_SECONDS)
    if health.problems:
        remedy = "stop Luthier, move the file and those beside it away, and run `luthier restore`"
        return failed("database file", f"{database.file} is damaged: {health.problems[0]}", remedy)
    if not health.is_whole:
        remedy = "run `PRAGMA quick_check` by hand while nothing else reads the disk"
        return warning("database file", f"not read to its end in {_CHECK_SECONDS:.0f} s", remedy)
    return ok("database file", f"{database.file} is sound (quick_check)")


def _check_reserve(settings: Settings, database: Database) -> Finding:
    size = size_of(settings.reserve_bytes)
    if database.reserve_is_spent:
        remedy = "make room on the disk of the database; the next start takes it again"
        text = f"the disk was full, and the {size} held back for the database are spent"
        return failed("reserve", text, remedy)
    return ok("reserve", f"{size} are held back for the database from the first start on")


def _check_backup(database: Database, now: datetime) -> Finding:
    remedy = "run `luthier backup FOLDER`, best every day and to another disk"
    with database.reading() as session:
        last = backups.find_last(session)
    if last is None:
        return warning("backup", "there is none", remedy)
    age = now - last.made_at
    text = f"the last whole one is {age.days} days old: {last.folder}"
    return warning("backup", text, remedy) if age > _OLD else ok("backup", text)
