"""Bodies that come home: written as they come, taken up where they broke, and checked."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from luthier.artifacts import sha256_of
from luthier.client.errors import ApiError
from luthier.client.retries import Policy
from luthier.client.steps import Flow, Item, Reply, Request, Steps, given, next_chunk, opened, worked

OnBytes = Callable[[int], None]
_PARTIAL_CONTENT, _RANGE_NOT_SATISFIABLE = 206, 416


def read(policy: Policy, path: str) -> Flow[bytes]:
    """The chunks of a body; a broken connection is taken up where it broke.

    Raises:
        ApiError: the server refused, or what was half read is another by now.
    """
    body = _Read()
    yield from policy.repeated(
        lambda: _pass_on(path, body), is_repeatable=True, progress=lambda: body.size_bytes
    )


def download(
    policy: Policy, path: str, target: Path, *, sha256: str | None = None, on_bytes: OnBytes | None = None
) -> Steps[None]:
    """Write a body to `target`, which appears only when it is whole.

    A broken connection is taken up where it broke, if the server serves ranges of this path; with a hash to
    check the whole by, so is a call that failed.

    Args:
        sha256: hex; what the body must hash to, and its ETag.
        on_bytes: called with the number of bytes that lie on the disk so far.
    Raises:
        ApiError: the server refused, or the hash is another.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    part = _Part(target.with_name(f"{target.name}.part"), sha256 and f'"{sha256}"')
    is_kept = sha256 is not None
    if not is_kept:
        part.path.unlink(missing_ok=True)
    try:
        yield from policy.repeated(
            lambda: _receive(path, part, on_bytes), is_repeatable=True, progress=part.size
        )
        is_kept = False
        if sha256 is not None and (yield from worked(lambda: sha256_of(part.path))) != sha256:
            raise ApiError(f"{target.name} arrived damaged: its SHA-256 is not the one of the server")
        part.path.replace(target)
    finally:
        if not is_kept:
            part.path.unlink(missing_ok=True)


@dataclass
class _Read:
    """How much of a body has been given on, and the ETag of what it is a part of."""

    size_bytes: int = 0
    etag: str | None = None


def _pass_on(path: str, body: _Read) -> Flow[bytes]:
    reply = yield from _open_rest(path, body.size_bytes, body.etag)
    if reply is None:
        return
    etag, skipped = _strong_etag(reply), 0
    if reply.status != _PARTIAL_CONTENT:
        if body.size_bytes and etag != body.etag:
            raise ApiError("What was being read has changed meanwhile: read it again")
        body.etag, skipped = etag, body.size_bytes
    while (chunk := (yield from next_chunk())) is not None:
        fresh = chunk[skipped:]
        skipped -= len(chunk) - len(fresh)
        body.size_bytes += len(fresh)
        if fresh:
            yield Item(fresh)


@dataclass
class _Part:
    """What has come so far, and the ETag of what it is a part of."""

    path: Path
    etag: str | None = None

    def size(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0


def _open_rest(path: str, size_bytes: int, etag: str | None) -> Steps[Reply | None]:
    """Open a body behind what is there; the whole comes where it has changed, None where nothing is left."""
    wanted = {"Range": f"bytes={size_bytes}-"} | given({"If-Range": etag}) if size_bytes else {}
    try:
        return (yield from opened(Request("GET", path, headers=wanted)))
    except ApiError as error:
        if error.status == _RANGE_NOT_SATISFIABLE and size_bytes:
            return None
        raise


def _strong_etag(reply: Reply) -> str | None:
    """A weak one does not tell that the bytes are the same."""
    etag = reply.headers.get("etag", "")
    return etag if etag.startswith('"') else None


def _receive(path: str, part: _Part, on_bytes: OnBytes | None) -> Steps[None]:
    reply = yield from _open_rest(path, part.size(), part.etag)
    if reply is None:
        return
    part.etag = _strong_etag(reply)
    with part.path.open("ab" if reply.status == _PARTIAL_CONTENT else "wb") as file:
        # Written as it comes, so that a broken connection loses nothing that has arrived.
        while (chunk := (yield from next_chunk())) is not None:
            file.write(chunk)
            if on_bytes is not None:
                on_bytes(file.tell())
