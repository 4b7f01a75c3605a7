"""Validation of JSON Lines, beside the `datasets` library checking the same rows.

The file holds generated chat rows of about 1 kB. `datasets` loads it and checks roles and contents in a map,
the nearest that it has: it finds no duplicates, no odd characters and no lost keys, and names no lines. Rates
are by the time of one core.
"""

import json
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

import datasets
from measuring import Result, measured

from luthier.datasets.validate import validate_file

_ROLES = frozenset({"system", "user", "assistant"})
_WORDS = 5000


def compare(folder: Path, megabytes: int, repeats: int) -> list[Result]:
    """Ours and theirs on one file, and ours where rows have a key of their own besides."""
    plain, keyed = folder / "rows.jsonl", folder / "keyed.jsonl"
    row_count = _write_chat_rows(plain, megabytes * 1_000_000)
    with plain.open("rb") as rows, keyed.open("wb") as file:
        file.writelines(b'{"id": %d, ' % number + row[1:] for number, row in enumerate(rows))
    files = {"luthier validate_file": plain, "luthier, rows with an id": keyed}
    ours = [_ours(what, path, row_count, repeats) for what, path in files.items()]
    return [*ours, _theirs(plain, row_count, repeats)]


def _ours(what: str, path: Path, row_count: int, repeats: int) -> Result:
    def work() -> None:
        report = validate_file(path, path.name)
        if not report.valid or report.row_count != row_count:
            sys.exit(f"the generated file is not valid: {report.errors[:3]}")

    size = path.stat().st_size
    return measured(what, work, size=size, row_count=row_count, repeats=repeats, rate_by="cpu")


def _theirs(path: Path, row_count: int, repeats: int) -> Result:
    def work() -> None:
        with tempfile.TemporaryDirectory(dir=path.parent) as cache:
            rows = datasets.load_dataset("json", data_files=str(path), split="train", cache_dir=cache)
            checked = rows.map(_check_batch, batched=True, remove_columns=rows.column_names)
            if len(checked) != row_count or not all(checked["is_valid"]):
                sys.exit("datasets found invalid rows in the generated file")

    size, what = path.stat().st_size, "datasets load_dataset + map"
    return measured(what, work, size=size, row_count=row_count, repeats=repeats, rate_by="cpu")


def _check_batch(batch: dict[str, list[Any]]) -> dict[str, list[bool]]:
    return {"is_valid": [_is_conversation(messages) for messages in batch["messages"]]}


def _is_conversation(messages: list[dict[str, Any]]) -> bool:
    return messages[-1]["role"] == "assistant" and all(
        message["role"] in _ROLES and isinstance(message["content"], str) and message["content"].strip()
        for message in messages
    )


def _write_chat_rows(path: Path, size: int) -> int:
    """Chat rows of about 1 kB (system, user, assistant) of made-up words; how many there are."""
    chance = random.Random(1)
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["".join(chance.choices(letters, k=chance.randint(2, 9))) for _ in range(_WORDS)]
    words += [word + mark for word in words[:300] for mark in (",\n", ".", ' "so"', ": \u00e9")]
    row_count = 0
    with path.open("wb") as file:
        while file.tell() < size:
            turns = zip(("system", "user", "assistant"), (12, 40, 85), strict=True)
            messages = [
                {"role": role, "content": " ".join(chance.choices(words, k=count))} for role, count in turns
            ]
            file.write(json.dumps({"messages": messages}, ensure_ascii=False).encode() + b"\n")
            row_count += 1
    return row_count
