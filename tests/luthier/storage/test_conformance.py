"""What every storage does, on a folder and on a real S3 server alike."""

import hashlib
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path, PurePosixPath

import pytest

from luthier.artifacts import MANIFEST_NAME, Manifest, ManifestError
from luthier.storage import FileStorage, Storage
from tests.luthier.storage.conftest import PART_BYTES

MakeFolder = Callable[..., Path]
_FOLDER = "ftjob-1/e0001/checkpoints/step-000005"
_LARGE = b"0123456789abcdef" * (PART_BYTES // 16) + b"and a second part"


def _keep(storage: Storage, key: str, *pieces: bytes) -> str:
    """Receive and keep a file; returns its hash."""
    with storage.receive() as incoming:
        for piece in pieces:
            incoming.write(piece)
        storage.keep(incoming, key)
    return incoming.sha256


def _read(storage: Storage, key: str) -> bytes | None:
    size = storage.find_size(key)
    return None if size is None else b"".join(storage.read_range(key, 0, size))


def _keys(storage: Storage, folder: str = "") -> list[str]:
    return sorted(file.key for file in storage.list_files(folder))


def _damage(storage: Storage, key: str, tmp_path: Path, cut_bytes: int = 0) -> None:
    """Put other bytes where a file of a folder lies, as many or fewer."""
    (tmp_path / "other").write_bytes(b"?" * ((storage.find_size(key) or 0) - cut_bytes))
    storage.put(tmp_path / "other", key)


@pytest.mark.parametrize("pieces", [(b"one ", b"two"), (b"",), (_LARGE,)], ids=["small", "empty", "parts"])
def test_what_was_received_is_kept_with_its_hash(storage: Storage, pieces: tuple[bytes, ...]) -> None:
    sha256 = _keep(storage, "files/file-1", *pieces)
    data = b"".join(pieces)
    assert sha256 == hashlib.sha256(data).hexdigest()
    assert (storage.find_size("files/file-1"), _read(storage, "files/file-1")) == (len(data), data)


def test_what_is_not_kept_is_gone(storage: Storage) -> None:
    with storage.receive() as incoming:
        incoming.write(b"x")
    assert not incoming.path.exists()
    assert _keys(storage) == []
    assert storage.list_temporary(now=datetime.now(UTC), older_than=timedelta(0)) == []


@pytest.mark.parametrize("key", ["../outside", "/etc/passwd", "files/../../outside", ""])
def test_a_key_cannot_lead_outside(storage: Storage, key: str) -> None:
    with pytest.raises(ValueError, match="outside"):
        storage.find_size(key)


def test_a_range_is_read_alone(storage: Storage) -> None:
    _keep(storage, "files/file-1", _LARGE)
    start, stop = PART_BYTES - 3, PART_BYTES + 4
    assert b"".join(storage.read_range("files/file-1", start, stop)) == _LARGE[start:stop]
    assert list(storage.read_range("files/file-1", 7, 7)) == []


def test_what_is_missing_or_too_short_is_found_before_the_first_byte(storage: Storage) -> None:
    _keep(storage, "files/file-1", b"short")
    with pytest.raises(FileNotFoundError):
        storage.read_range("files/file-2", 0, 5)
    with pytest.raises(OSError, match="shorter than its row says"):
        b"".join(storage.read_range("files/file-1", 0, 6))
    with pytest.raises(OSError, match="shorter than its row says"):
        b"".join(storage.read_range("files/file-1", 5, 6))


def test_a_file_is_fetched_whole_or_its_head(storage: Storage, tmp_path: Path) -> None:
    _keep(storage, "files/file-1", b"head and tail")
    assert storage.fetch_file("files/file-1", tmp_path / "to" / "file").read_bytes() == b"head and tail"
    assert storage.fetch_head("files/file-1", tmp_path / "head", 4).read_bytes().startswith(b"head")
    assert storage.fetch_head("files/file-1", tmp_path / "all", 400).read_bytes() == b"head and tail"
    with pytest.raises(FileNotFoundError):
        storage.fetch_file("files/file-2", tmp_path / "none")


def test_a_copy_outlives_its_source(storage: Storage) -> None:
    _keep(storage, "a/one", b"bytes")
    storage.copy("a/one", "b/two")
    storage.delete("a/one")
    assert (_read(storage, "a/one"), _read(storage, "b/two")) == (None, b"bytes")


def test_a_folder_is_put_and_fetched_with_its_manifest(
    storage: Storage, make_folder: MakeFolder, tmp_path: Path
) -> None:
    manifest = storage.put_folder(make_folder(), _FOLDER)
    assert ([entry.name for entry in manifest.files], manifest.meta) == (
        ["a.txt", "sub/b.txt"],
        {"made_by": "one"},
    )
    assert storage.manifest(_FOLDER) == storage.verify(_FOLDER) == manifest
    folder = storage.fetch_folder(_FOLDER, tmp_path / "target")
    assert (folder / "sub" / "b.txt").read_text(encoding="utf-8") == "b of one"
    assert (folder / MANIFEST_NAME).is_file()
    assert _read(storage, f"{_FOLDER}/a.txt") == b"a of one"


def test_a_folder_that_is_not_there_has_no_manifest(storage: Storage, tmp_path: Path) -> None:
    for look in (storage.manifest, storage.verify, lambda key: storage.fetch_folder(key, tmp_path / "t")):
        with pytest.raises(ManifestError):
            look(_FOLDER)


def test_a_damaged_source_is_not_stored(storage: Storage, make_folder: MakeFolder) -> None:
    source = make_folder()
    (source / "a.txt").write_text("changed!", encoding="utf-8")
    with pytest.raises(ManifestError):
        storage.put_folder(source, _FOLDER)
    with pytest.raises(ManifestError):
        storage.manifest(_FOLDER)


def test_a_source_that_names_a_file_outside_is_not_stored(storage: Storage, make_folder: MakeFolder) -> None:
    source = make_folder()
    text = (source / MANIFEST_NAME).read_text(encoding="utf-8")
    (source / MANIFEST_NAME).write_text(text.replace('"a.txt"', '"../a.txt"'), encoding="utf-8")
    with pytest.raises(ManifestError, match="outside"):
        storage.put_folder(source, _FOLDER)


@pytest.mark.parametrize("cut_bytes", [0, 1])
@pytest.mark.parametrize("is_sealed", [False, True], ids=["put", "kept"])
def test_damage_is_found_by_who_verifies_and_who_fetches(
    storage: Storage, make_folder: MakeFolder, tmp_path: Path, is_sealed: bool, cut_bytes: int
) -> None:
    put = storage.keep_sealed if is_sealed else storage.put_sealed
    put(make_folder(), _FOLDER, {})
    stored = next(key for key in _keys(storage, _FOLDER) if key.endswith("a.txt"))
    _damage(storage, stored, tmp_path, cut_bytes)
    with pytest.raises(ManifestError, match=r"a\.txt"):
        storage.verify(_FOLDER)
    with pytest.raises(ManifestError, match=r"a\.txt"):
        storage.fetch_folder(_FOLDER, tmp_path / "target")


def test_a_missing_file_is_damage(storage: Storage, make_folder: MakeFolder, tmp_path: Path) -> None:
    storage.put_folder(make_folder(), _FOLDER)
    storage.delete(f"{_FOLDER}/sub/b.txt")
    with pytest.raises(ManifestError, match=r"b\.txt"):
        storage.verify(_FOLDER)
    with pytest.raises(ManifestError, match=r"b\.txt"):
        storage.fetch_folder(_FOLDER, tmp_path / "target")


def test_large_files_of_a_folder_are_verified(
    storage: Storage, make_folder: MakeFolder, tmp_path: Path
) -> None:
    source = make_folder()
    (source / "large").write_bytes(_LARGE)
    manifest = storage.put_sealed(source, _FOLDER, {})
    assert storage.verify(_FOLDER) == manifest
    _damage(storage, f"{_FOLDER}/large", tmp_path)
    with pytest.raises(ManifestError, match="large"):
        storage.verify(_FOLDER)


def test_the_same_folder_again_changes_nothing(storage: Storage, make_folder: MakeFolder) -> None:
    source = make_folder()
    storage.put_folder(source, _FOLDER)
    before = _identities(storage)
    storage.put_folder(source, _FOLDER)
    assert _identities(storage) == before


def _identities(storage: Storage) -> dict[str, object]:
    """What tells a stored file from one that was written anew."""
    return {
        file.key: storage.path(file.key).stat().st_ino
        if isinstance(storage, FileStorage)
        else file.modified_at
        for file in storage.list_files(_FOLDER)
    }


def test_another_folder_by_the_same_run_takes_the_place(storage: Storage, make_folder: MakeFolder) -> None:
    source = make_folder("one")
    (source / "only-here").write_bytes(b"x")
    storage.put_sealed(source, _FOLDER, {})
    storage.put_folder(make_folder("two"), _FOLDER)
    assert storage.verify(_FOLDER).meta == {"made_by": "two"}
    assert f"{_FOLDER}/only-here" not in _keys(storage)


def test_a_whole_folder_that_others_may_read_is_kept(storage: Storage, make_folder: MakeFolder) -> None:
    first = storage.keep_sealed(make_folder("one"), "prepared/p/k", {"by": 1})
    second = storage.keep_sealed(make_folder("two"), "prepared/p/k", {"by": 2})
    assert first == second == storage.verify("prepared/p/k")


def test_a_kept_folder_that_was_fetched_can_be_put_elsewhere(
    storage: Storage, make_folder: MakeFolder, tmp_path: Path
) -> None:
    kept = storage.keep_sealed(make_folder(), "prepared/p/k", {"by": 1})
    storage.put_folder(storage.fetch_folder("prepared/p/k", tmp_path / "copy"), "prepared/q/k")
    assert storage.verify("prepared/q/k") == kept


def test_a_damaged_one_is_made_anew(storage: Storage, make_folder: MakeFolder, tmp_path: Path) -> None:
    storage.keep_sealed(make_folder("one"), "prepared/p/k", {"by": 1})
    stored = next(key for key in _keys(storage, "prepared/p/k") if key.endswith("a.txt"))
    _damage(storage, stored, tmp_path)
    storage.keep_sealed(make_folder("two"), "prepared/p/k", {"by": 2})
    assert storage.verify("prepared/p/k").meta == {"by": 2}


def test_of_many_that_keep_at_once_all_get_the_first_ones(storage: Storage, make_folder: MakeFolder) -> None:
    folders = [make_folder(str(number)) for number in range(4)]
    together = threading.Barrier(len(folders), timeout=30)

    def keep(number: int) -> Manifest:
        together.wait()
        return storage.keep_sealed(folders[number], "prepared/p/k", {"by": number})

    with ThreadPoolExecutor(len(folders)) as threads:
        kept = list(threads.map(keep, range(len(folders))))
    assert all(manifest == storage.verify("prepared/p/k") for manifest in kept)
    assert len(_keys(storage, "prepared/p/k")) == 3


def test_files_are_listed_below_a_folder(storage: Storage, make_folder: MakeFolder) -> None:
    before = datetime.now(UTC) - timedelta(seconds=2)
    _keep(storage, "files/file-1", b"12345")
    _keep(storage, "files2/file-1", b"")
    storage.put_folder(make_folder(), _FOLDER)
    assert _keys(storage, "files") == ["files/file-1"]
    assert len(_keys(storage)) == 5
    (file,) = storage.list_files("files")
    assert (file.size_bytes, before <= file.modified_at <= datetime.now(UTC) + timedelta(seconds=2)) == (
        5,
        True,
    )
    assert _keys(storage, "nothing") == []


def test_what_lies_below_a_folder_is_listed_together(storage: Storage) -> None:
    names = ("b", "a/x/1", "a/y", "a/x/0", "c/1", "a.b", "a-b/1", "c/0")
    keys = [f"files/file-{number}/{name}" for number in (1, 10, 2) for name in names]
    for key in keys:
        _keep(storage, key, b"")
    listed = [file.key for file in storage.list_files()]
    assert sorted(listed) == sorted(keys)
    for folder in {f"{parent}/" for key in keys for parent in PurePosixPath(key).parents[:-1]}:
        below = [number for number, key in enumerate(listed) if key.startswith(folder)]
        assert below == list(range(below[0], below[0] + len(below)))


def test_a_deleted_file_or_folder_is_gone_and_others_are_not(
    storage: Storage, make_folder: MakeFolder
) -> None:
    _keep(storage, "files/file-1", b"1")
    _keep(storage, "files/file-10", b"10")
    storage.put_folder(make_folder(), _FOLDER)
    for key in ("files/file-1", "files/file-1", "ftjob-1", "nothing/here"):
        storage.delete(key)
    assert _keys(storage) == ["files/file-10"]


def test_what_was_left_is_named_then_removed_when_it_is_old(storage: Storage) -> None:
    now = datetime.now(UTC)
    with storage.receive() as incoming:
        incoming.write(b"a process that died here leaves this")
        assert storage.list_temporary(now=now, older_than=timedelta(hours=1)) == []
        later = now + timedelta(hours=2)
        assert len(storage.list_temporary(now=later, older_than=timedelta(hours=1))) == 1
        assert storage.clean_temporary(now=later, older_than=timedelta(hours=1)) == 1
        assert storage.list_temporary(now=later, older_than=timedelta(hours=1)) == []


def test_free_space_is_told_where_somebody_knows_it(storage: Storage) -> None:
    free = storage.free_bytes()
    assert (free is not None and free > 0) if isinstance(storage, FileStorage) else free is None
