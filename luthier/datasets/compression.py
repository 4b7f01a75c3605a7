"""Files that were packed by gzip or Zstandard, decoded as they are read.

`open_decoded` gives a readable binary file of the decoded bytes. One stream a file: what is cut off, damaged,
followed by more, or decodes to more than was allowed is refused with its own code. Memory stays bounded
whatever a small file claims to hold.
"""

import io
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Literal

import zstandard

from luthier.datasets.examples import DatasetError, Issue

Compression = Literal["gzip", "zstd"]

MAX_DECODED_BYTES = 20 * 1024**3
# What `zstd --long` without a number asks for; beyond it zstd itself wants to be told.
MAX_WINDOW_BYTES = 128 * 1024**2

_MAGIC: dict[bytes, Compression] = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
_INPUT_BYTES = 64 * 1024
_OUTPUT_BYTES = 1024 * 1024
# A block of 4 bytes can stand for 128 KiB, and the decoder gives out all that its input holds.
_ZSTD_INPUT_BYTES = 512
_BUFFER_BYTES = 256 * 1024


def compression_of(head: bytes) -> Compression | None:
    """How a file that begins like this is packed; None when it is not."""
    return next((name for magic, name in _MAGIC.items() if head.startswith(magic)), None)


def open_decoded(
    path: Path, compression: Compression | None, max_decoded_bytes: int = MAX_DECODED_BYTES
) -> "DecodedFile":
    """The file's bytes, decoded; the caller closes it. Reading may raise `DatasetError`.

    Args:
        max_decoded_bytes: reading further than this raises `dataset.decoded_too_large`, or for a file that is
            not packed `dataset.too_large`.
    """
    return DecodedFile(path.open("rb", buffering=0), compression, max_decoded_bytes)


class DecodedFile(io.BufferedReader):
    """A stored file as the bytes that it decodes to.

    Attributes:
        stored: the file as it is.
        limit: bytes that it may decode to.
    """

    def __init__(self, file: io.FileIO, compression: Compression | None, limit: int) -> None:
        pieces = _gzip_pieces(file) if compression == "gzip" else _zstd_pieces(file)
        super().__init__(_Limited(file, pieces, limit) if compression else file, _BUFFER_BYTES)
        self.stored, self.limit = file, limit
        if compression is None and os.fstat(file.fileno()).st_size > limit:
            self.close()
            raise DatasetError(Issue("dataset.too_large", f"the file is over {limit} bytes; split it"))

    @property
    def stored_offset(self) -> int:
        """Bytes of the stored file that were used up."""
        return self.stored.tell()


class _Limited(io.RawIOBase):
    """Pieces of bytes as a file that ends with an error when there are too many."""

    def __init__(self, file: IO[bytes], pieces: Iterator[bytes], limit: int) -> None:
        super().__init__()
        self._file, self._pieces, self._limit = file, pieces, limit
        self._pending, self._size = memoryview(b""), 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._pending:
            self._pending = memoryview(next(self._pieces, b""))
            self._size += len(self._pending)
            if self._size > self._limit:
                text = f"the file decodes to more than {self._limit} bytes; split it"
                raise DatasetError(Issue("dataset.decoded_too_large", text))
        size = min(len(buffer), len(self._pending))
        buffer[:size] = self._pending[:size]
        self._pending = self._pending[size:]
        return size

    def close(self) -> None:
        self._file.close()
        super().close()


def _gzip_pieces(file: IO[bytes]) -> Iterator[bytes]:
    decoder = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
    while not decoder.eof and (data := decoder.unconsumed_tail or file.read(_INPUT_BYTES)):
        try:
            piece = decoder.decompress(data, _OUTPUT_BYTES)
        except zlib.error as error:
            raise DatasetError(_corrupt("gzip", error)) from error
        if piece:
            yield piece
    _check_end("gzip", decoder.unused_data, file, is_ended=decoder.eof)


def _zstd_pieces(file: IO[bytes]) -> Iterator[bytes]:
    start = file.read(_INPUT_BYTES)
    try:
        window = zstandard.get_frame_parameters(start).window_size
    except zstandard.ZstdError as error:
        raise DatasetError(_corrupt("zstd", error)) from error
    if window > MAX_WINDOW_BYTES:
        text = (
            f"the file asks for a window of {window} bytes, over {MAX_WINDOW_BYTES}; pack it without --ultra "
            "and --long"
        )
        raise DatasetError(Issue("zstd.window_too_large", text))
    decoder = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW_BYTES).decompressobj()
    while data := start or file.read(_INPUT_BYTES):
        start = b""
        for at in range(0, len(data), _ZSTD_INPUT_BYTES):
            try:
                piece = decoder.decompress(data[at : at + _ZSTD_INPUT_BYTES])
            except zstandard.ZstdError as error:
                raise DatasetError(_corrupt("zstd", error)) from error
            if piece:
                yield piece
            if decoder.eof:
                rest = decoder.unused_data or data[at + _ZSTD_INPUT_BYTES :]
                _check_end("zstd", rest, file, is_ended=True)
                return
    _check_end("zstd", b"", file, is_ended=False)


def _check_end(name: Compression, rest: bytes, file: IO[bytes], *, is_ended: bool) -> None:
    if not is_ended:
        text = f"the {name} data breaks off; was the upload or the export cut off?"
        raise DatasetError(Issue(f"{name}.truncated", text))
    if rest or (rest := file.read(4)):
        what = f"a second {name} stream" if compression_of(rest) == name else "other data"
        text = f"{what} follows the end of the {name} data; pack the file as one stream"
        raise DatasetError(Issue(f"{name}.trailing_data", text))


def _corrupt(name: Compression, error: Exception) -> Issue:
    return Issue(f"{name}.corrupt", f"the {name} data is damaged ({error}); pack and upload the file again")
