"""Entries of LLaMA-Factory's dataset_info.json, read as that system does, with a warning for each trap.

`resolve_entry` freezes a raw entry into a `DatasetEntry` and refuses by name what cannot be honoured. The
rule that surprises most: where `columns` (or `tags`) is there, what it does not name has no column at all,
and not the default one. Source: LLaMA-Factory, src/llamafactory/data/parser.py and data/README.md.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from luthier.datasets.examples import DatasetError, Issue
from luthier.datasets.findings import key_names, shown
from luthier.errors import printable
from luthier.spec.entry import DatasetEntry, EntryColumns, EntryTags

_DEFAULT_COLUMNS = {
    "prompt": "instruction",
    "query": "input",
    "response": "output",
    "messages": "conversations",
}
_DEFAULT_TAGS = {
    "role_tag": "from",
    "content_tag": "value",
    "user_tag": "human",
    "assistant_tag": "gpt",
    "observation_tag": "observation",
    "function_tag": "function_call",
    "system_tag": "system",
}
_SOURCES = {
    "hf_hub_url": "datasets are not fetched from a hub; upload the file and give file_name",
    "ms_hub_url": "datasets are not fetched from a hub; upload the file and give file_name",
    "om_hub_url": "datasets are not fetched from a hub; upload the file and give file_name",
    "script_url": "loading scripts are not run; upload the rows that the script makes",
    "cloud_file_name": "files are not fetched from cloud storage; upload the file and give file_name",
    "folder": "a file is registered by itself; upload the files of the folder one by one",
    "subset": "an uploaded file has no subsets; upload the one that you want",
}
_MEDIA = ("images", "videos", "audios")
_PREFERENCES = ("chosen", "rejected", "kto_tag")
_KEYS = frozenset(
    {"file_name", "formatting", "ranking", "split", "num_samples", "columns", "tags", *_SOURCES}
)
# More rows are drawn for minutes, whatever the file holds.
_MAX_SAMPLES = 10_000_000
_FORMATTINGS = ("alpaca", "sharegpt", "openai")


def resolve_entry(raw: Mapping[str, Any], name: str) -> tuple[DatasetEntry, list[Issue]]:
    """Read an entry as it stands in dataset_info.json.

    Args:
        name: of the entry, for messages.
    Returns:
        The entry, and warnings about what follows from it that one might not expect.
    Raises:
        DatasetError: `entry.…`: something in it is not known, has the wrong type, or cannot be honoured.
    """
    if (refusal := next(_refusals(raw), None)) is not None:
        raise DatasetError(
            Issue(refusal.code, f"the dataset_info entry '{printable(name, 60)}': {refusal.text}")
        )
    formatting = raw.get("formatting", "alpaca")
    columns, tags = raw.get("columns"), raw.get("tags")
    entry = DatasetEntry(
        formatting=formatting,
        columns=EntryColumns.model_validate(_DEFAULT_COLUMNS if columns is None else _named(columns)),
        tags=EntryTags.model_validate(_DEFAULT_TAGS if tags is None else _named(tags)),
        num_samples=raw.get("num_samples"),
    )
    if (gap := _gap(entry)) is not None:
        raise DatasetError(
            Issue("entry.incomplete", f"the dataset_info entry '{printable(name, 60)}': {gap}")
        )
    prefix = f"the dataset_info entry '{printable(name, 60)}': "
    warnings = [Issue(code, prefix + text) for code, text in _traps(entry, raw)]
    return entry, warnings


def _named(values: Mapping[str, Any]) -> dict[str, Any]:
    known = (*EntryColumns.model_fields, *EntryTags.model_fields)
    return {key: value for key, value in values.items() if value is not None and key in known}


def _refusals(raw: Mapping[str, Any]) -> Iterator[Issue]:
    if unknown := [key for key in raw if key not in _KEYS]:
        yield Issue("entry.unknown_key", f"has keys that are not known: {key_names(unknown)}")
    for key, reason in _SOURCES.items():
        if raw.get(key) is not None:
            yield Issue("entry.unsupported", f"{key} is refused: {reason}")
    if raw.get("ranking"):
        yield Issue("entry.unsupported", "ranking is refused: Luthier does not train on preferences")
    if (split := raw.get("split", "train")) != "train":
        yield Issue(
            "entry.unsupported", f"split {shown(split)} is refused: an uploaded file has one split, train"
        )
    if (formatting := raw.get("formatting", "alpaca")) not in _FORMATTINGS:
        text = f"formatting is {shown(formatting)}; use {', '.join(_FORMATTINGS)}"
        yield Issue("entry.formatting", text)
    samples = raw.get("num_samples")
    if samples is not None and (type(samples) is not int or not 1 <= samples <= _MAX_SAMPLES):
        text = f"num_samples is {shown(samples)}; write a number from 1 to {_MAX_SAMPLES:,}"
        yield Issue("entry.num_samples", text)
    yield from _mapping_refusals(raw, "columns", EntryColumns.model_fields)
    yield from _mapping_refusals(raw, "tags", EntryTags.model_fields)


def _mapping_refusals(raw: Mapping[str, Any], key: str, known: Mapping[str, Any]) -> Iterator[Issue]:
    values = raw.get(key)
    if values is None:
        return
    if not isinstance(values, Mapping):
        yield Issue("entry.type", f"{key} is {shown(values)}; write an object")
        return
    for name, value in values.items():
        if value is None:
            continue
        if name in _MEDIA and key == "columns":
            yield Issue("entry.unsupported", f"columns.{name} is refused: Luthier trains on text alone")
        elif name in _PREFERENCES and key == "columns":
            text = f"columns.{name} is refused: Luthier does not train on preferences"
            yield Issue("entry.unsupported", text)
        elif name not in known:
            yield Issue("entry.unknown_key", f"{key} has a key that is not known: {printable(name, 40)}")
        elif not isinstance(value, str) or not value:
            yield Issue("entry.type", f"{key}.{name} is {shown(value)}; write the name of a column or a tag")


def _gap(entry: DatasetEntry) -> str | None:
    """What an entry must name and does not."""
    if entry.formatting == "alpaca":
        return None if entry.columns.prompt or entry.columns.query else "columns names no prompt"
    if entry.columns.messages is None:
        return "columns names no messages, so there is nothing to read"
    wanted = ("role_tag", "content_tag", "user_tag", "assistant_tag")
    missing = [name for name in wanted if getattr(entry.tags, name) is None]
    return f"tags names no {' and no '.join(missing)}" if missing else None


def _traps(entry: DatasetEntry, raw: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    columns, tags = entry.columns, entry.tags
    if raw.get("columns") is not None:
        yield from _column_traps(entry)
    if entry.formatting == "alpaca":
        if raw.get("tags") is not None:
            yield "entry.tags_unused", "tags has no effect on formatting alpaca"
        if columns.response is None:
            text = "columns names no response, so the rows are read as plain text, all of which is trained on"
            yield "entry.plain_text", text
        return
    if raw.get("tags") is not None and tags.system_tag is None:
        text = "tags names no system_tag, so a row whose first turn is a system turn is refused"
        yield "entry.no_system_tag", text
    for name in ("observation_tag", "function_tag"):
        if raw.get("tags") is not None and getattr(tags, name) is None:
            yield f"entry.no_{name}", f"tags names no {name}, so rows with such turns are refused"
    if entry.formatting == "openai":
        text = (
            "LLaMA-Factory adds 'detailed thinking off' to the system turn of rows in formatting openai that "
            "have no tools; Luthier does not"
        )
        yield "entry.no_thinking_note", text


def _column_traps(entry: DatasetEntry) -> Iterator[tuple[str, str]]:
    """Defaults that the mere presence of `columns` has switched off."""
    columns = entry.columns
    if entry.formatting == "alpaca":
        for name in ("query", "response"):
            if getattr(columns, name) is None:
                default = _DEFAULT_COLUMNS[name]
                text = (
                    f"columns names no {name}, so the column {default} is not read, should the rows have one"
                )
                yield f"entry.no_{name}", text
    for name in ("system", "tools", "history") if entry.formatting == "alpaca" else ("system", "tools"):
        if getattr(columns, name) is None:
            text = f"columns names no {name}, so the rows' {name}, should they have one, is not read"
            yield f"entry.no_{name}", text
