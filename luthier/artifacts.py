"""Files that are whole or not there: manifests with SHA-256, and publication by rename.

A folder is written under a temporary name, sealed with `MANIFEST.json`, flushed and renamed; whoever finds a
folder checks it with `verify`. Used for checkpoints, for what a run leaves, and for stored files alike.
Rename without flushing the parent folder can be lost in a power cut, so the parent is flushed too.
"""

import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MANIFEST_NAME = "MANIFEST.json"
_CHUNK_BYTES = 1 << 20


class ManifestError(Exception):
    """A folder does not hold what its manifest says."""


@dataclass(frozen=True)
class FileEntry:
    """One file of a manifest; `name` is relative to the folder, with forward slashes."""

    name: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What a folder holds, and `meta`: small facts about it (step, kind, versions)."""

    files: tuple[FileEntry, ...]
    meta: dict[str, Any]

    @property
    def size_bytes(self) -> int:
        return sum(entry.size_bytes for entry in self.files)


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of a file, read in chunks."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def seal(folder: Path, meta: dict[str, Any]) -> Manifest:
    """Write the manifest of everything in `folder` and flush all of it to disk."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    entries = tuple(
        FileEntry(name, (folder / name).stat().st_size, sha256_of(folder / name))
        for name in names
        if name != MANIFEST_NAME
    )
    manifest = Manifest(entries, meta)
    text = json.dumps({"files": [vars(entry) for entry in entries], "meta": meta}, indent=1, sort_keys=True)
    (folder / MANIFEST_NAME).write_text(text + "\n", encoding="utf-8")
    for path in folder.rglob("*"):
        flush(path)
    flush(folder)
    return manifest


def publish(temporary: Path, final: Path, meta: dict[str, Any]) -> Manifest:
    """Seal `temporary` and rename it to `final`; both must lie on one file system.

    A folder that already stands at `final` is replaced: the same attempt wrote it before.
    """
    manifest = seal(temporary, meta)
    if final.exists():
        shutil.rmtree(final)
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary.rename(final)
    flush(final.parent)
    return manifest


def parse_manifest(text: str | bytes, name: str) -> Manifest:
    """The manifest that a text is.

    Args:
        name: of the folder, for the error.
    Raises:
        ManifestError: it is none.
    """
    try:
        data = json.loads(text)
        return Manifest(tuple(FileEntry(**entry) for entry in data["files"]), data["meta"])
    except (ValueError, KeyError, TypeError) as error:
        raise ManifestError(f"{name}: no readable {MANIFEST_NAME} ({error})") from error


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a folder, unchecked.

    Raises:
        ManifestError: there is none, or it is not readable.
    """
    try:
        text = (folder / MANIFEST_NAME).read_bytes()
    except OSError as error:
        raise ManifestError(f"{folder.name}: no readable {MANIFEST_NAME} ({error})") from error
    return parse_manifest(text, folder.name)


def verify(folder: Path) -> Manifest:
    """The manifest of a folder whose every file has the size and SHA-256 that it should.

    Raises:
        ManifestError: a file is missing, changed, or named outside the folder.
    """
    manifest = read_manifest(folder)
    for entry in manifest.files:
        path = folder / entry.name
        if not path.resolve().is_relative_to(folder.resolve()):
            raise ManifestError(f"{folder.name}: {entry.name!r} lies outside the folder")
        if not path.is_file() or path.stat().st_size != entry.size_bytes:
            raise ManifestError(f"{folder.name}: {entry.name} is missing or has another size")
        if sha256_of(path) != entry.sha256:
            raise ManifestError(f"{folder.name}: {entry.name} has another SHA-256")
    return manifest


def flush(path: Path) -> None:
    """fsync a file or a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def copy_flushed(source: Path, target: Path) -> None:
    """Copy one file and flush the copy; the parent of `target` is made."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    flush(target)
