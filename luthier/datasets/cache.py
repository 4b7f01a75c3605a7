"""The name of prepared data: equal for two jobs exactly when preparation would write the same rows.

`cache_key` reads and hashes files of bounded size only, so that a supervisor can look for prepared data
before it starts a child. Weights and splits are not in it: they are the trainer's.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

from luthier.artifacts import sha256_of
from luthier.datasets.named_templates import named_template
from luthier.datasets.reading import reading_of
from luthier.datasets.tokenizer import find_vocabulary, read_model_words
from luthier.spec import DatasetRequest, SourceFile

# Raised with every change of what the same rows become.
DATA_VERSION = 4


def cache_key(
    file_sha256: str,
    model_folder: Path,
    source: SourceFile,
    rules: DatasetRequest,
    max_seq_length: int,
    *,
    now: Callable[[], datetime] = datetime.now,
) -> str:
    """Hex SHA-256 of all that the prepared rows of a file depend on.

    Args:
        source: how the file is read; where it lies does not matter.
        now: for templates that print the date, whose rows are another's tomorrow.
    Raises:
        JobFailure: the model's files are missing, too large or broken.
        DatasetError: there is no template of the name that the rules give.
    """
    tokenizer = find_vocabulary(model_folder)
    words = read_model_words(model_folder)
    reading = reading_of(source, rules)
    facts = {
        "data_version": DATA_VERSION,
        "file": file_sha256,
        "columns": dict(reading.columns) if reading.columns else None,
        "entry": reading.entry.model_dump() if reading.entry else None,
        "max_rows": reading.max_rows,
        "tokenizer": sha256_of(tokenizer),
        "named_tokens": words.named_tokens,
        "template": _template(rules.template, reading.format_string, words.chat_template, now),
        "max_seq_length": max_seq_length,
        "style": rules.style,
        "thoughts": rules.thoughts,
        "train_on": rules.train_on,
        "overlength": rules.overlength,
        "on_bad_row": rules.on_bad_row,
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _template(
    asked: str | None, format_string: str | None, own: str | None, now: Callable[[], datetime]
) -> dict[str, Any]:
    if format_string is not None:
        return {"format_string": format_string}
    if asked is not None:
        # Its entry in the table, not its name: the table may change.
        return json.loads(json.dumps(asdict(named_template(asked)), default=str))  # type: ignore[no-any-return]
    date = now().date().isoformat() if own is not None and "strftime_now" in own else None
    return {"own": own, "date": date}
