"""Bytes of stored files as answers: whole or one range of them, with their SHA-256 as ETag.

Several ranges at once are answered with the whole file, as RFC 9110, 14.2 allows, so that a flood of ranges
gains nothing. Conditions on the ETag are RFC 9110, 13.1; `Repr-Digest` is RFC 9530.
"""

import base64
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote

from fastapi import Request
from fastapi.responses import RedirectResponse, Response, StreamingResponse

from api.conditional import holds
from api.errors import error_response
from luthier.errors import LuthierError, printable
from luthier.storage import Storage
from luthier.storage.files import read_range

_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})", re.ASCII | re.IGNORECASE)


def stored_response(
    request: Request,
    storage: Storage,
    key: str,
    *,
    filename: str,
    size_bytes: int,
    sha256: str | None = None,
    media_type: str = "application/octet-stream",
) -> Response:
    """A stored file, or the part of it that the request asks for; or the way to it, where it has an address.

    Only a GET that has to be answered with bytes is sent on: what has a condition on our ETag, which the
    other server does not know, and every HEAD is answered here.

    Args:
        size_bytes: of the file.
        sha256: hex; None for a file without a row, which then has no ETag.
    """
    if request.method == "GET" and not _has_condition(request):
        url = storage.find_url(key, disposition=_disposition(filename), media_type=media_type)
        if url is not None and _is_satisfiable(request, size_bytes):
            return RedirectResponse(url, 307, {"Cache-Control": "no-store"})
    return _response(
        request,
        lambda start, stop: storage.read_range(key, start, stop),
        filename=filename,
        size_bytes=size_bytes,
        sha256=sha256,
        media_type=media_type,
    )


def local_response(request: Request, path: Path, *, filename: str, media_type: str) -> Response:
    """A file of this machine that may still grow: what it holds now, without an ETag."""
    return _response(
        request,
        lambda start, stop: read_range(path, start, stop),
        filename=filename,
        size_bytes=path.stat().st_size,
        sha256=None,
        media_type=media_type,
    )


def _response(
    request: Request,
    read: Callable[[int, int], Iterator[bytes]],
    *,
    filename: str,
    size_bytes: int,
    sha256: str | None,
    media_type: str,
) -> Response:
    headers = {
        "Accept-Ranges": "bytes",
        "Content-Disposition": _disposition(filename),
        "X-Content-Type-Options": "nosniff",
        "Cache-Control": "private, no-cache",
    }
    if sha256 is not None:
        digest = base64.b64encode(bytes.fromhex(sha256)).decode("ascii")
        headers |= {"ETag": f'"{sha256}"', "Repr-Digest": f"sha-256=:{digest}:"}
        if holds(request.headers.get("if-none-match"), sha256):
            return Response(status_code=304, headers=headers)
    start, stop, status = 0, size_bytes, 200
    asked = _asked_range(request, sha256, size_bytes)
    if asked is not None:
        (start, stop), status = asked, 206
        if start >= stop:
            return _not_satisfiable(request, size_bytes)
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size_bytes}"
    headers["Content-Length"] = str(stop - start)
    if request.method == "HEAD":
        return Response(status_code=status, headers=headers, media_type=media_type)
    try:
        content = read(start, stop)
    except FileNotFoundError as error:
        # Deleted since its row was read.
        raise LuthierError(f"The file is gone: {printable(filename)}", "not_found", "id") from error
    return StreamingResponse(content, status, headers, media_type)


def _disposition(filename: str) -> str:
    return f"attachment; filename*=UTF-8''{quote(filename.rpartition('/')[2], safe='')}"


def _has_condition(request: Request) -> bool:
    return any(name in request.headers for name in ("if-none-match", "if-range", "if-match"))


def _is_satisfiable(request: Request, size_bytes: int) -> bool:
    asked = _asked_range(request, None, size_bytes)
    return asked is None or asked[0] < asked[1]


def _asked_range(request: Request, sha256: str | None, size_bytes: int) -> tuple[int, int] | None:
    """The first byte and the one behind the last of the range to send; None for the whole file.

    An empty range is one that the file does not have.
    """
    match = _RANGE.fullmatch(request.headers.get("range", "").replace(" ", ""))
    condition = request.headers.get("if-range")
    if match is None or match.groups() == ("", "") or (condition is not None and condition != f'"{sha256}"'):
        return None
    first, last = match.groups()
    if first == "":
        return max(0, size_bytes - int(last)), size_bytes
    stop = min(int(last) + 1, size_bytes) if last else size_bytes
    # The last byte before the first one is no range at all, and is passed over.
    return None if last and int(last) < int(first) else (int(first), stop)


def _not_satisfiable(request: Request, size_bytes: int) -> Response:
    error = LuthierError(
        f"The range lies outside the file, which has {size_bytes} bytes", "range_not_satisfiable"
    )
    return error_response(request, error, {"Content-Range": f"bytes */{size_bytes}"})
