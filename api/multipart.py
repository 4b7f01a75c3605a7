"""An upload as it arrives: multipart/form-data, pushed through a parser straight into a stored file.

Memory does not grow with the file; fields, their sizes and the file are counted as they come. The parser is
python-multipart's; clients send the fields and the file in any order, and do not always name the file.
"""

from collections.abc import Callable
from dataclasses import dataclass

from fastapi import Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.concurrency import run_in_threadpool

from api.pace import paced
from luthier.errors import LuthierError, invalid, printable
from luthier.settings import Settings
from luthier.storage import Incoming

PURPOSE = "fine-tune"
_DEFAULT_FILENAME = "upload"
_MAX_FILENAME_CHARACTERS = 255
_MAX_FIELD_BYTES = 1024
# A name of 5,000 characters of any script is taken, and cut where it is shown.
_MAX_HEADERS, _MAX_HEADER_BYTES = 8, 24 * 1024
# Boundaries, headers and fields around the file.
OVERHEAD_BYTES = 64 << 10
# Written at once: large enough that a hop to another thread costs nothing beside it.
_BATCH_BYTES = 1 << 20
_FILE, _PURPOSE = "file", "purpose"
_ANCHOR, _SECONDS = "expires_after[anchor]", "expires_after[seconds]"
_BAD_ROWS, _BAD_ROW_RULES = "on_bad_row", ("refuse", "drop", "keep")
_DATA = "data"
_SHA256 = "sha256"
MIN_SECONDS, MAX_SECONDS = 3600, 2_592_000


@dataclass(frozen=True)
class FormShape:
    """What a form may hold: one file, under this name, and fields.

    Attributes:
        words: the same, for who sends something else.
        check_field: told of each field as it ends, so that the file behind it is not sent in vain.
    """

    file: str
    fields: tuple[str, ...]
    words: str
    max_file_bytes: int
    check_field: Callable[[str, str], None] = lambda _name, _text: None


@dataclass(frozen=True)
class UploadForm:
    """What came beside the bytes; `filename` is fit to be shown.

    `on_bad_row` is `refuse`, `drop` to keep a file that has bad rows among good ones, or `keep` to keep any.
    """

    filename: str
    purpose: str
    expires_after_seconds: int | None
    on_bad_row: str


def announced_bytes(request: Request) -> int:
    """The length of the body as the client tells it; 0 where it does not."""
    text = request.headers.get("content-length", "")
    return int(text) if text.isdecimal() else 0


def file_bytes(request: Request) -> int:
    """The same without the form around the file, which is not its own."""
    return max(0, announced_bytes(request) - OVERHEAD_BYTES)


async def receive_form(request: Request, target: Incoming, settings: Settings) -> UploadForm:
    """Read the form of a whole file, whose bytes go to `target`.

    Raises:
        LuthierError: it is no form, too large, too slow, broken off, or a field is wrong.
    """
    shape = FormShape(
        _FILE,
        (_PURPOSE, _ANCHOR, _SECONDS, _BAD_ROWS, _SHA256),
        "'file', 'purpose', 'expires_after', 'on_bad_row' and 'sha256'",
        settings.max_upload_bytes,
        _check_purpose,
    )
    reader = await _receive(request, target, settings, shape)
    if _PURPOSE not in reader.fields:
        raise _missing(_PURPOSE)
    _check_sha256(reader.fields, target)
    return UploadForm(
        reader.filename, PURPOSE, _expires_after_seconds(reader.fields), _bad_row_rule(reader.fields)
    )


async def receive_part(request: Request, target: Incoming, settings: Settings, max_bytes: int) -> None:
    """Read the form of one part of a file, of at most `max_bytes`; raises as `receive_form`."""
    await _receive(request, target, settings, FormShape(_DATA, (), "'data'", max_bytes))


async def _receive(request: Request, target: Incoming, settings: Settings, shape: FormShape) -> "FormReader":
    _refuse_encoded(request.headers.get("content-encoding", "").encode())
    reader = FormReader(_boundary_of(request, shape), target, shape)
    if announced_bytes(request) > shape.max_file_bytes + OVERHEAD_BYTES:
        raise _too_large(shape)
    batch = bytearray()
    async for chunk in paced(request.stream(), settings.upload_idle_seconds):
        batch += chunk
        if len(batch) >= _BATCH_BYTES:
            await run_in_threadpool(reader.write, bytes(batch))
            batch.clear()
    await run_in_threadpool(reader.write, bytes(batch))
    reader.finish()
    return reader


