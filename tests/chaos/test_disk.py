"""A disk that fails under a publication: what is visible stays whole, and the next try begins anew."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from luthier.artifacts import ManifestError, seal, verify
from luthier.storage import FileStorage

KEY = "ftjob-1/e0001/checkpoints/step-000002"


class FailingOnce:
    """An fsync that fails the `at`-th time it is called, and never again."""

    def __init__(self, at: int) -> None:
        self._at, self._fsync, self.count, self.error_count = at, os.fsync, 0, 0

    def __call__(self, descriptor: int) -> None:
        self.count += 1
        if self.count == self._at:
            self.error_count += 1
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        self._fsync(descriptor)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A checkpoint as a trainer leaves it."""
    folder = tmp_path / "run" / "step-000002"
    folder.mkdir(parents=True)
    (folder / "weights.bin").write_bytes(b"weights")
    seal(folder, {"step": 2})
    return folder


def _is_whole(storage: FileStorage) -> bool:
    try:
        verify(storage.root / KEY)
    except ManifestError:
        return False
    return True


def _flushes(tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FailingOnce]:
    """One failing fsync after the other, until a publication needs no more of them."""
    at = 1
    while True:
        failing = FailingOnce(at)
        monkeypatch.setattr(os, "fsync", failing)
        yield failing
        if failing.count < at:
            return
        at += 1


def test_f24_an_fsync_that_fails_leaves_nothing_torn_and_the_next_try_is_whole(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures = 0
    for failing in _flushes(tmp_path, source, monkeypatch):
        storage = FileStorage(tmp_path / f"storage-{failures}")
        if _put_fails(storage, source):
            assert failing.error_count == 1
            assert _is_whole(storage) or not (storage.root / KEY).exists()
            storage.put_folder(source, KEY)
            failures += 1
        assert _is_whole(storage)
    assert failures >= 4


def _put_fails(storage: FileStorage, source: Path) -> bool:
    try:
        storage.put_folder(source, KEY)
    except OSError:
        return True
    return False
