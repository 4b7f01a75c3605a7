"""What a storage does, whatever it is made of.

A key names a file (`files/file-4Xq`) or a folder (`ftjob-1/e0001/artifacts`). A file of a folder that
`put_folder` or `put_sealed` made has a key of its own, `<folder>/<name>`; one of `keep_sealed` is reached
through its folder alone. A missing file is a `FileNotFoundError`, a folder that is not there or not whole a
`ManifestError`, and a storage that does not answer a `StorageUnavailableError`.
"""

import hashlib
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Protocol

import structlog

from luthier.artifacts import Manifest
from luthier.errors import LuthierError

log = structlog.get_logger()


class StorageUnavailableError(LuthierError):
    """The storage does not answer, or not as it must; the same may succeed later. The API answers 503."""

    def __init__(self, message: str) -> None:
        super().__init__(message, "storage_unavailable")


class DamagedError(OSError):
    """A stored file is shorter than it should be, or was replaced while it was read."""


class Incoming:
    """A file that is being written: count and hash go along with the bytes."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._file, self.path = file, path
        self._digest = hashlib.sha256()
        self.size_bytes = 0

    def write(self, data: bytes) -> None:
        self._file.write(data)
        self._digest.update(data)
        self.size_bytes += len(data)

    def flush(self) -> None:
        self._file.flush()

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()


@dataclass(frozen=True)
class StoredFile:
    """One file, as a listing tells of it."""

    key: str
    size_bytes: int
    modified_at: datetime


class Storage(Protocol):
    """Files and folders under keys; whoever reads one finds it whole or not at all."""

    def receive(self) -> AbstractContextManager[Incoming]:
        """A temporary file of this machine to write to; it is gone after the block unless `keep` took it."""
        ...

    def keep(self, incoming: Incoming, key: str) -> None:
        """Make a received file durable under `key`."""
        ...

    def put(self, source: Path, key: str) -> None:
        """Copy one file of this machine under `key`."""
        ...

    def copy(self, source_key: str, key: str) -> None:
        """Have a stored file under a second key."""
        ...

    def put_folder(self, source: Path, key: str) -> Manifest:
        """Copy a folder that carries a manifest under `key`, and check the copy.

        A folder that lies there already is kept where it is the same, and else replaced: keys of runs have
        their epoch in them, so the same run wrote it before.

        Raises:
            ManifestError: the source or the copy does not hold what the manifest says.
        """
        ...

    def put_sealed(self, source: Path, key: str, meta: dict[str, object]) -> Manifest:
        """Seal a folder with a manifest, then `put_folder` it."""
        ...

    def keep_sealed(self, source: Path, key: str, meta: dict[str, object]) -> Manifest:
        """`put_sealed`, unless a whole folder lies there: that one stays, for others may be reading it.

        Of any number that write the same key at once the first one wins, and all get its manifest.
        """
        ...

    def manifest(self, key: str) -> Manifest:
        """The manifest of a folder, unchecked."""
        ...

    def verify(self, key: str) -> Manifest:
        """The manifest of a folder whose every file has the size and SHA-256 that it should."""
        ...

    def find_size(self, key: str) -> int | None:
        """Bytes of a file; None where there is none."""
        ...

    def read_range(self, key: str, start: int, stop: int) -> Iterator[bytes]:
        """The bytes of a file from `start` up to `stop`; the first of them are read before this returns.

        Raises:
            DamagedError: the file ends before, which may show only while it is read.
        """
        ...

    def fetch_file(self, key: str, target: Path) -> Path:
        """Where the bytes of a file lie on this machine: in place, or at `target`, whose folder is made.

        What is in place belongs to the storage and is not to be changed.
        """
        ...

    def fetch_head(self, key: str, target: Path, most_bytes: int) -> Path:
        """The same, but what is copied to `target` may end after so many bytes."""
        ...

    def fetch_folder(self, key: str, target: Path) -> Path:
        """Where a folder lies on this machine, each file checked: in place, or at `target`."""
        ...

    def list_files(self, folder: str = "") -> Iterator[StoredFile]:
        """Every file below a folder's key; without one, all.

        What lies below one folder comes together, and there is no other order that one may count on.
        """
        ...

    def delete(self, key: str) -> None:
        """Remove a file or folder; nothing happens where there is none.

        A folder is gone for readers before the first of its files is.
        """
        ...

    def free_bytes(self) -> int | None:
        """How much more can be stored; None where nobody says."""
        ...

    def find_url(self, key: str, *, disposition: str, media_type: str) -> str | None:
        """An address for some minutes, from which a client gets the file itself; None where there is none.

        Args:
            disposition, media_type: the headers that the client gets with it.
        """
        ...

    def list_temporary(self, *, now: datetime, older_than: timedelta) -> list[str]:
        """Names of what was begun and left, by processes that ended meanwhile; for people to read."""
        ...

    def clean_temporary(self, *, now: datetime, older_than: timedelta) -> int:
        """Remove what `list_temporary` names; returns how many.

        `older_than` must exceed the time that the longest upload takes.
        """
        ...


def discard(storage: Storage, keys: Iterable[str]) -> None:
    """Delete what no row speaks of any more; what cannot be deleted now is left to the retention."""
    for key in keys:
        try:
            storage.delete(key)
        except (OSError, LuthierError) as error:
            log.warning("orphan_left", key=key, reason=str(error))


def checked(key: str) -> str:
    """The key itself.

    Raises:
        ValueError: it leads outside the storage; only a defect of ours can make one.
    """
    parts = PurePosixPath(key).parts
    if not parts or key.startswith("/") or ".." in parts:
        raise ValueError(f"storage key {key!r} leads outside the storage")
    return key


def started(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """The same, after the first one was taken, so that what cannot be read fails here."""
    first = next(chunks, None)
    return iter(()) if first is None else chain((first,), chunks)


@contextmanager
def temporary_file(folder: Path) -> Iterator[Incoming]:
    """A new file in `folder`, which is made; it is gone after the block if it is still there."""
    folder.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=folder)
    path = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield Incoming(file, path)
    finally:
        path.unlink(missing_ok=True)


def abandoned(folder: Path, before: datetime) -> list[Path]:
    """What lies in a folder of temporary files and was last written to before a time."""
    if not folder.is_dir():
        return []
    return [path for path in folder.iterdir() if _newest(path) < before.timestamp()]


def _newest(path: Path) -> float:
    """When a file, or any in a folder, was last written to; what is gone by now counts as new."""
    try:
        return max(item.lstat().st_mtime for item in (path, *path.rglob("*")))
    except FileNotFoundError:
        return float("inf")
