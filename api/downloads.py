"""Bytes of stored files as answers: whole or one range of them, with their SHA-256 as ETag.

Several ranges at once are answered with the whole file, as RFC 9110, 14.2 allows, so that a flood of ranges
gains nothing. Conditions on the ETag are RFC 9110, 13.1; `Repr-Digest` is RFC 9530.
"""

import base64
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

from fastapi import Request
from fastapi.responses import Response, StreamingResponse

from api.errors import error_response
from luthier.errors import LuthierError

_CHUNK_BYTES = 256 * 1024
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})", re.ASCII | re.IGNORECASE)


def file_response(
    request: Request,
    path: Path,
    *,
    filename: str,
    size_bytes: int,
    sha256: str | None = None,
    media_type: str = "application/octet-stream",
) -> Response:
    """The file at `path`, or the part of it that the request asks for.

    Args:
        size_bytes: of the file; what lies behind is not sent.
        sha256: hex; None for a file that still grows, which then has no ETag.
    """
    headers = {
        "Accept-Ranges": "bytes",
        "Content-Disposition": f"attachment; filename*=UTF-8''{quote(filename.rpartition('/')[2], safe='')}",
        "X-Content-Type-Options": "nosniff",
        "Cache-Control": "private, no-cache",
    }
    if sha256 is not None:
        digest = base64.b64encode(bytes.fromhex(sha256)).decode("ascii")
        headers |= {"ETag": f'"{sha256}"', "Repr-Digest": f"sha-256=:{digest}:"}
        if _holds(request.headers.get("if-none-match"), sha256):
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
    return StreamingResponse(read_range(path, start, stop), status, headers, media_type)


def read_range(path: Path, start: int, stop: int) -> Iterator[bytes]:
    """The bytes of a file from `start` up to `stop`.

    Raises:
        OSError: the file ends before; the answer then breaks off, and the client sees that it is not whole.
    """
    with path.open("rb") as file:
        file.seek(start)
        while start < stop:
            chunk = file.read(min(_CHUNK_BYTES, stop - start))
            if not chunk:
                raise OSError(f"{path.name} is shorter than its row says")
            start += len(chunk)
            yield chunk


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


def _holds(header: str | None, sha256: str) -> bool:
    """Whether a list of ETags holds this one; the weak form counts, too."""
    tags = [tag.strip().removeprefix("W/") for tag in (header or "").split(",")]
    return "*" in tags or f'"{sha256}"' in tags
