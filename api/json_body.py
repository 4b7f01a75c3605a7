"""A body of JSON as this service reads it: one object in UTF-8, read no further than the limit.

Where a path takes YAML too, that is held to the same: what JSON could not say is refused.

Python's parser takes more than JSON is (NaN, 1e999, a name twice) and its callbacks do not know where they
are; so they leave a mark in the tree, and one walk over it finds the marks with their places, and also half
surrogates, NUL characters (which Postgres refuses) and nesting that is too deep.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import Request
from starlette.concurrency import run_in_threadpool

from api.pace import paced
from luthier.errors import LuthierError, printable
from luthier.settings import Settings
from luthier.yaml_body import MAX_DEPTH, YamlError, parse

YAML_TYPES = ("application/yaml", "application/x-yaml", "text/yaml", "text/x-yaml")
_JSON_TYPE = "application/json"
_MAX_DIGITS = 19
_SMALL_BYTES = 4096
_INFINITY = float("inf")
_MARKS = (b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff", b"\0")


@dataclass(frozen=True)
class _Refused:
    """Stands in the tree for what is not taken."""

    text: str


async def read_object(request: Request, settings: Settings) -> dict[str, Any]:
    """The JSON object that a request carries.

    Raises:
        LuthierError: another content type (415), more than `max_body_bytes` (413), not such JSON (400), too
            slow (408).
    """
    _check_content_type(request, (_JSON_TYPE,))
    return await _parsed_object(await _read(request, settings))


async def read_json_or_yaml(request: Request, settings: Settings) -> dict[str, Any]:
    """The object that a request carries, in JSON or in YAML, as its content type says.

    Raises:
        LuthierError: as `read_object`.
    """
    kind = _check_content_type(request, (_JSON_TYPE, *YAML_TYPES))
    data = await _read(request, settings)
    return await (_parsed_object(data) if kind == _JSON_TYPE else run_in_threadpool(parse_yaml, data))


async def _parsed_object(data: bytes) -> dict[str, Any]:
    """The object in `data`; what is small takes less time than the way to a thread and back."""
    return parse_object(data) if len(data) <= _SMALL_BYTES else await run_in_threadpool(parse_object, data)


def parse_object(data: bytes) -> dict[str, Any]:
    """The object in `data`.

    Raises:
        LuthierError: `invalid_json`, or `invalid_value` for a value that is named.
    """
    try:
        value = json.loads(
            _text(data),
            object_pairs_hook=_object,
            parse_constant=_constant,
            parse_float=_float,
            parse_int=_integer,
        )
    except json.JSONDecodeError as error:
        text = f"The body is not valid JSON at line {error.lineno}, column {error.colno}: {error.msg.lower()}"
        raise _invalid(text) from error
    except RecursionError as error:
        raise _too_deep() from error
    return _checked(value)


def parse_yaml(data: bytes) -> dict[str, Any]:
    """The mapping in `data`.

    Raises:
        LuthierError: as `parse_object`; the place is a line and a column.
    """
    try:
        return _checked(parse(_text(data)))
    except YamlError as error:
        raise _invalid(f"The body is not valid YAML: {error}") from error


def _checked(value: object) -> dict[str, Any]:
    _check(value, "", 1)
    if not isinstance(value, dict):
        raise _invalid('The body must be a JSON object, such as {"model": "..."}')
    return value


def _text(data: bytes) -> str:
    if not data.strip():
        raise _invalid("The body is empty: send a JSON object")
    if data.startswith(_MARKS) or data[1:2] == b"\0":
        raise _invalid("The body is UTF-16 or begins with a byte order mark: send plain UTF-8")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _invalid(
            f"The body is not UTF-8: byte {error.start + 1} is 0x{data[error.start]:02X}"
        ) from error


def _check_content_type(request: Request, allowed: Sequence[str]) -> str:
    """The content type, without its options."""
    main, _, options = request.headers.get("content-type", "").lower().partition(";")
    charset = options.partition("charset=")[2].partition(";")[0].strip(' "')
    encoding = request.headers.get("content-encoding", "identity").lower()
    if main.strip() not in allowed or charset not in ("", "utf-8") or encoding != "identity":
        taken = " or ".join(repr(f"Content-Type: {kind}") for kind in allowed[:2])
        raise LuthierError(
            f"Send the body as {taken}, in UTF-8 and without a Content-Encoding",
            "unsupported_media_type",
        )
    return main.strip()


async def _read(request: Request, settings: Settings) -> bytes:
    """The body, counted as it arrives; a length that is announced may be a lie, but a large one suffices.

    Its hash goes into the request's state.
    """
    max_bytes, announced = settings.max_body_bytes, request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > max_bytes:
        raise _too_large(max_bytes)
    body = bytearray()
    async for chunk in paced(request.stream(), settings.upload_idle_seconds):
        body += chunk
        if len(body) > max_bytes:
            raise _too_large(max_bytes)
    request.state.body_sha256 = hashlib.sha256(body).hexdigest()
    return bytes(body)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        found[name] = _Refused("the name stands there twice: send it once") if name in found else value
    return found


def _constant(name: str) -> _Refused:
    return _Refused(f"{name} is not a number in JSON: send a finite number")


def _float(digits: str) -> float | _Refused:
    value = float(digits)
    return _Refused("the number is too large: send a finite number") if abs(value) == _INFINITY else value


def _integer(digits: str) -> int | _Refused:
    if len(digits.removeprefix("-")) > _MAX_DIGITS:
        return _Refused(f"the integer has more than {_MAX_DIGITS} digits")
    return int(digits)


def _check(value: object, path: str, depth: int) -> None:
    """Raise for the first thing in the tree that is not taken."""
    match value:
        case _Refused():
            raise _invalid_at(path, value.text)
        case str():
            _check_text(value, path)
        case dict() | list() if depth > MAX_DEPTH:
            raise _too_deep()
        case dict():
            for name, item in value.items():
                _check_text(name, path)
                _check(item, _below(path, printable(name, 64)), depth + 1)
        case list():
            for index, item in enumerate(value):
                _check(item, _below(path, str(index)), depth + 1)


def _check_text(text: str, path: str) -> None:
    if "\0" in text:
        raise _invalid_at(path, "it holds a NUL character: remove it")
    # Only half a surrogate pair cannot be encoded.
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise _invalid_at(path, "it holds half of a surrogate pair: send the whole character") from error


def _below(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _invalid(message: str) -> LuthierError:
    return LuthierError(message, "invalid_json")


def _invalid_at(path: str, reason: str) -> LuthierError:
    return LuthierError(
        f"Invalid value for '{path}': {reason}." if path else f"Invalid body: {reason}.",
        "invalid_value",
        path or None,
    )


def _too_deep() -> LuthierError:
    return _invalid(f"The body is nested deeper than {MAX_DEPTH} levels")


def _too_large(max_bytes: int) -> LuthierError:
    return LuthierError(
        f"The body is larger than {max_bytes} bytes; upload data with /v1/files", "body_too_large"
    )
