"""An upload as it arrives: multipart/form-data, pushed through a parser straight into a stored file.

Memory does not grow with the file; fields, their sizes and the file are counted as they come. The parser is
python-multipart's; clients send the fields and the file in any order, and do not always name the file.
"""

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
_SHA256 = "sha256"
_FIELDS = (_PURPOSE, _ANCHOR, _SECONDS, _BAD_ROWS, _SHA256)
_MIN_SECONDS, _MAX_SECONDS = 3600, 2_592_000


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


async def receive_form(request: Request, target: Incoming, settings: Settings) -> UploadForm:
    """Read the whole form; its file goes to `target`.

    Raises:
        LuthierError: it is no form, too large, too slow, broken off, or a field is wrong.
    """
    max_file_bytes = settings.max_upload_bytes
    _refuse_encoded(request.headers.get("content-encoding", "").encode())
    reader = FormReader(_boundary_of(request), target, max_file_bytes)
    if announced_bytes(request) > max_file_bytes + OVERHEAD_BYTES:
        raise _too_large(max_file_bytes)
    batch = bytearray()
    async for chunk in paced(request.stream(), settings.upload_idle_seconds):
        batch += chunk
        if len(batch) >= _BATCH_BYTES:
            await run_in_threadpool(reader.write, bytes(batch))
            batch.clear()
    await run_in_threadpool(reader.write, bytes(batch))
    return reader.finish()


class FormReader:
    """Takes the body in pieces of any size.

    Args:
        boundary: from the content type.
        target: where the bytes of the part `file` go.
    """

    def __init__(self, boundary: bytes, target: Incoming, max_file_bytes: int) -> None:
        self._target, self._max_file_bytes = target, max_file_bytes
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

    def write(self, data: bytes) -> None:
        self._body_bytes += len(data)
        if self._body_bytes > self._max_file_bytes + OVERHEAD_BYTES:
            raise _too_large(self._max_file_bytes)
        try:
            self._parser.write(data)
        except FormParserError as error:
            raise _malformed("it is not well-formed multipart/form-data") from error

    def finish(self) -> UploadForm:
        """The form, when it came whole."""
        if not self._is_complete:
            raise _malformed("it breaks off before its last boundary")
        for name, is_there in ((_FILE, self._filename is not None), (_PURPOSE, _PURPOSE in self._fields)):
            if not is_there:
                text = f"Missing required parameter: '{name}'."
                raise LuthierError(text, "missing_required_parameter", name)
        self._check_sha256()
        expires = self._expires_after_seconds()
        return UploadForm(self._filename or "", PURPOSE, expires, self._bad_row_rule())

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
        if self._part in self._fields or (self._part == _FILE and self._filename is not None):
            raise invalid(f"'{self._part}' was sent twice: send it once", self._part)
        if self._part == _FILE:
            self._filename = _shown_name(options.get(b"filename", b""))
        elif self._part in _FIELDS:
            self._fields[self._part] = b""
        else:
            name = printable(self._part)
            known = "'file', 'purpose', 'expires_after', 'on_bad_row' and 'sha256'"
            text = f"Unknown parameter: '{name}'. An upload has {known}."
            raise LuthierError(text, "unknown_parameter", name)

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._part == _FILE:
            if self._target.size_bytes + end - start > self._max_file_bytes:
                raise _too_large(self._max_file_bytes)
            self._target.write(data[start:end])
        elif len(self._fields[self._part]) + end - start > _MAX_FIELD_BYTES:
            raise invalid(f"'{self._part}' is longer than {_MAX_FIELD_BYTES} bytes", self._part)
        else:
            self._fields[self._part] += data[start:end]

    def _on_part_end(self) -> None:
        # Told before the file has been sent, where the field comes first.
        if self._part == _PURPOSE and self._text(_PURPOSE) != PURPOSE:
            raise invalid(f"Invalid value for 'purpose': this service takes files for '{PURPOSE}'.", _PURPOSE)

    def _on_end(self) -> None:
        self._is_complete = True

    def _text(self, name: str) -> str:
        return self._fields[name].decode("utf-8", "replace").strip()

    def _check_sha256(self) -> None:
        announced = self._text(_SHA256).lower() if _SHA256 in self._fields else self._target.sha256
        if announced != self._target.sha256:
            came = f"The bytes that came have the SHA-256 {self._target.sha256}"
            raise LuthierError(
                f"{came}, not the announced one: send them again", "checksum_mismatch", _SHA256
            )

    def _bad_row_rule(self) -> str:
        asked = self._text(_BAD_ROWS) if _BAD_ROWS in self._fields else "refuse"
        if asked not in _BAD_ROW_RULES:
            supported = ", ".join(map(repr, _BAD_ROW_RULES))
            raise invalid(f"Invalid value for '{_BAD_ROWS}'. Supported: {supported}.", _BAD_ROWS)
        return asked

    def _expires_after_seconds(self) -> int | None:
        if _ANCHOR not in self._fields and _SECONDS not in self._fields:
            return None
        if _ANCHOR not in self._fields or self._text(_ANCHOR) != "created_at":
            raise invalid("Invalid value for 'expires_after[anchor]'. Supported: 'created_at'.", _ANCHOR)
        text = self._text(_SECONDS) if _SECONDS in self._fields else ""
        is_number = text.isdecimal() and text.isascii() and len(text) <= len(str(_MAX_SECONDS))
        if not (is_number and _MIN_SECONDS <= int(text) <= _MAX_SECONDS):
            text = f"Expected an integer from {_MIN_SECONDS} to {_MAX_SECONDS}."
            raise invalid(f"Invalid value for 'expires_after[seconds]'. {text}", _SECONDS)
        return int(text)


def _boundary_of(request: Request) -> bytes:
    kind, options = parse_options_header(request.headers.get("content-type"))
    if kind != b"multipart/form-data":
        text = "Send the file as 'multipart/form-data', with the fields 'purpose' and 'file'"
        raise LuthierError(text, "unsupported_media_type")
    boundary = options.get(b"boundary", b"")
    if not 0 < len(boundary) <= 200:
        raise _malformed("its Content-Type names no usable boundary")
    return boundary


def _refuse_encoded(encoding: bytes) -> None:
    if encoding.strip().lower() not in (b"", b"identity"):
        text = "Send the upload without Content-Encoding; a file that is gzip or zstd itself is read as it is"
        raise LuthierError(text, "unsupported_media_type")


def _shown_name(name: bytes) -> str:
    """The last part of the client's path, on one line; dots alone are no name."""
    text = name.decode("utf-8", "replace").replace("\\", "/").rpartition("/")[2]
    return printable(text, _MAX_FILENAME_CHARACTERS) if text.strip(".") else _DEFAULT_FILENAME


def _malformed(reason: str) -> LuthierError:
    return LuthierError(f"The upload cannot be read: {reason}", "invalid_multipart")


def _too_large(max_file_bytes: int) -> LuthierError:
    return LuthierError(f"The file is larger than {max_file_bytes} bytes", "file_too_large", _FILE)
