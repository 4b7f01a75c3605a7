"""Storage in a folder, on a disk of this machine or on one that all hosts share.

What stands under a key was written under a temporary name on the same file system, flushed, and renamed; what
goes is renamed away before its files are removed. A process may die at any line: readers find the old, the
new or nothing, and `clean_temporary` finds the rest.
"""

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

from luthier.artifacts import Manifest, ManifestError, copy_flushed, flush, read_manifest, seal, verify
from luthier.storage.interface import (
    DamagedError,
    Incoming,
    StoredFile,
    abandoned,
    checked,
    started,
    temporary_file,
)

_TEMPORARY = ".tmp"
_CHUNK_BYTES = 256 * 1024
_NOT_EMPTY = frozenset({errno.ENOTEMPTY, errno.EEXIST})


class FileStorage:
    """Files under one root folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, key: str) -> Path:
        """Where the file or folder of a key lies, whether it exists or not.

        Raises:
            ValueError: the key leads outside the root; only a defect of ours can make one.
        """
        path = (self.root / checked(key)).resolve()
        if not path.is_relative_to(self.root.resolve()):
            raise ValueError(f"storage key {key!r} leads outside the storage")
        return path

    def receive(self) -> AbstractContextManager[Incoming]:
        return temporary_file(self._temporary_folder())

    def keep(self, incoming: Incoming, key: str) -> None:
        incoming.flush()
        flush(incoming.path)
        self._rename(incoming.path, self.path(key))

    def put(self, source: Path, key: str) -> None:
        with temporary_file(self._temporary_folder()) as temporary:
            copy_flushed(source, temporary.path)
            self._rename(temporary.path, self.path(key))

    def copy(self, source_key: str, key: str) -> None:
        """A hard link, for stored files never change; a copy where the file system has none."""
        source, folder = self.path(source_key), Path(tempfile.mkdtemp(dir=self._temporary_folder()))
        try:
            os.link(source, folder / source.name)
            self._rename(folder / source.name, self.path(key))
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EMLINK, errno.ENOSYS):
                raise
            self.put(source, key)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def put_folder(self, source: Path, key: str) -> Manifest:
        final = self.path(key)
        if final.exists() and (same := _whole_and_same(source, final)) is not None:
            return same
        temporary, manifest = self._copied(source)
        try:
            self._set_aside(final)
            self._rename(temporary, final)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return manifest

    def put_sealed(self, source: Path, key: str, meta: dict[str, object]) -> Manifest:
        seal(source, meta)
        return self.put_folder(source, key)

    def keep_sealed(self, source: Path, key: str, meta: dict[str, object]) -> Manifest:
        final = self.path(key)
        if (whole := _whole(final)) is not None:
            return whole
        seal(source, meta)
        temporary, manifest = self._copied(source)
        try:
            self._rename(temporary, final)
        except OSError as error:
            if error.errno not in _NOT_EMPTY:
                raise
            if (theirs := _whole(final)) is not None:
                return theirs
            self._set_aside(final)
            self._rename(temporary, final)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return manifest

    def manifest(self, key: str) -> Manifest:
        return read_manifest(self.path(key))

    def verify(self, key: str) -> Manifest:
        return verify(self.path(key))

    def find_size(self, key: str) -> int | None:
        path = self.path(key)
        return path.stat().st_size if path.is_file() else None

    def read_range(self, key: str, start: int, stop: int) -> Iterator[bytes]:
        return started(read_range(self.path(key), start, stop))

    def fetch_file(self, key: str, target: Path) -> Path:  # noqa: ARG002, it lies here already
        path = self.path(key)
        if not path.is_file():
            raise FileNotFoundError(errno.ENOENT, "nothing is stored there", key)
        return path

    def fetch_head(self, key: str, target: Path, most_bytes: int) -> Path:  # noqa: ARG002, as above
        return self.fetch_file(key, target)

    def fetch_folder(self, key: str, target: Path) -> Path:  # noqa: ARG002, as above
        verify(self.path(key))
        return self.path(key)

    def list_files(self, folder: str = "") -> Iterator[StoredFile]:
        for place, folders, names in os.walk(self.path(folder) if folder else self.root):
            if Path(place) == self.root:
                folders[:] = [name for name in folders if name != _TEMPORARY]
            for name in names:
                path = Path(place, name)
                with suppress(FileNotFoundError):
                    found = path.stat()
                    modified_at = datetime.fromtimestamp(found.st_mtime, UTC)
                    yield StoredFile(path.relative_to(self.root).as_posix(), found.st_size, modified_at)

    def delete(self, key: str) -> None:
        path = self.path(key)
        if path.is_dir():
            self._set_aside(path)
        else:
            path.unlink(missing_ok=True)

    def free_bytes(self) -> int:
        self.root.mkdir(parents=True, exist_ok=True)
        return shutil.disk_usage(self.root).free

    def find_url(self, key: str, *, disposition: str, media_type: str) -> None:
        """None: files have no address of their own."""

    def list_temporary(self, *, now: datetime, older_than: timedelta) -> list[str]:
        left = abandoned(self.root / _TEMPORARY, now - older_than)
        return [path.relative_to(self.root).as_posix() for path in left]

    def clean_temporary(self, *, now: datetime, older_than: timedelta) -> int:
        left = abandoned(self.root / _TEMPORARY, now - older_than)
        for path in left:
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
        return len(left)

    def _copied(self, source: Path) -> tuple[Path, Manifest]:
        """A flushed and checked copy of a sealed folder, under a temporary name."""
        temporary = Path(tempfile.mkdtemp(dir=self._temporary_folder()))
        try:
            shutil.copytree(source, temporary, dirs_exist_ok=True)
            manifest = verify(temporary)
            for path in (*temporary.rglob("*"), temporary):
                flush(path)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        return temporary, manifest

    def _set_aside(self, folder: Path) -> None:
        """Take a folder away at once, then remove what is in it; nothing happens where there is none."""
        aside = Path(tempfile.mkdtemp(dir=self._temporary_folder()))
        try:
            folder.rename(aside)
            flush(folder.parent)
        except FileNotFoundError:
            pass
        finally:
            shutil.rmtree(aside, ignore_errors=True)

    def _temporary_folder(self) -> Path:
        folder = self.root / _TEMPORARY
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _rename(self, temporary: Path, final: Path) -> None:
        _make_folder(final.parent)
        temporary.rename(final)
        flush(final.parent)


def read_range(path: Path, start: int, stop: int) -> Iterator[bytes]:
    """The bytes of a file on this machine from `start` up to `stop`.

    Raises:
        DamagedError: the file ends before; an answer then breaks off, and the client sees it is not whole.
    """
    with path.open("rb") as file:
        file.seek(start)
        while start < stop:
            chunk = file.read(min(_CHUNK_BYTES, stop - start))
            if not chunk:
                raise DamagedError(f"{path.name} is shorter than its row says")
            start += len(chunk)
            yield chunk


def _make_folder(folder: Path) -> None:
    """Make a folder and those above it, so that a power cut leaves no file without the way to it."""
    if not folder.is_dir():
        _make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        flush(folder.parent)


def _whole(folder: Path) -> Manifest | None:
    try:
        return verify(folder)
    except ManifestError:
        return None


def _whole_and_same(source: Path, folder: Path) -> Manifest | None:
    """The manifest of a folder that is whole and says the same as the one of `source`."""
    whole = _whole(folder)
    return whole if whole is not None and whole == read_manifest(source) else None
