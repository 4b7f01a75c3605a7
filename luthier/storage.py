"""Where files lie: uploads, prepared data, checkpoints and artifacts, under keys such as `files/file-4Xq`.

Keys are made by Luthier, never by users. What stands under a key is whole: it was written under a temporary
name on the same file system, flushed, and renamed. All hosts of an installation share the folder.
"""

import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import BinaryIO

from luthier.artifacts import Manifest, ManifestError, copy_flushed, flush, read_manifest, seal, verify

_TEMPORARY = ".tmp"


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


class Storage:
    """Files under one root folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, key: str) -> Path:
        """Where the file or folder of a key lies, whether it exists or not.

        Raises:
            ValueError: the key leads outside the root; only a defect of ours can make one.
        """
        path = (self.root / key).resolve()
        if not path.is_relative_to(self.root.resolve()) or path == self.root.resolve():
            raise ValueError(f"storage key {key!r} leads outside the storage folder")
        return path

    @contextmanager
    def receive(self) -> Iterator[Incoming]:
        """A temporary file to write to; it is gone after the block unless `keep` took it."""
        folder = self._temporary_folder()
        descriptor, name = tempfile.mkstemp(dir=folder)
        path = Path(name)
        try:
            with os.fdopen(descriptor, "wb") as file:
                yield Incoming(file, path)
        finally:
            path.unlink(missing_ok=True)

    def keep(self, incoming: Incoming, key: str) -> None:
        """Make a received file durable under `key`."""
        incoming.flush()
        flush(incoming.path)
        self._rename(incoming.path, self.path(key))

    def put(self, source: Path, key: str) -> None:
        """Copy one file under `key`."""
        temporary = self._temporary_folder() / f"{source.name}.{os.getpid()}"
        copy_flushed(source, temporary)
        self._rename(temporary, self.path(key))

    def put_folder(self, source: Path, key: str) -> Manifest:
        """Copy a folder that carries a manifest under `key`, and check the copy.

        Raises:
            ManifestError: the copy does not hold what the manifest says.
        """
        temporary = Path(tempfile.mkdtemp(dir=self._temporary_folder()))
        try:
            shutil.copytree(source, temporary, dirs_exist_ok=True)
            manifest = verify(temporary)
            for path in temporary.rglob("*"):
                flush(path)
            flush(temporary)
            final = self.path(key)
            if final.exists():
                shutil.rmtree(final)
            self._rename(temporary, final)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return manifest

    def put_sealed(self, source: Path, key: str, meta: dict[str, object]) -> Manifest:
        """Seal a folder with a manifest, then `put_folder` it."""
        seal(source, meta)
        return self.put_folder(source, key)

    def keep_sealed(self, source: Path, key: str, meta: dict[str, object]) -> Manifest:
        """`put_sealed`, unless a whole folder lies there: that one stays, for others may be reading it.

        Whoever comes second of two that write the same key at once finds the first one's folder.
        """
        try:
            return verify(self.path(key))
        except ManifestError:
            pass
        try:
            return self.put_sealed(source, key, meta)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            return verify(self.path(key))

    def manifest(self, key: str) -> Manifest:
        return read_manifest(self.path(key))

    def delete(self, key: str) -> None:
        """Remove a file or folder; nothing happens where there is none."""
        path = self.path(key)
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)

    def list_files(self, folder: str = "") -> Iterator[StoredFile]:
        """Every file below a folder's key, in no order that one may count on; without one, all."""
        for place, folders, names in os.walk(self.path(folder) if folder else self.root):
            if Path(place) == self.root:
                folders[:] = [name for name in folders if name != _TEMPORARY]
            for name in names:
                path = Path(place, name)
                with suppress(FileNotFoundError):
                    found = path.stat()
                    modified_at = datetime.fromtimestamp(found.st_mtime, UTC)
                    yield StoredFile(path.relative_to(self.root).as_posix(), found.st_size, modified_at)

    def clean_temporary(self, *, now: datetime, older_than: timedelta) -> int:
        """Remove what processes that ended meanwhile have begun and left; returns how many.

        `older_than` must exceed the time that the longest upload takes.
        """
        folder = self._temporary_folder()
        left = [path for path in folder.iterdir() if _newest(path) < (now - older_than).timestamp()]
        for path in left:
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
        return len(left)

    def used_bytes(self) -> int:
        """Bytes of all files; walks the folder."""
        return sum(path.stat().st_size for path in self.root.rglob("*") if path.is_file())

    def free_bytes(self) -> int:
        self.root.mkdir(parents=True, exist_ok=True)
        return shutil.disk_usage(self.root).free

    def _temporary_folder(self) -> Path:
        folder = self.root / _TEMPORARY
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _rename(self, temporary: Path, final: Path) -> None:
        final.parent.mkdir(parents=True, exist_ok=True)
        temporary.rename(final)
        flush(final.parent)


def _newest(path: Path) -> float:
    """When a file, or any in a folder, was last written to; what is gone by now counts as new."""
    try:
        return max(item.lstat().st_mtime for item in (path, *path.rglob("*")))
    except FileNotFoundError:
        return float("inf")
