"""Storage in a bucket of any server that speaks S3 and honours `If-None-Match: *` on PUT.

A folder's files go first, its manifest last and only where none is: a folder without one is not there. What
`put_folder` writes lies at `<key>/<name>`; a run alone writes below its key. Several may write the key of
`keep_sealed` at once, so each puts its files below a name of its own, and the one manifest that stays says
below which. Deleting begins with the manifest.
"""

import errno
import hashlib
import json
import secrets
from collections.abc import Iterator
from contextlib import AbstractContextManager, suppress
from datetime import datetime, timedelta
from pathlib import Path

from luthier.artifacts import MANIFEST_NAME, FileEntry, Manifest, ManifestError, parse_manifest, seal
from luthier.storage.bucket import AlteredError, Bucket
from luthier.storage.interface import (
    DamagedError,
    Incoming,
    StorageUnavailableError,
    StoredFile,
    abandoned,
    started,
    temporary_file,
)

_URL_SECONDS = 900
_PLACE = "place"


class S3Storage:
    """Files in a bucket.

    Args:
        spool: a folder of this machine for uploads that are still coming in.
        gives_urls: whether clients get addresses of the bucket to download from.
    """

    def __init__(self, bucket: Bucket, spool: Path, *, gives_urls: bool = False) -> None:
        self._bucket, self._spool, self._gives_urls = bucket, spool, gives_urls

    def receive(self) -> AbstractContextManager[Incoming]:
        return temporary_file(self._spool)

    def keep(self, incoming: Incoming, key: str) -> None:
        incoming.flush()
        self._bucket.put_file(incoming.path, key, incoming.sha256)

    def put(self, source: Path, key: str) -> None:
        self._bucket.put_file(source, key)

    def copy(self, source_key: str, key: str) -> None:
        self._bucket.copy(source_key, key)

    def put_folder(self, source: Path, key: str) -> Manifest:
        text = _manifest_of(source)
        manifest = parse_manifest(text, source.name)
        there = self._bucket.find(_manifest_key(key))
        if there == text and self._is_whole(manifest, key):
            return manifest
        if there is not None:
            self.delete(key)
        self._upload(source, manifest, key)
        if self._bucket.put_once(text, _manifest_key(key)) != text:
            raise StorageUnavailableError(f"Another process published another {key} meanwhile")
        return manifest

    def put_sealed(self, source: Path, key: str, meta: dict[str, object]) -> Manifest:
        seal(source, meta)
        return self.put_folder(source, key)

    def keep_sealed(self, source: Path, key: str, meta: dict[str, object]) -> Manifest:
        try:
            return self.verify(key)
        except ManifestError:
            self._remove_damaged(key)
        manifest = seal(source, meta)
        place = secrets.token_hex(8)
        self._upload(source, manifest, f"{key}/{place}")
        text = json.dumps(json.loads(_manifest_of(source)) | {_PLACE: place}, sort_keys=True).encode()
        if self._bucket.put_once(text, _manifest_key(key)) == text:
            return manifest
        self.delete(f"{key}/{place}")
        return self.verify(key)

    def manifest(self, key: str) -> Manifest:
        return self._read_manifest(key)[0]

    def verify(self, key: str) -> Manifest:
        manifest, place = self._read_manifest(key)
        if (damaged := self._find_damaged(manifest, place)) is not None:
            raise ManifestError(f"{key}: {damaged.name} is missing, or has another size or SHA-256")
        return manifest

    def find_size(self, key: str) -> int | None:
        return self._bucket.find_size(key)

    def read_range(self, key: str, start: int, stop: int) -> Iterator[bytes]:
        return started(self._bucket.read_range(key, start, stop))

    def fetch_file(self, key: str, target: Path) -> Path:
        return self._fetch(key, target, None)

    def fetch_head(self, key: str, target: Path, most_bytes: int) -> Path:
        return self._fetch(key, target, most_bytes)

    def fetch_folder(self, key: str, target: Path) -> Path:
        text = self._manifest_text(key)
        manifest, place = _placed(text, key)
        for entry in manifest.files:
            path = target / entry.name
            if not path.resolve().is_relative_to(target.resolve()):
                raise ManifestError(f"{key}: {entry.name!r} lies outside the folder")
            try:
                found = _write(self._bucket.read_range(f"{place}/{entry.name}", 0, entry.size_bytes), path)
            except (FileNotFoundError, DamagedError) as error:
                raise ManifestError(f"{key}: {entry.name} is missing or cut") from error
            if found != entry.sha256:
                raise ManifestError(f"{key}: {entry.name} has another SHA-256")
        _write(iter((_without_place(text),)), target / MANIFEST_NAME)
        return target

    def list_files(self, folder: str = "") -> Iterator[StoredFile]:
        return self._bucket.list_files(folder)

    def delete(self, key: str) -> None:
        below = [file.key for file in self._bucket.list_files(key)]
        manifests = [name for name in below if name.endswith(f"/{MANIFEST_NAME}")]
        self._bucket.delete(manifests)
        self._bucket.delete([key, *(name for name in below if name not in frozenset(manifests))])

    def free_bytes(self) -> None:
        """None: a bucket has no end that anyone tells."""

    def find_url(self, key: str, *, disposition: str, media_type: str) -> str | None:
        if not self._gives_urls:
            return None
        return self._bucket.url(
            key,
            _URL_SECONDS,
            ResponseContentDisposition=disposition,
            ResponseContentType=media_type,
            ResponseCacheControl="private, no-cache",
        )

    def list_temporary(self, *, now: datetime, older_than: timedelta) -> list[str]:
        before = now - older_than
        uploads = [upload.key for upload in self._bucket.list_uploads() if upload.begun_at < before]
        return [*uploads, *(path.name for path in abandoned(self._spool, before))]

    def clean_temporary(self, *, now: datetime, older_than: timedelta) -> int:
        left = abandoned(self._spool, now - older_than)
        for path in left:
            path.unlink(missing_ok=True)
        return len(left) + self.abort_stale_uploads(now=now, older_than=older_than)

    def abort_stale_uploads(self, *, now: datetime, older_than: timedelta) -> int:
        """Give up uploads in parts that were begun before and never ended; returns how many."""
        stale = [upload for upload in self._bucket.list_uploads() if upload.begun_at < now - older_than]
        for upload in stale:
            self._bucket.abort(upload)
        return len(stale)

    def has_conditional_put(self) -> bool:
        """Whether the server keeps one of two that publish the same; asks it, with an object that goes again.

        Raises:
            StorageUnavailableError: it does not answer as it must.
        """
        return self._bucket.probe(f".probe/{secrets.token_hex(8)}")

    def _upload(self, source: Path, manifest: Manifest, place: str) -> None:
        for entry in manifest.files:
            path = source / entry.name
            if not path.resolve().is_relative_to(source.resolve()):
                raise ManifestError(f"{source.name}: {entry.name!r} lies outside the folder")
            try:
                self._bucket.put_file(path, f"{place}/{entry.name}", entry.sha256)
            except (AlteredError, FileNotFoundError) as error:
                text = f"{source.name}: {entry.name} is missing or has another SHA-256"
                raise ManifestError(text) from error

    def _remove_damaged(self, key: str) -> None:
        """Remove a folder's manifest and what it names; what others are uploading beside that stays."""
        if (text := self._bucket.find(_manifest_key(key))) is None:
            return
        self._bucket.delete([_manifest_key(key)])
        with suppress(ManifestError):
            manifest, place = _placed(text, key)
            self._bucket.delete(f"{place}/{entry.name}" for entry in manifest.files)

    def _is_whole(self, manifest: Manifest, place: str) -> bool:
        return self._find_damaged(manifest, place) is None

    def _find_damaged(self, manifest: Manifest, place: str) -> FileEntry | None:
        """The first file that is not as its manifest says."""
        bad = (
            entry
            for entry in manifest.files
            if not self._bucket.holds(f"{place}/{entry.name}", entry.size_bytes, entry.sha256)
        )
        return next(bad, None)

    def _read_manifest(self, key: str) -> tuple[Manifest, str]:
        return _placed(self._manifest_text(key), key)

    def _manifest_text(self, key: str) -> bytes:
        text = self._bucket.find(_manifest_key(key))
        if text is None:
            raise ManifestError(f"{key}: no readable {MANIFEST_NAME} (there is none)")
        return text

    def _fetch(self, key: str, target: Path, most_bytes: int | None) -> Path:
        size = self._bucket.find_size(key)
        if size is None:
            raise FileNotFoundError(errno.ENOENT, "nothing is stored there", key)
        _write(self._bucket.read_range(key, 0, size if most_bytes is None else min(size, most_bytes)), target)
        return target


def _manifest_key(key: str) -> str:
    return f"{key}/{MANIFEST_NAME}"


def _manifest_of(folder: Path) -> bytes:
    try:
        return (folder / MANIFEST_NAME).read_bytes()
    except OSError as error:
        raise ManifestError(f"{folder.name}: no readable {MANIFEST_NAME} ({error})") from error


def _placed(text: bytes, key: str) -> tuple[Manifest, str]:
    """A manifest, and below which key its files lie."""
    manifest = parse_manifest(text, key)
    place = json.loads(text).get(_PLACE)
    return manifest, key if place is None else f"{key}/{place}"


def _without_place(text: bytes) -> bytes:
    """The manifest of a copy, whose files lie beside it."""
    data = json.loads(text)
    return text if data.pop(_PLACE, None) is None else json.dumps(data, sort_keys=True).encode()


def _write(chunks: Iterator[bytes], target: Path) -> str:
    """Write a file of this machine, with the folders above it; returns its SHA-256."""
    target.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    with target.open("wb") as file:
        for chunk in chunks:
            digest.update(chunk)
            file.write(chunk)
    return digest.hexdigest()
