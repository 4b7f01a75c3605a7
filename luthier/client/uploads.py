"""Files on their way to the server: a small one in one request, a large one in parts.

What has arrived of a large one is not sent again, even after a crash: the id of an upload that is under way
is kept in the data folder until the file is there, and a part is known by its hash. So a file that has
changed meanwhile sends what is new of it.
"""

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from luthier.client.downloads import OnBytes
from luthier.client.errors import ApiError
from luthier.client.objects import Answer, File, Upload, UploadPart
from luthier.client.retries import Policy
from luthier.client.steps import Request, Steps, segment, sent, worked
from luthier.settings import Settings

PART_BYTES = 32 << 20
_PATH = "/uploads"
_NOT_FOUND = 404
_WRONG_FILE = frozenset({400, _NOT_FOUND, 413, 415})
_PENDING = "pending"
_BYTES = "application/octet-stream"

Result = TypeVar("Result", bound=Answer)


@dataclass(frozen=True)
class Source:
    """A file of this machine, and what the server is to know of it.

    Attributes:
        fields: of the body that announces it, beside its size and its name.
        server: the address: the same file may be on its way to two.
    """

    path: Path
    fields: Mapping[str, Any]
    server: str
    on_bytes: OnBytes

    def note(self) -> Path:
        """Where the id of its upload is kept."""
        told = self.path.stat()
        what = [self.server, str(self.path.absolute()), told.st_size, dict(self.fields)]
        name = hashlib.sha256(json.dumps(what).encode()).hexdigest()[:32]
        return Settings().data / "client" / "uploads" / name

    def hashed_chunk(self, number: int) -> tuple[bytes, str]:
        """A piece of the file, and its SHA-256 in hex."""
        with self.path.open("rb") as file:
            file.seek(number * PART_BYTES)
            chunk = file.read(PART_BYTES)
        return chunk, hashlib.sha256(chunk).hexdigest()


def upload_whole(policy: Policy, source: Source) -> Steps[File]:
    """The file on the server, sent in one request; memory does not grow with it.

    Raises:
        ApiError: the server refuses the file.
        OSError: it cannot be read.
    """
    with source.path.open("rb") as file:
        form = {"file": (source.path.name, _Watched(file, 0, source.on_bytes), _BYTES)}
        request = Request("POST", "/files", {"data": dict(source.fields), "files": form})
        reply = yield from policy.repeated(lambda: sent(request), is_repeatable=False)
    return File.read(reply.content)


def upload_in_parts(policy: Policy, source: Source) -> Steps[File | None]:
    """The file on the server; None where the server takes no parts.

    Raises: as `upload_whole`.
    """
    note = source.note()
    upload = yield from _find_upload(policy, note)
    if upload is None:
        try:
            upload = yield from _begin(policy, source)
        except ApiError as error:
            if error.status == _NOT_FOUND:
                return None
            raise
        # A server may live in this folder later, and nobody else is to look into it.
        Settings().data.mkdir(parents=True, exist_ok=True, mode=0o700)
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text(upload.id, encoding="utf-8")
    if upload.file is None:
        part_ids = yield from _send_parts(policy, source, upload)
        request = Request("POST", f"{_upload_path(upload)}/complete", {"json": {"part_ids": part_ids}})
        try:
            upload = yield from _answered(policy, request, Upload)
        except ApiError as error:
            # What the server finds wrong with the file stays wrong; the next try starts anew. For all else,
            # such as a key that has expired, what has arrived is still good.
            if error.status in _WRONG_FILE:
                note.unlink(missing_ok=True)
            raise
    note.unlink(missing_ok=True)
    return upload.file


def _find_upload(policy: Policy, note: Path) -> Steps[Upload | None]:
    """The upload of the file that is under way, or that was completed when nobody listened."""
    if not note.is_file():
        return None
    request = Request("GET", f"{_PATH}/{segment(note.read_text(encoding='utf-8'))}")
    try:
        upload = yield from _answered(policy, request, Upload)
    except ApiError as error:
        if error.status == _NOT_FOUND:
            return None
        raise
    return upload if upload.status == _PENDING or upload.file is not None else None


def _begin(policy: Policy, source: Source) -> Steps[Upload]:
    size = source.path.stat().st_size
    body = {"bytes": size, "filename": source.path.name, "mime_type": _BYTES, **source.fields}
    return _answered(policy, Request("POST", _PATH, {"json": body}), Upload)


def _send_parts(policy: Policy, source: Source, upload: Upload) -> Steps[Sequence[str]]:
    """The ids of all parts in the order of the file; those that are there are not sent."""
    there = [(part.sha256, part.id) for part in upload.parts]
    ids = []
    for number in range(-(-upload.bytes // PART_BYTES)):
        chunk, sha256 = yield from worked(partial(source.hashed_chunk, number))
        known = next((each for each in there if each[0] == sha256), None)
        if known is None:
            ids.append((yield from _send_part(policy, source, upload, number, chunk)).id)
        else:
            # A piece that comes twice in the file is two parts.
            there.remove(known)
            ids.append(known[1])
            source.on_bytes(number * PART_BYTES + len(chunk))
    return ids


def _send_part(
    policy: Policy, source: Source, upload: Upload, number: int, chunk: bytes
) -> Steps[UploadPart]:
    def attempt() -> Steps[UploadPart]:
        data = _Watched(io.BytesIO(chunk), number * PART_BYTES, source.on_bytes)
        request = Request(
            "POST", f"{_upload_path(upload)}/parts", {"files": {"data": ("upload", data, _BYTES)}}
        )
        reply = yield from sent(request)
        return UploadPart.read(reply.content)

    return policy.repeated(attempt, is_repeatable=True)


def _upload_path(upload: Upload) -> str:
    return f"{_PATH}/{segment(upload.id)}"


def _answered(policy: Policy, request: Request, answer: type[Result]) -> Steps[Result]:
    is_repeatable = request.method == "GET" or request.path.endswith("/complete")
    reply = yield from policy.repeated(lambda: sent(request), is_repeatable=is_repeatable)
    return answer.read(reply.content)


class _Watched:
    """A file that tells how far it has been read; `before` is where it begins in the whole."""

    def __init__(self, file: BinaryIO, before: int, on_bytes: OnBytes) -> None:
        self._file, self._before, self._on_bytes = file, before, on_bytes

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self._on_bytes(self._before + self._file.tell())
        return data

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def fileno(self) -> int:
        return self._file.fileno()
