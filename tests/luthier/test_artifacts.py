"""Folders that are whole or not there."""

import os
from pathlib import Path

import pytest

from luthier.artifacts import MANIFEST_NAME, ManifestError, publish, verify


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
