"""What is wrong with one row, in the words of its file: notes that readers take while they read it.

A reader puts everything into one `Findings` and goes on; whoever called it decides what an error means.
A row with very many mistakes is given up. Values are shown short and on one line, and never whole.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from luthier.datasets.examples import DatasetError, Issue
from luthier.datasets.json_errors import MAX_DEPTH, depth_of
from luthier.datasets.rows import type_name
from luthier.errors import printable

# A row of 16 MiB has room for millions of mistakes, which would take gigabytes to note.
MAX_ERRORS_OF_A_ROW = 1000


@dataclass
class Findings:
    """What is wrong with one row, and what its owner should know; filled while the row is read."""

    errors: list[Issue] = field(default_factory=list)
    warnings: list[Issue] = field(default_factory=list)

    def error(self, code: str, loc: str, text: str) -> None:
        """Note an error; `text` goes on after the place.

        Raises:
            DatasetError: the row has too many of them to read on.
        """
        if len(self.errors) >= MAX_ERRORS_OF_A_ROW:
            what = f"the row has over {MAX_ERRORS_OF_A_ROW} mistakes; what follows them was not looked at"
            raise DatasetError(Issue("row.too_many_errors", what))
        self.errors.append(Issue(code, f"{loc} {text}" if loc else text, loc))

    def warn(self, code: str, loc: str, text: str) -> None:
        self.warnings.append(Issue(code, f"{loc} {text}" if loc else text, loc))


def string_field(
    row: Mapping[str, Any],
    key: str,
    family: str,
    found: Findings,
    *,
    prefix: str = "",
    is_required: bool = True,
    may_be_blank: bool = True,
) -> str:
    """The string under `key`; empty, with an error in `found`, when there is none."""
    loc, value = prefix + key, row.get(key)
    if value is None and not is_required:
        return ""
    if key not in row:
        found.error(f"{family}.field_missing", loc, f"is missing; the row has {key_list(row)}")
    elif not isinstance(value, str):
        found.error(f"{family}.field_type", loc, f"is {type_name(value)}; write a string")
    elif not may_be_blank and not value.strip():
        found.error(f"{family}.field_blank", loc, "is blank; write a text, or remove the row")
    else:
        return value
    return ""


def parsed_if_string(value: Any) -> Any:
    """The list or object that a string holds as JSON; anything else, and what no row may hold, as it is."""
    if not isinstance(value, str) or not value.lstrip().startswith(("[", "{")) or "\\u0000" in value:
        return value
    if value.count("[") + value.count("{") > MAX_DEPTH and depth_of(value.encode()) > MAX_DEPTH:
        return value
    try:
        # orjson refuses NaN and halves of surrogate pairs, but makes floats of large integers.
        orjson.loads(value)
        return json.loads(value)
    except ValueError:
        return value


def shown(value: object) -> str:
    """A string in quotes and cut short; of other values their type."""
    return f"'{printable(value, 40)}'" if isinstance(value, str) else type_name(value)


def key_list(row: Mapping[str, Any]) -> str:
    """The keys of a row, for the end of a sentence."""
    return f"the keys {key_names(list(row))}" if row else "no keys"


def key_names(keys: Sequence[str]) -> str:
    """The first ten keys, and how many more there are."""
    names = ", ".join(printable(key, 24) for key in keys[:10])
    return names + (f" and {len(keys) - 10} more" if len(keys) > 10 else "")
