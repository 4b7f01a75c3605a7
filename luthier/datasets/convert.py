"""Conversion: a file of any form becomes Alpaca rows in UTF-8 JSON Lines.

Rows that are Alpaca's in other words (by `columns`, by a dataset_info entry, or already) keep instruction and
input apart; conversations become an instruction with its history. What Alpaca rows cannot say is refused.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

from luthier.artifacts import flush
from luthier.datasets.containers import open_dataset
from luthier.datasets.examples import DatasetError, Example, Format, Issue, Message
from luthier.datasets.findings import parsed_if_string
from luthier.datasets.reading import Examiner, Reading, reading_of
from luthier.datasets.rows import parse_row
from luthier.spec import SourceFile

_REQUIRED = ("instruction", "input", "output")
_OPTIONAL = ("system", "history")
_PROGRESS_ROWS = 1000

# Called with the rows written so far.
OnProgress = Callable[[int], None]


def convert_file(source: SourceFile, target: Path, on_progress: OnProgress | None = None) -> int:
    """Write the rows of a file as Alpaca rows.

    Args:
        target: the file to make; it appears whole, flushed to disk, or not at all.
        on_progress: called every thousand rows.
    Returns:
        The number of rows.
    Raises:
        DatasetError: a row is bad, or says what Alpaca rows cannot; or there are no rows.
        OSError: the file cannot be read or written.
    """
    temporary = target.with_name(target.name + ".tmp")
    try:
        with temporary.open("wb") as file:
            count = 0
            for row in _converted(Path(source.path), reading_of(source)):
                file.write(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE))
                count += 1
                if on_progress is not None and count % _PROGRESS_ROWS == 0:
                    on_progress(count)
        if count == 0:
            raise DatasetError(Issue("dataset.no_rows", "the file has no rows"))
        flush(temporary)
        temporary.rename(target)
    finally:
        temporary.unlink(missing_ok=True)
    flush(target.parent)
    return count


def _converted(path: Path, reading: Reading) -> Iterator[dict[str, Any]]:
    examiner, fields = Examiner(reading), _fields(reading)
    with open_dataset(path, reading.wanted_columns, reading.max_decoded_bytes) as dataset:
        for row in dataset.rows():
            examined = examiner.examine(row)
            if examined.example is None:
                raise DatasetError(examined.errors[0])
            if examined.example.format is Format.ALPACA:
                yield _renamed(parse_row(row), fields)
            else:
                yield _from_turns(examined.example, examined.line)


def _fields(reading: Reading) -> Mapping[str, str]:
    """The user's column for each field of an Alpaca row."""
    if reading.entry is not None:
        names = reading.entry.columns
        columns = (names.prompt, names.query, names.response, names.system, names.history)
        pairs = zip((*_REQUIRED, *_OPTIONAL), columns, strict=True)
        return {field: column for field, column in pairs if column is not None}
    if reading.columns is not None:
        return {str(field): column for field, column in reading.columns.items()}
    return {field: field for field in (*_REQUIRED, *_OPTIONAL)}


def _renamed(row: Mapping[str, Any], fields: Mapping[str, str]) -> dict[str, Any]:
    values = {field: row.get(column) for field, column in fields.items()}
    values["history"] = parsed_if_string(values.get("history"))
    required = {field: values.get(field) or "" for field in _REQUIRED}
    return required | {field: values[field] for field in _OPTIONAL if values.get(field)}


def _from_turns(example: Example, line: int) -> dict[str, Any]:
    """A conversation as its last question and answer, with the turns before as history."""
    messages = list(example.messages)
    if not messages:
        raise DatasetError(_unsayable("a plain text has no instruction", line))
    if example.tools or any(message.tool_calls or message.role == "tool" for message in messages):
        raise DatasetError(_unsayable("the row has tools or calls of them", line))
    if not all(message.is_trained for message in messages):
        raise DatasetError(_unsayable("the row has turns of weight 0", line))
    system = messages.pop(0).content if messages[0].role == "system" else None
    *history, (instruction, output) = _pairs(messages, line)
    row: dict[str, Any] = {"instruction": instruction, "input": "", "output": output}
    row |= {"system": system} if system else {}
    return row | ({"history": history} if history else {})


def _pairs(messages: Sequence[Message], line: int) -> list[tuple[str, str]]:
    roles = [message.role for message in messages]
    if len(roles) % 2 or roles != ["user", "assistant"] * (len(roles) // 2):
        raise DatasetError(_unsayable("its turns are not pairs of a user's and an assistant's", line))
    texts = [message.content or "" for message in messages]
    return list(zip(texts[::2], texts[1::2], strict=True))


def _unsayable(what: str, line: int) -> Issue:
    return Issue("convert.unsupported", f"{what}, which Alpaca rows cannot say; leave the row out", line=line)
