"""The datasets of a folder, as its dataset_info.json names them: where their files lie, and their entries.

Only files of this machine are found; an entry that points to a hub, a script or a cloud is refused with what
to do. How rows are read by an entry, `luthier.datasets.entries` knows.
"""

import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.errors import LuthierError, printable

INDEX_NAME = "dataset_info.json"
_ELSEWHERE = ("hf_hub_url", "ms_hub_url", "om_hub_url", "script_url", "cloud_file_name")


@dataclass(frozen=True)
class RegisteredDataset:
    """One dataset.

    Attributes:
        path: of its file, which exists.
        entry: as it stands in dataset_info.json.
    """

    name: str
    path: Path
    entry: Mapping[str, Any]


def dataset_folder(dataset_dir: str, beside: Path) -> Path:
    """The folder that `dataset_dir` means: beside the job file where it is there, else in this folder."""
    if dataset_dir == "ONLINE" or dataset_dir.startswith("REMOTE:"):
        raise _wrong(
            "datasets are not fetched from a hub: download the file and name it in a dataset_info.json"
        )
    folder = Path(dataset_dir).expanduser()
    located = beside / folder
    return located if located.is_dir() else folder


def find_datasets(names: Sequence[str], folder: Path) -> list[RegisteredDataset]:
    """The datasets of these names, in this order.

    Raises:
        LuthierError: the folder has no index, or not all of the names, or a file is not there.
    """
    index = _read_index(folder)
    missing = [name for name in names if name not in index]
    if missing:
        close = difflib.get_close_matches(missing[0], index, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        shown = ", ".join(repr(printable(name)) for name in missing)
        raise LuthierError(f"{folder / INDEX_NAME} has no dataset {shown}{hint}", "invalid_value", "dataset")
    return [_located(name, index[name], folder) for name in names]


def _read_index(folder: Path) -> dict[str, Any]:
    path = folder / INDEX_NAME
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        text = f"there is no {path}: name the folder that has it in dataset_dir"
        raise _wrong(text) from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise _wrong(f"{path} is not JSON: {error}") from error
    if not isinstance(index, dict) or not all(isinstance(entry, dict) for entry in index.values()):
        raise _wrong(f'{path} is not an index: it needs entries such as {{"name": {{"file_name": "..."}}}}')
    return index


def _located(name: str, entry: dict[str, Any], folder: Path) -> RegisteredDataset:
    elsewhere = [key for key in _ELSEWHERE if entry.get(key)]
    if elsewhere:
        raise _wrong(
            f"dataset {printable(name)!r} is fetched by {elsewhere[0]}: download its file and give file_name",
            "dataset",
        )
    if not isinstance(entry.get("file_name"), str):
        raise _wrong(f"dataset {printable(name)!r} has no file_name in {folder / INDEX_NAME}", "dataset")
    path = (folder / entry["file_name"]).absolute()
    if path.is_dir():
        raise _wrong(
            f"dataset {printable(name)!r}: {path} is a folder; give each of its files a name", "dataset"
        )
    if not path.is_file():
        raise _wrong(f"dataset {printable(name)!r}: there is no file {path}", "dataset")
    return RegisteredDataset(name, path, entry)


def _wrong(text: str, param: str = "dataset_dir") -> LuthierError:
    return LuthierError(text, "invalid_value", param)
