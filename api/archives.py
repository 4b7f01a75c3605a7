"""A job's artifacts as one .tar, made while it is sent: always the same bytes, of a length known before.

The form is POSIX's (pax), which every tar reads; names are relative, as in the list of artifacts.
"""

import tarfile
from collections.abc import Iterator, Sequence

from luthier.storage import Storage
from luthier.tables import Artifact

_BLOCK_BYTES = tarfile.BLOCKSIZE
_END = b"\0" * (2 * _BLOCK_BYTES)
_MODE = 0o644


def archive_size(artifacts: Sequence[Artifact]) -> int:
    """Bytes of the whole archive."""
    return sum(len(_header(item)) + item.size_bytes + _padding(item) for item in artifacts) + len(_END)


def archive_bytes(artifacts: Sequence[Artifact], storage: Storage) -> Iterator[bytes]:
    """The archive in pieces, each file read from the storage as it is sent."""
    for artifact in artifacts:
        yield _header(artifact)
        yield from storage.read_range(artifact.storage_key, 0, artifact.size_bytes)
        yield b"\0" * _padding(artifact)
    yield _END


def _header(artifact: Artifact) -> bytes:
    info = tarfile.TarInfo(artifact.name)
    info.size, info.mtime, info.mode = artifact.size_bytes, int(artifact.created_at.timestamp()), _MODE
    return info.tobuf(tarfile.PAX_FORMAT)


def _padding(artifact: Artifact) -> int:
    """Zeros that fill the last block."""
    return -artifact.size_bytes % _BLOCK_BYTES
