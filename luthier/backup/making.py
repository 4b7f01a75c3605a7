"""Making a backup of an installation that may be at work.

The rows are read in one transaction that sees one moment; whatever they speak of lay in storage by then.
Files follow without a transaction: what is deleted meanwhile is told and not missed. Stored files are never
changed in place, so a hard link keeps what it names.
"""

import os
import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, select

from luthier import __version__
from luthier.artifacts import Manifest, ManifestError, publish
from luthier.backup import rows
from luthier.backup.layout import DATABASE, FILES, KEY_FILE, Facts, fingerprint
from luthier.errors import LuthierError
from luthier.installation import Installation
from luthier.storage import Storage

_CHECKPOINTS, _ARTIFACTS, _UPLOADS = "checkpoints", "artifacts", "files"


@dataclass(frozen=True)
class Backup:
    """What was made. `damaged`: storage keys whose bytes are not those that their row tells of."""

    folder: Path
    facts: Facts
    size_bytes: int
    damaged: tuple[str, ...]


@dataclass(frozen=True)
class _Snapshot:
    """What the rows say at one moment: counts, revision, what should lie in storage, and what may."""

    revision: str
    row_counts: dict[str, int]
    keys: frozenset[str]
    beside: frozenset[str]
    left_out: frozenset[str]
    sha256_of: dict[str, str]


def back_up(
    installation: Installation, target: Path, *, now: datetime, with_checkpoints: bool = True
) -> Backup:
    """Make a backup at `target`, which appears whole or not at all.

    Args:
        with_checkpoints: False leaves those of unfinished training out; such jobs then start from step 0.
    Raises:
        LuthierError: something lies at `target`, or the database is empty.
    """
    return _make(installation, target, now=now, with_files=True, with_checkpoints=with_checkpoints)


def back_up_rows(installation: Installation, target: Path, *, now: datetime) -> Backup:
    """The same with rows and key alone, for a step that leaves storage as it is."""
    return _make(installation, target, now=now, with_files=False, with_checkpoints=False)


def _make(
    installation: Installation, target: Path, *, now: datetime, with_files: bool, with_checkpoints: bool
) -> Backup:
    if target.exists():
        raise LuthierError(f"Something lies at {target}: name a folder that is not there yet")
    temporary = target.with_name(f".{target.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True, mode=0o700)
    try:
        with installation.database.snapshot() as connection:
            taken = _take_rows(connection, temporary / DATABASE, with_checkpoints=with_checkpoints)
        missing: set[str] = set()
        if with_files:
            missing = _take_files(installation.storage, taken.keys, temporary / FILES)
            _take_files(installation.storage, taken.beside, temporary / FILES)
        _take_key(installation, temporary)
        facts = Facts(
            made_at=now.isoformat(timespec="seconds"),
            version=__version__,
            revision=taken.revision,
            row_counts=taken.row_counts,
            has_files=with_files,
            key_fingerprint=fingerprint(installation.installation_key),
            missing=sorted(missing | taken.left_out) if with_files else [],
        )
        manifest = publish(temporary, target, asdict(facts))
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return Backup(target, facts, manifest.size_bytes, _damaged(manifest, taken))


def _take_rows(connection: Connection, folder: Path, *, with_checkpoints: bool) -> _Snapshot:
    revision = MigrationContext.configure(connection).get_current_revision()
    if revision is None:
        raise LuthierError("The database is empty: there is nothing to back up")
    counts = rows.dump(connection, folder)
    found = list(rows.storage_keys(connection))
    left_out = {key for table, key in found if table == _CHECKPOINTS and not with_checkpoints}
    keys = frozenset(key for _, key in found) - left_out
    beside = frozenset(_beside_rows(connection))
    files = {table.name: table for table in rows.tables_of(connection)}[_UPLOADS]
    known = connection.execute(select(files.c.storage_key, files.c.sha256).where(files.c.sha256 != ""))
    sha256_of = {f"{FILES}/{key}": sha256 for key, sha256 in known}
    return _Snapshot(revision, counts, keys, beside, frozenset(left_out), sha256_of)


def _beside_rows(connection: Connection) -> Iterable[str]:
    """What may lie in storage for a run without a row of its own: its log, and its artifacts' manifest."""
    runs = {table.name: table for table in rows.tables_of(connection)}["runs"]
    for job_id, epoch in connection.execute(select(runs.c.job_id, runs.c.epoch)):
        yield f"{job_id}/e{epoch:04d}/log.txt"
        yield f"{job_id}/e{epoch:04d}/{_ARTIFACTS}/MANIFEST.json"


def _take_files(storage: Storage, keys: Iterable[str], folder: Path) -> set[str]:
    """Link or copy what lies under the keys; returns those under which nothing whole lies."""
    missing = set()
    for key in keys:
        target = folder / key
        try:
            if storage.find_size(key) is not None:
                _link(storage.fetch_file(key, target), target)
            else:
                _link_folder(storage.fetch_folder(key, target), target)
        except (FileNotFoundError, ManifestError):
            missing.add(key)
    return missing


def _link_folder(source: Path, target: Path) -> None:
    """Nothing is done where the storage has copied the folder to its place."""
    if source != target:
        for path in source.rglob("*"):
            if path.is_file():
                _link(path, target / path.relative_to(source))


def _link(source: Path, target: Path) -> None:
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:
        # Another disk, another owner, or a file system without links.
        shutil.copyfile(source, target)


def _take_key(installation: Installation, folder: Path) -> None:
    if installation.settings.secret_key is not None:
        return
    path = folder / KEY_FILE
    path.parent.mkdir(mode=0o700)
    path.touch(mode=0o600)
    path.write_bytes(installation.installation_key + b"\n")


def _damaged(manifest: Manifest, taken: _Snapshot) -> tuple[str, ...]:
    """Uploads whose bytes have changed since they came."""
    return tuple(
        entry.name.removeprefix(f"{FILES}/")
        for entry in manifest.files
        if entry.name in taken.sha256_of and taken.sha256_of[entry.name] != entry.sha256
    )
