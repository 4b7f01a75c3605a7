"""An entry of LLaMA-Factory's dataset_info.json, as it stands there, read into a `DatasetEntry`."""

from typing import Any

from pydantic import ValidationError

from luthier.datasets.examples import DatasetError, Issue
from luthier.spec import DatasetEntry, EntryColumns, EntryTags, field_path

_ALPACA = {"prompt": "instruction", "query": "input", "response": "output"}
_SHAREGPT = {"messages": "conversations"}


def resolve_entry(raw: dict[str, Any], name: str) -> tuple[DatasetEntry, list[Issue]]:
    """The entry with its defaults, and what is odd about it.

    Raises:
        DatasetError: it is not an entry.
    """
    formatting = raw.get("formatting", "alpaca")
    default = _ALPACA if formatting == "alpaca" else _SHAREGPT
    try:
        entry = DatasetEntry(
            formatting=formatting,
            columns=EntryColumns.model_validate(raw.get("columns", default)),
            tags=EntryTags.model_validate(raw.get("tags", {})),
            num_samples=raw.get("num_samples"),
        )
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        place = f"{name}.{field_path(first['loc'])}"
        raise DatasetError(Issue("entry.invalid", f"{place}: {first['msg']}", place)) from error
    return entry, []
