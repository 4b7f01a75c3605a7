"""Conversion: the rows of a file, of whatever form, become Alpaca rows in JSON Lines."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from luthier.artifacts import flush
from luthier.datasets.examples import Example
from luthier.datasets.reading import Reading, read_examples
from luthier.spec import SourceFile


def convert_file(
    source: SourceFile, target: Path, on_progress: Callable[[int, int | None], None] | None = None
) -> int:
    """Write the rows of a file as Alpaca rows; gives their number.

    Raises:
        DatasetError: a row is bad.
        OSError: a file cannot be read or written.
    """
    columns = {str(field): column for field, column in source.columns.items()} if source.columns else None
    count = 0
    with target.open("w", encoding="utf-8") as file:
        for _, example in read_examples(Path(source.path), Reading(columns=columns, entry=source.entry)):
            file.write(json.dumps(_alpaca(example), ensure_ascii=False) + "\n")
            count += 1
            if on_progress is not None:
                on_progress(count, None)
    flush(target)
    return count


def _alpaca(example: Example) -> dict[str, Any]:
    messages = list(example.messages)
    row: dict[str, Any] = {}
    if messages[0].role == "system":
        row["system"] = messages.pop(0).content
    texts = [message.content or "" for message in messages]
    *history, (instruction, output) = zip(texts[::2], texts[1::2], strict=False)
    row |= {"instruction": instruction, "input": "", "output": output}
    return row | ({"history": history} if history else {})
