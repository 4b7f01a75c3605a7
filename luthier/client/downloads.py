"""Bodies that come home: written as they come, taken up where they broke, and checked."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from luthier.artifacts import sha256_of
from luthier.client.errors import ApiError
from luthier.client.retries import Policy
from luthier.client.steps import Flow, Item, Request, Steps, next_chunk, opened, worked

OnBytes = Callable[[int], None]
_PARTIAL_CONTENT = 206


def read(path: str) -> Flow[bytes]:
    """The chunks of a body."""
    yield from opened(Request("GET", path))
    while (chunk := (yield from next_chunk())) is not None:
        yield Item(chunk)


def download(
    policy: Policy, path: str, target: Path, *, sha256: str | None = None, on_bytes: OnBytes | None = None
) -> Steps[None]:
    """Write a body to `target`, which appears only when it is whole.

    A broken connection is taken up where it broke, if the server serves ranges of this path.

    Args:
        sha256: hex; what the body must hash to.
        on_bytes: called with the number of bytes that lie on the disk so far.
    Raises:
        ApiError: the server refused, or the hash is another.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    part = _Part(target.with_name(f"{target.name}.part"))
    part.path.unlink(missing_ok=True)
    try:
        yield from policy.repeated(
            lambda: _receive(path, part, on_bytes), is_repeatable=True, progress=part.size
        )
        if sha256 is not None and (yield from worked(lambda: sha256_of(part.path))) != sha256:
            raise ApiError(f"{target.name} arrived damaged: its SHA-256 is not the one of the server")
        part.path.replace(target)
    finally:
        part.path.unlink(missing_ok=True)


@dataclass
class _Part:
    """What has come so far, and the ETag of what it is a part of."""

    path: Path
    etag: str | None = None

    def size(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    def range_headers(self) -> Mapping[str, str]:
        """What asks for the rest; the whole comes where it has changed meanwhile."""
        if not self.size():
            return {}
        return {"Range": f"bytes={self.size()}-"} | ({"If-Range": self.etag} if self.etag else {})


def _receive(path: str, part: _Part, on_bytes: OnBytes | None) -> Steps[None]:
    reply = yield from opened(Request("GET", path, headers=part.range_headers()))
    etag = reply.headers.get("etag", "")
    # A weak one does not tell that the bytes are the same.
    part.etag = etag if etag.startswith('"') else None
    with part.path.open("ab" if reply.status == _PARTIAL_CONTENT else "wb") as file:
        # Written as it comes, so that a broken connection loses nothing that has arrived.
        while (chunk := (yield from next_chunk())) is not None:
            file.write(chunk)
            if on_bytes is not None:
                on_bytes(file.tell())
