"""Datasets of a folder with a dataset_info.json."""

import json
from pathlib import Path
from typing import Any

import pytest

from luthier.errors import LuthierError
from luthier.llamafactory.registry import dataset_folder, find_datasets


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A dataset_dir with one dataset, and some that cannot be used."""
    index: dict[str, Any] = {
        "rows": {"file_name": "rows.json", "columns": {"prompt": "q", "response": "a"}},
        "far": {"hf_hub_url": "someone/rows"},
        "lost": {"file_name": "lost.json"},
        "many": {"file_name": "."},
        "empty": {},
    }
    (tmp_path / "dataset_info.json").write_text(json.dumps(index))
    (tmp_path / "rows.json").write_text("[]")
    return tmp_path


def test_a_dataset_is_found_with_its_entry(folder: Path) -> None:
    found = find_datasets(["rows", "rows"], folder)
    assert [each.path for each in found] == [folder / "rows.json"] * 2
    assert found[0].entry["columns"] == {"prompt": "q", "response": "a"}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("rowz", "has no dataset 'rowz'; did you mean 'rows'"),
        ("far", "is fetched by hf_hub_url"),
        ("lost", "there is no file"),
        ("many", "is a folder"),
        ("empty", "has no file_name"),
    ],
)
def test_one_that_cannot_be_used_is_told_with_the_reason(folder: Path, name: str, message: str) -> None:
    with pytest.raises(LuthierError, match=message):
        find_datasets([name], folder)


@pytest.mark.parametrize(("text", "message"), [(None, "there is no"), ("{", "is not JSON"), ("[]", "index")])
def test_an_index_that_cannot_be_read_is_told(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "dataset_info.json").write_text(text)
    with pytest.raises(LuthierError, match=message):
        find_datasets(["rows"], tmp_path)


def test_the_folder_is_beside_the_job_file_or_here(tmp_path: Path) -> None:
    assert dataset_folder("data", tmp_path) == Path("data")
    (tmp_path / "data").mkdir()
    assert dataset_folder("data", tmp_path) == tmp_path / "data"
    with pytest.raises(LuthierError, match="not fetched from a hub"):
        dataset_folder("REMOTE:someone/rows", tmp_path)