class FormReader:
    """Takes the body in pieces of any size.

    Args:
        boundary: from the content type.
        target: where the bytes of the file go.
    """

    def __init__(self, boundary: bytes, target: Incoming, shape: FormShape) -> None:
        self._target, self._shape = target, shape
        self._fields: dict[str, bytes] = {}
        self._filename: str | None = None
        self._header_name = self._header_value = self._disposition = b""
        self._part = ""
        self._body_bytes = 0
        self._is_complete = False
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._on_part_begin,
                "on_header_field": self._on_header_field,
                "on_header_value": self._on_header_value,
                "on_header_end": self._on_header_end,
                "on_headers_finished": self._on_headers_finished,
                "on_part_data": self._on_part_data,
                "on_part_end": self._on_part_end,
                "on_end": self._on_end,
            },
            max_header_count=_MAX_HEADERS,
            max_header_size=_MAX_HEADER_BYTES,
        )

    @property
    def filename(self) -> str:
        """Fit to be shown."""
        return self._filename or ""

    @property
    def fields(self) -> dict[str, str]:
        """The fields that were sent, without blanks around them."""
        return {name: self._text(name) for name in self._fields}

    def write(self, data: bytes) -> None:
        self._body_bytes += len(data)
        if self._body_bytes > self._shape.max_file_bytes + OVERHEAD_BYTES:
            raise _too_large(self._shape)
        try:
            self._parser.write(data)
        except FormParserError as error:
            raise _malformed("it is not well-formed multipart/form-data") from error

    def finish(self) -> None:
        """Raises LuthierError where the form did not come whole, or without its file."""
        if not self._is_complete:
            raise _malformed("it breaks off before its last boundary")
        if self._filename is None:
            raise _missing(self._shape.file)

    def _on_part_begin(self) -> None:
        self._header_name = self._header_value = self._disposition = b""

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def _on_header_end(self) -> None:
        if self._header_name.lower() == b"content-disposition":
            self._disposition = self._header_value
        if self._header_name.lower() == b"content-encoding":
            _refuse_encoded(self._header_value)
        self._header_name = self._header_value = b""

    def _on_headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition)
        self._part = options.get(b"name", b"").decode("utf-8", "replace")
        if self._part in self._fields or (self._part == self._shape.file and self._filename is not None):
            raise invalid(f"'{self._part}' was sent twice: send it once", self._part)
        if self._part == self._shape.file:
            self._filename = shown_name(options.get(b"filename", b"").decode("utf-8", "replace"))
        elif self._part in self._shape.fields:
            self._fields[self._part] = b""
        else:
            name = printable(self._part)
            text = f"Unknown parameter: '{name}'. An upload has {self._shape.words}."
            raise LuthierError(text, "unknown_parameter", name)

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._part == self._shape.file:
            if self._target.size_bytes + end - start > self._shape.max_file_bytes:
                raise _too_large(self._shape)
            self._target.write(data[start:end])
        elif len(self._fields[self._part]) + end - start > _MAX_FIELD_BYTES:
            raise invalid(f"'{self._part}' is longer than {_MAX_FIELD_BYTES} bytes", self._part)
        else:
            self._fields[self._part] += data[start:end]

    def _on_part_end(self) -> None:
        if self._part in self._fields:
            self._shape.check_field(self._part, self._text(self._part))

    def _on_end(self) -> None:
        self._is_complete = True

    def _text(self, name: str) -> str:
        return self._fields[name].decode("utf-8", "replace").strip()


def shown_name(name: str) -> str:
    """The last part of the client's path, on one line; dots alone are no name."""
    text = name.replace("\\", "/").rpartition("/")[2]
    return printable(text, _MAX_FILENAME_CHARACTERS) if text.strip(".") else _DEFAULT_FILENAME


def require_sha256(announced: str, found: str) -> None:
    """Raises LuthierError `checksum_mismatch` where bytes came that have another SHA-256, in hexadecimal."""
    if announced.lower() != found:
        text = f"The bytes that came have the SHA-256 {found}, not the announced one: send them again"
        raise LuthierError(text, "checksum_mismatch", _SHA256)


def _check_purpose(name: str, text: str) -> None:
    if name == _PURPOSE and text != PURPOSE:
        raise invalid(f"Invalid value for 'purpose': this service takes files for '{PURPOSE}'.", _PURPOSE)


def _check_sha256(fields: dict[str, str], target: Incoming) -> None:
    if _SHA256 in fields:
        require_sha256(fields[_SHA256], target.sha256)


def _bad_row_rule(fields: dict[str, str]) -> str:
    asked = fields.get(_BAD_ROWS, "refuse")
    if asked not in _BAD_ROW_RULES:
        supported = ", ".join(map(repr, _BAD_ROW_RULES))
        raise invalid(f"Invalid value for '{_BAD_ROWS}'. Supported: {supported}.", _BAD_ROWS)
    return asked


def _expires_after_seconds(fields: dict[str, str]) -> int | None:
    if _ANCHOR not in fields and _SECONDS not in fields:
        return None
    if fields.get(_ANCHOR) != "created_at":
        raise invalid("Invalid value for 'expires_after[anchor]'. Supported: 'created_at'.", _ANCHOR)
    text = fields.get(_SECONDS, "")
    is_number = text.isdecimal() and text.isascii() and len(text) <= len(str(MAX_SECONDS))
    if not (is_number and MIN_SECONDS <= int(text) <= MAX_SECONDS):
        text = f"Expected an integer from {MIN_SECONDS} to {MAX_SECONDS}."
        raise invalid(f"Invalid value for 'expires_after[seconds]'. {text}", _SECONDS)
    return int(text)


def _boundary_of(request: Request, shape: FormShape) -> bytes:
    kind, options = parse_options_header(request.headers.get("content-type"))
    if kind != b"multipart/form-data":
        text = f"Send the file as 'multipart/form-data', with {shape.words}"
        raise LuthierError(text, "unsupported_media_type")
    boundary = options.get(b"boundary", b"")
    if not 0 < len(boundary) <= 200:
        raise _malformed("its Content-Type names no usable boundary")
    return boundary


def _refuse_encoded(encoding: bytes) -> None:
    if encoding.strip().lower() not in (b"", b"identity"):
        text = "Send the upload without Content-Encoding; a file that is gzip or zstd itself is read as it is"
        raise LuthierError(text, "unsupported_media_type")


def _missing(name: str) -> LuthierError:
    return LuthierError(f"Missing required parameter: '{name}'.", "missing_required_parameter", name)


def _malformed(reason: str) -> LuthierError:
    return LuthierError(f"The upload cannot be read: {reason}", "invalid_multipart")


def _too_large(shape: FormShape) -> LuthierError:
    text = f"'{shape.file}' is larger than {shape.max_file_bytes} bytes"
    return LuthierError(text, "file_too_large", shape.file)
