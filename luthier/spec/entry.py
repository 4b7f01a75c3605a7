"""An entry of LLaMA-Factory's dataset_info.json: where a file's rows keep what, and how roles are called.

A `DatasetEntry` is what `luthier.datasets.entries` has understood of a raw entry, with every default filled
in, and is frozen on the file and on each job that uses it.
"""

from typing import Literal

from luthier.spec.base import Frozen


class EntryTags(Frozen):
    """Words of a dataset_info entry for who speaks, and under which keys; None means that it has none."""

    role_tag: str | None = None
    content_tag: str | None = None
    user_tag: str | None = None
    assistant_tag: str | None = None
    observation_tag: str | None = None
    function_tag: str | None = None
    system_tag: str | None = None


class EntryColumns(Frozen):
    """Columns of a dataset_info entry; None means that the rows have no such thing."""

    prompt: str | None = None
    query: str | None = None
    response: str | None = None
    history: str | None = None
    messages: str | None = None
    system: str | None = None
    tools: str | None = None


class DatasetEntry(Frozen):
    """An entry of LLaMA-Factory's dataset_info.json, read as that system reads it and frozen.

    Where `columns` (or `tags`) stands in the entry, what it does not name is None and not the default.
    """

    formatting: Literal["alpaca", "sharegpt", "openai"]
    columns: EntryColumns
    tags: EntryTags
    num_samples: int | None = None
