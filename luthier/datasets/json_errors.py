"""Why a row is not JSON: the slow, exact second look at bytes that orjson refused.

`explain` says what a person would have to change: the place, and the usual mistakes by name (a trailing
comma, single quotes, NaN, half a surrogate pair, a row spread over lines). `depth_of` measures nesting
without parsing.
"""

import json
import re
from collections import Counter
from typing import Any, NoReturn

from luthier.datasets.examples import Issue
from luthier.errors import printable

MAX_DEPTH = 64

_BOM = b"\xef\xbb\xbf"
# A string that is never closed runs to the end: a pattern that failed there would look again at every quote.
_STRUCTURE = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+\\?(?:"|\Z)|[\[{]|[\]}]', re.DOTALL)
_SURROGATE = re.compile("[\ud800-\udfff]")
_LITERALS = {"T": "true", "F": "false", "N": "null", "u": "null"}


class _NonFiniteError(ValueError):
    """NaN or Infinity, which Python's parser knows and JSON does not."""


def depth_of(data: bytes) -> int:
    """How deep objects and lists are nested, counted from brackets outside strings; broken JSON is fine."""
    depth = deepest = 0
    for match in _STRUCTURE.finditer(data):
        first = data[match.start()]
        if first in b"[{":
            depth += 1
            deepest = max(deepest, depth)
        elif first in b"]}":
            depth -= 1
    return deepest


def too_deep(depth: int) -> Issue:
    return Issue(
        "json.too_deep", f"values are nested {depth} deep, over the limit of {MAX_DEPTH}; flatten the row"
    )


def duplicate_key(data: bytes) -> str | None:
    """The first key that stands twice in an object of a row that is JSON, or None."""
    found: list[str] = []

    def note(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        seen = dict(pairs)
        if len(seen) < len(pairs):
            counts = Counter(key for key, _ in pairs)
            found.append(next(key for key, count in counts.items() if count > 1))
        return seen

    try:
        json.loads(data, object_pairs_hook=note)
    except (ValueError, RecursionError):
        return None
    return found[0] if found else None


def explain(data: bytes, *, line: int, is_last: bool) -> Issue:
    """What is wrong with a row that is not JSON.

    Args:
        data: the row's bytes.
        line: on which the row begins; the issue names the line of the mistake.
        is_last: whether the file ends with it; a last row that breaks off was probably cut in transit.
    """
    issue = _explain(data.rstrip(b"\r\n"), is_last=is_last)
    return issue.at(line + (issue.line or 1) - 1)


def _explain(data: bytes, *, is_last: bool) -> Issue:
    """As `explain`, with a line that is counted within the row."""
    if b"\0" in data:
        column = data.index(b"\0") + 1
        return Issue("content.nul", f"NUL byte at byte {column}; is this a binary or a UTF-16 file?")
    if data.startswith(_BOM):
        return Issue("encoding.bom", "a byte order mark stands inside the file; were files joined? Remove it")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        return not_utf8(data, error)
    if (depth := depth_of(data)) > MAX_DEPTH:
        return too_deep(depth)
    try:
        value = json.loads(text, parse_constant=_refuse_constant, parse_float=_finite_float)
    except json.JSONDecodeError as error:
        return _syntax(text, error, is_last=is_last)
    except _NonFiniteError as error:
        return Issue("json.non_finite", f"{error} is not a JSON number; remove it or write null")
    except ValueError:
        return Issue("json.int_too_long", "a number has thousands of digits; write it as a string")
    if (loc := _surrogate_loc(value)) is not None:
        half = "half of a surrogate pair (\\ud800 to \\udfff)"
        return Issue(
            "json.lone_surrogate", f"{loc or 'a value'} holds {half}; write the whole character", loc
        )
    return Issue("json.syntax", "this is not valid JSON")


def not_utf8(data: bytes, error: UnicodeDecodeError) -> Issue:
    try:
        data.decode("cp1252")
        guess = " (it looks like Windows-1252)"
    except UnicodeDecodeError:
        guess = ""
    text = f"byte {error.start + 1}: 0x{data[error.start]:02X} is not UTF-8{guess}; save the file as UTF-8"
    return Issue("encoding.invalid_utf8", text)


def _syntax(text: str, error: json.JSONDecodeError, *, is_last: bool) -> Issue:
    line, column, rest = error.lineno, error.colno, text[error.pos :].lstrip()
    if error.msg == "Extra data":
        if "\r" in text:
            return Issue("format.cr_newlines", "lines end with CR alone; save the file with LF line ends")
        text = f"more follows after the end of the row, at column {column}; write one object a line"
        return Issue("json.extra_data", text, line=line)
    if error.msg.startswith("Invalid control character"):
        text = f"raw control character at column {column}; write it as \\n, \\t or \\u00XX"
        return Issue("json.control_char", text, line=line)
    if not rest or error.msg.startswith("Unterminated string"):
        return _breaks_off(text, error, is_last=is_last)
    return Issue("json.syntax", f"not valid JSON at column {column}: {_hint(text, error, rest)}", line=line)


def _breaks_off(text: str, error: json.JSONDecodeError, *, is_last: bool) -> Issue:
    inside = (
        "inside a string" if error.msg.startswith("Unterminated string") else "before the object is closed"
    )
    if is_last:
        return Issue("json.truncated", f"the file ends {inside}; was the upload or the export cut off?")
    if text.rstrip()[-1:] in ("{", "[", ","):
        return Issue(
            "format.multiline_json", "the object goes on in the next line; write each row on one line"
        )
    return Issue("json.truncated", f"the line ends {inside}; write \\n for a line break in a string")


def _hint(text: str, error: json.JSONDecodeError, rest: str) -> str:
    before = text[: error.pos].rstrip()
    if (before.endswith(",") and rest[0] in "}]") or (rest[0] == "," and rest[1:].lstrip()[:1] in ("}", "]")):
        return "remove the comma before the closing bracket"
    if rest[0] == "'":
        return "strings take double quotes"
    if rest.startswith(("//", "/*", "#")):
        return "comments are not allowed"
    if rest.startswith(("True", "False", "None", "undefined")):
        return f"write {_LITERALS[rest[0]]}"
    return f"{error.msg[0].lower()}{error.msg[1:]}, found {printable(rest, 12)!r}"


def _refuse_constant(name: str) -> NoReturn:
    raise _NonFiniteError(name)


def _finite_float(digits: str) -> float:
    value = float(digits)
    if value in (float("inf"), float("-inf")):
        raise _NonFiniteError(printable(digits, 20))
    return value


def _surrogate_loc(value: Any, loc: str = "") -> str | None:
    """Where the first string with half a surrogate pair lies, or None."""
    if isinstance(value, str):
        return loc if _SURROGATE.search(value) else None
    if isinstance(value, dict):
        if any(_SURROGATE.search(key) for key in value):
            return loc
        parts = [
            (f"{loc}.{printable(key, 40)}" if loc else printable(key, 40), item)
            for key, item in value.items()
        ]
    elif isinstance(value, list):
        parts = [(f"{loc}[{index}]", item) for index, item in enumerate(value)]
    else:
        return None
    return next((found for name, item in parts if (found := _surrogate_loc(item, name)) is not None), None)
