"""Bringing a backup back: verified first, files before rows, and all rows in one transaction.

A restored installation has forgotten what happened since. So epochs go on far above all that were ever given
(a worker that still lives finds its lease gone), running jobs go back to their queue as if their worker had
made room, and what storage holds beyond the backup is set aside.
"""

import hashlib
import secrets
import shutil
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path, PurePosixPath

from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, MetaData, delete, inspect, select, update
from sqlalchemy.orm import Session

from luthier import schema
from luthier.accounts import recount
from luthier.artifacts import MANIFEST_NAME, FileEntry, Manifest, ManifestError, flush, verify
from luthier.backup import rows
from luthier.backup.layout import DATABASE, FILES, KEY_FILE, Facts, facts_of, fingerprint
from luthier.database import Database, clock
from luthier.errors import LuthierError
from luthier.installation import key_path
from luthier.service.transitions import move, note, ring
from luthier.settings import Settings
from luthier.status import LEASED, DesiredState, Phase, State
from luthier.storage import Storage
from luthier.tables import (
    Artifact,
    Checkpoint,
    File,
    Job,
    Leader,
    PreparedRows,
    Project,
    Run,
    UploadPart,
    Worker,
)

EPOCH_STEP = 1_000_000
ORPHANS = ".orphans"
_MESSAGE = "The service was restored from a backup; the job goes on from its last checkpoint in it"


@dataclass(frozen=True)
class Restored:
    """What was done. `orphans`: where files lie that the backup does not know; None where there are none."""

    facts: Facts
    file_count: int
    requeued: tuple[str, ...]
    missing: tuple[str, ...]
    orphans: str | None


def restore(
    settings: Settings, database: Database, storage: Storage, source: Path, *, force: bool, stamp: str
) -> Restored:
    """Bring the backup in `source` back to the installation that the settings name.

    Args:
        force: replace an installation that is there; its files are set aside, its rows are gone.
        stamp: names the folder for what is set aside.
    Raises:
        LuthierError: the backup is damaged, of a newer release, or keyed otherwise; the target is not empty;
            or somebody works on it.
    """
    manifest, facts = _checked(source)
    _check_key(settings, source, facts, force=force)
    _check_target(database, storage, facts, force=force)
    kept = {_key_of(entry): entry for entry in manifest.files if entry.name.startswith(f"{FILES}/")}
    orphans = _set_aside(storage, kept, stamp) if facts.has_files else None
    _put_all(storage, source / FILES, kept)
    _write_key(settings, source)
    with schema.migrating(database) as connection:
        requeued, missing = _replace_rows(connection, source, facts, storage)
    return Restored(facts, len(kept), requeued, missing, orphans)


def _checked(source: Path) -> tuple[Manifest, Facts]:
    try:
        manifest = verify(source)
        facts = facts_of(manifest.meta, source)
    except ManifestError as error:
        raise LuthierError(f"The backup cannot be restored: {error}") from error
    if not schema.is_known(facts.revision):
        raise LuthierError(
            f"The backup has schema {facts.revision}, which this release does not know: install Luthier "
            f"{facts.version} or newer, and restore it there"
        )
    return manifest, facts


def _check_key(settings: Settings, source: Path, facts: Facts, *, force: bool) -> None:
    """See that the key that the restored installation will have fits the hashes in the rows."""
    path, stored = key_path(settings), source / KEY_FILE
    if settings.secret_key is not None:
        if fingerprint(settings.secret_key.get_secret_value().encode()) != facts.key_fingerprint:
            raise LuthierError("LUTHIER_SECRET_KEY is not the backup's: no API key would be accepted")
    elif not stored.exists():
        raise LuthierError(
            "The backup holds no key: set LUTHIER_SECRET_KEY to what the backed-up installation had"
        )
    elif path.exists() and path.read_bytes().strip() != stored.read_bytes().strip() and not force:
        raise LuthierError(f"{path} is another installation's key: choose an empty data folder, or --force")


def _check_target(database: Database, storage: Storage, facts: Facts, *, force: bool) -> None:
    with database.snapshot() as connection:
        is_empty = MigrationContext.configure(connection).get_current_revision() is None
        leader = None if is_empty else _leader(connection, now=clock(Session(connection)))
    if leader is not None:
        raise LuthierError(
            f"The service works on this database (dispatcher {leader}): stop it; a dispatcher that was "
            "killed counts as at work until its lease is over"
        )
    has_files = facts.has_files and next(_keys_in(storage), None) is not None
    if (not is_empty or has_files) and not force:
        what = "the storage folder" if is_empty else "the database"
        raise LuthierError(f"{what} is not empty: --force replaces what is there. Back it up first")


def _leader(connection: Connection, *, now: datetime) -> str | None:
    """Who leads the dispatchers, where somebody does."""
    if not inspect(connection).has_table(Leader.__tablename__):
        return None
    query = select(Leader.holder).where(Leader.expires_at > now, Leader.holder.is_not(None))
    return connection.execute(query).scalars().first()


