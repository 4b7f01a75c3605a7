"""Folders that are whole or not there, and the storage that keeps them."""

import os
from pathlib import Path

import pytest

from luthier.artifacts import MANIFEST_NAME, ManifestError, publish, sha256_of, verify
from luthier.storage import Storage


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A published folder with two files."""
    temporary = tmp_path / "work.tmp"
    (temporary / "sub").mkdir(parents=True)
    (temporary / "a.txt").write_text("a", encoding="utf-8")
    (temporary / "sub" / "b.txt").write_text("b", encoding="utf-8")
    publish(temporary, tmp_path / "done", {"step": 5})
    return tmp_path / "done"


def test_a_published_folder_verifies_and_tells_its_meta(folder: Path) -> None:
    manifest = verify(folder)
    assert ([entry.name for entry in manifest.files], manifest.meta) == (["a.txt", "sub/b.txt"], {"step": 5})


@pytest.mark.parametrize("damage", ["another", "", None])
def test_a_changed_cut_or_missing_file_is_found(folder: Path, damage: str | None) -> None:
    if damage is None:
        (folder / "a.txt").unlink()
    else:
        (folder / "a.txt").write_text(damage, encoding="utf-8")
    with pytest.raises(ManifestError, match=r"a\.txt"):
        verify(folder)


def test_a_manifest_that_names_a_file_outside_is_refused(folder: Path) -> None:
    text = (folder / MANIFEST_NAME).read_text(encoding="utf-8")
    (folder / MANIFEST_NAME).write_text(text.replace("a.txt", "../work"), encoding="utf-8")
    with pytest.raises(ManifestError, match="outside"):
        verify(folder)


def test_all_is_on_disk_before_the_rename_and_the_parent_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary, order, rename = tmp_path / "work.tmp", [], Path.rename
    (temporary / "sub").mkdir(parents=True)
    (temporary / "sub" / "b.txt").write_text("b", encoding="utf-8")
    monkeypatch.setattr(os, "fsync", lambda number: order.append(Path(f"/proc/self/fd/{number}").readlink()))
    monkeypatch.setattr(
        Path, "rename", lambda path, target: order.append(Path("renamed")) or rename(path, target)
    )

    publish(temporary, tmp_path / "done", {})

    within = {temporary / name for name in ("", "sub", "sub/b.txt", MANIFEST_NAME)}
    assert (set(order[:-2]), order[-2:]) == (within, [Path("renamed"), tmp_path])


def test_storage_keeps_what_it_received_and_its_hash(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    with storage.receive() as incoming:
        incoming.write(b"one ")
        incoming.write(b"two")
        storage.keep(incoming, "files/file-1")
    path = storage.path("files/file-1")
    assert (path.read_bytes(), sha256_of(path)) == (b"one two", incoming.sha256)


def test_what_storage_does_not_keep_is_gone(tmp_path: Path) -> None:
    with Storage(tmp_path).receive() as incoming:
        incoming.write(b"x")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_damaged_folder_is_not_stored(folder: Path, tmp_path: Path) -> None:
    (folder / "a.txt").write_text("another", encoding="utf-8")
    storage = Storage(tmp_path / "storage")
    with pytest.raises(ManifestError):
        storage.put_folder(folder, "job/e0001/checkpoints/step-000005")
    assert not storage.path("job").exists()


@pytest.mark.parametrize("key", ["../outside", "/etc/passwd", "files/../../outside", ""])
def test_a_key_cannot_lead_outside(tmp_path: Path, key: str) -> None:
    with pytest.raises(ValueError, match="outside"):
        Storage(tmp_path / "storage").path(key)
