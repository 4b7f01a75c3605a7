"""Format strings: a text with columns in braces, which every row fills in and which is trained on whole.

`{{` and `}}` stand for braces. Names of special tokens, such as `{eos_token}`, are no columns: they go
through as they are, and the model's tokenizer says what they become. What a column holds is text, also where
it looks like a special token; the literal parts may hold special tokens.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from luthier.datasets.examples import Example, Format, TextPiece
from luthier.datasets.findings import Findings, key_list
from luthier.datasets.rows import type_name

TOKEN_NAMES = frozenset({"bos_token", "eos_token", "pad_token", "unk_token", "sep_token", "cls_token"})

_PART = re.compile(r"\{\{|\}\}|\{([^{}\n]{1,256})\}|[{}]")


def is_format_string(template: str) -> bool:
    """Whether a `template` has a column in braces; otherwise it is the name of a template."""
    return bool(columns_in(template))


def columns_in(template: str) -> tuple[str, ...]:
    """The columns that a format string names, each once, in order."""
    names = (match[1] for match in _PART.finditer(template) if match[1] and match[1] not in TOKEN_NAMES)
    return tuple(dict.fromkeys(names))


def fill(template: str, row: Mapping[str, Any], found: Findings) -> Example | None:
    """The text of a row; None, with errors in `found`, when it lacks a column or has no text at all.

    A null counts as an empty string.
    """
    pieces = list(_joined(_pieces(template, row, found)))
    if not found.errors and not any(text.strip() for text, is_literal in pieces if not is_literal):
        names = ", ".join(columns_in(template))
        found.error("text.blank", "", f"every column of the template ({names}) is blank; remove the row")
    return None if found.errors else Example(Format.TEXT, (), text=tuple(pieces))


def _pieces(template: str, row: Mapping[str, Any], found: Findings) -> Iterator[TextPiece]:
    end = 0
    for match in _PART.finditer(template):
        yield template[end : match.start()], True
        end = match.end()
        if match[1] and match[1] not in TOKEN_NAMES:
            yield _cell(row, match[1], found), False
        else:
            yield {"{{": "{", "}}": "}"}.get(match[0], match[0]), True
    yield template[end:], True


def _cell(row: Mapping[str, Any], name: str, found: Findings) -> str:
    value = row.get(name)
    if name not in row:
        found.error("template.column_missing", name, f"is missing; the row has {key_list(row)}")
    elif value is not None and not isinstance(value, str):
        found.error("template.column_type", name, f"is {type_name(value)}; write a string")
    return value if isinstance(value, str) else ""


def _joined(pieces: Iterator[TextPiece]) -> Iterator[TextPiece]:
    """Neighbours of one kind as one piece, empty ones left out."""
    text, kind = "", True
    for piece, is_literal in pieces:
        if is_literal is not kind and piece:
            if text:
                yield text, kind
            text, kind = piece, is_literal
        else:
            text += piece
    if text:
        yield text, kind