def _put_all(storage: Storage, files: Path, kept: Mapping[str, FileEntry]) -> None:
    """Put back what the backup holds: sealed folders as such, all else one by one."""
    sealed = {PurePosixPath(key).parent for key in kept if PurePosixPath(key).name == MANIFEST_NAME}
    whole = {folder for folder in sealed if _put_folder(storage, files, str(folder))}
    for key, entry in kept.items():
        if whole.isdisjoint(PurePosixPath(key).parents) and not _lies_there(storage, key, entry):
            storage.put(files / key, key)


def _put_folder(storage: Storage, files: Path, key: str) -> bool:
    """Whether the folder is whole, and so was put back; of one that is not, its files are worth keeping."""
    try:
        storage.put_folder(files / key, key)
    except ManifestError:
        return False
    return True


def _lies_there(storage: Storage, key: str, entry: FileEntry) -> bool:
    if storage.find_size(key) != entry.size_bytes:
        return False
    digest = hashlib.sha256()
    for chunk in storage.read_range(key, 0, entry.size_bytes):
        digest.update(chunk)
    return digest.hexdigest() == entry.sha256


def _set_aside(storage: Storage, kept: Collection[str], stamp: str) -> str | None:
    """Move what the backup does not know out of the way, and keep it."""
    folder = f"{ORPHANS}/{stamp}"
    strange = [key for key in _keys_in(storage) if key not in kept]
    for key in strange:
        storage.copy(key, f"{folder}/{key}")
        storage.delete(key)
    return folder if strange else None


def _keys_in(storage: Storage) -> Iterator[str]:
    return (file.key for file in storage.list_files() if not file.key.startswith(f"{ORPHANS}/"))


def _write_key(settings: Settings, source: Path) -> None:
    if settings.secret_key is not None:
        return
    path = key_path(settings)
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    temporary.touch(mode=0o600)
    shutil.copyfile(source / KEY_FILE, temporary)
    flush(temporary)
    temporary.rename(path)


def _replace_rows(
    connection: Connection, source: Path, facts: Facts, storage: Storage
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Empty the database, fill it, migrate it, and put its jobs in order; returns requeued ids, lost keys."""
    present = MetaData()
    present.reflect(connection)
    present.drop_all(connection)
    schema.migrate(connection, facts.revision)
    rows.load(connection, source / DATABASE)
    schema.migrate(connection, schema.wanted_revision())
    session = Session(connection)
    now = clock(session)
    missing = tuple(key for key in _spoken_of(session) if not _is_stored(storage, key))
    _forget(session, missing)
    for project in session.scalars(select(Project)).all():
        project.storage_bytes = recount(session, project.id)
    requeued = _requeue(session, now=now)
    session.execute(update(Job).values(lease_epoch=Job.lease_epoch + EPOCH_STEP))
    session.execute(update(Leader).values(epoch=Leader.epoch + EPOCH_STEP, holder=None, expires_at=None))
    session.execute(delete(Worker))
    # Joined to the connection's transaction, which `restore` commits.
    session.commit()
    return requeued, missing


def _is_stored(storage: Storage, key: str) -> bool:
    return storage.find_size(key) is not None or next(storage.list_files(key), None) is not None


def _spoken_of(session: Session) -> list[str]:
    tables = (File, PreparedRows, Checkpoint, Artifact, UploadPart)
    return [key for table in tables for key in session.scalars(select(table.storage_key))]


def _forget(session: Session, missing: Collection[str]) -> None:
    """Have no row speak of bytes that are not there; an uploaded file tells why it cannot be used."""
    text = "The file's bytes were not in the backup that the service was restored from: upload it again"
    for key in missing:
        for table in (PreparedRows, Checkpoint, Artifact, UploadPart):
            session.execute(delete(table).where(table.storage_key == key))
        gone = update(File).where(File.storage_key == key, File.sha256 != "")
        session.execute(gone.values(status="error", status_details=text))


def _requeue(session: Session, *, now: datetime) -> tuple[str, ...]:
    """Give running jobs back to their queue; their owners are not charged for it."""
    leased = session.scalars(select(Job).where(Job.state.in_(LEASED))).all()
    for job in leased:
        run = session.get(Run, (job.id, job.lease_epoch))
        if run is not None:
            run.outcome, run.ended_at = "stopped", now
        if job.desired_state == DesiredState.CANCEL:
            move(session, job, LEASED, State.CANCELLED, now=now)
            note(session, job, "job_cancelled", "The job was cancelled", now=now)
        else:
            move(session, job, LEASED, State.QUEUED, now=now, phase=Phase.WAITING, not_before=None)
            note(session, job, "job_requeued", _MESSAGE, now=now, level="warn")
            ring(session, job, now=now)
    session.flush()
    return tuple(job.id for job in leased)


def _key_of(entry: FileEntry) -> str:
    return entry.name.removeprefix(f"{FILES}/")
