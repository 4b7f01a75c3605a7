"""What kind of file this is, told by its first bytes and never by its name, and its rows.

`inspect` refuses what is empty, binary or UTF-16; `open_dataset` streams the rows of the containers that are
read: JSON Lines, one JSON array, CSV and Parquet, each as it is or packed by gzip or Zstandard.
"""

import re
import shutil
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

from luthier.datasets.compression import (
    MAX_DECODED_BYTES,
    Compression,
    DecodedFile,
    compression_of,
    open_decoded,
)
from luthier.datasets.csv_rows import csv_rows, looks_like_csv
from luthier.datasets.examples import DatasetError, Issue
from luthier.datasets.json_arrays import array_rows
from luthier.datasets.parquet_rows import parquet_rows
from luthier.datasets.rows import LineChunk, Row, line_chunks, rows_of

Container = Literal["jsonl", "json", "csv", "parquet"]

_BOM = b"\xef\xbb\xbf"
_HEAD_BYTES = 4096
_ARCHIVES = {
    b"PK\x03\x04": "a ZIP archive",
    b"PK\x05\x06": "an empty ZIP archive",
    b"BZh": "bzip2 data",
    b"\xfd7zXZ": "xz data",
    b"7z\xbc\xaf": "a 7z archive",
    b"Rar!": "a RAR archive",
}
_MAGIC = {
    b"ARROW1": "an Arrow file",
    b"FEA1": "a Feather file",
    b"%PDF": "a PDF document",
    b"\xd0\xcf\x11\xe0": "an old Office document",
    b"\x89PNG": "a PNG picture",
    b"\xff\xd8\xff": "a JPEG picture",
    b"GIF8": "a GIF picture",
    b"SQLite format 3": "an SQLite database",
    b"\x93NUMPY": "a NumPy array",
    b"\x89HDF": "an HDF5 file",
    b"\x7fELF": "a program",
    b"GGUF": "a GGUF model",
    **{bytes([0x80, protocol]): "a Python pickle" for protocol in range(2, 6)},
}
_OFFICE = re.compile(rb"PK\x03\x04.{26}(\[Content_Types\]\.xml|_rels/|mimetype|word/|xl/)", re.DOTALL)
_UTF32_16 = {
    b"\xff\xfe\0\0": "UTF-32 LE",
    b"\0\0\xfe\xff": "UTF-32 BE",
    b"\xff\xfe": "UTF-16 LE",
    b"\xfe\xff": "UTF-16 BE",
}
_ACCEPTED = "JSON Lines, a JSON array, CSV or Parquet, as it is or packed by gzip or zstd"


@dataclass(frozen=True)
class FileHead:
    """What the first bytes of a file tell.

    Attributes:
        size_bytes: as it is stored.
    """

    size_bytes: int
    container: Container
    compression: Compression | None
    has_bom: bool


class OpenDataset:
    """A file whose rows are being read."""

    def __init__(self, head: FileHead, file: DecodedFile, columns: Collection[str]) -> None:
        self.head = head
        self._file, self._columns = file, columns
        self._stored_offset: int | None = None

    @property
    def stored_offset(self) -> int:
        """How far the stored file was used up, in bytes."""
        return self._file.stored_offset if self._stored_offset is None else self._stored_offset

    def chunks(self) -> Iterator[LineChunk]:
        """The whole lines of JSON Lines, many at a time.

        Raises:
            DatasetError: a line is over 16 MiB, or the packed data are damaged or too large.
        """
        return line_chunks(self._file, self._start())

    def rows(self) -> Iterator[Row]:
        """The rows one by one, blank lines left out.

        Raises:
            DatasetError: the file cannot be read on.
        """
        match self.head.container:
            case "jsonl":
                return (row for chunk in self.chunks() for row in rows_of(chunk))
            case "json":
                return array_rows(self._file, self._start())
            case "csv":
                self._start()
                return csv_rows(self._file)
        return self._parquet_rows()

    def _start(self) -> int:
        return len(self._file.read(len(_BOM))) if self.head.has_bom else 0

    def _parquet_rows(self) -> Iterator[Row]:
        with _seekable(self._file, self.head.compression) as file:
            for row, share in parquet_rows(file, self._columns, self._file.limit):
                self._stored_offset = int(share * self.head.size_bytes)
                yield row


def is_plain_text(container: str | None, compression: str | None) -> bool:
    """Whether a file is a text as it is stored, whose rows take little more memory than they are long."""
    return container in {"jsonl", "json", "csv"} and compression is None


@contextmanager
def open_dataset(
    path: Path, columns: Collection[str], max_decoded_bytes: int = MAX_DECODED_BYTES
) -> Iterator[OpenDataset]:
    """Open a file for its rows.

    Args:
        columns: that matter; of Parquet no others are read, and a header with one of them is CSV's.
    Raises:
        DatasetError: as `inspect`.
    """
    head = inspect(path, columns)
    with open_decoded(path, head.compression, max_decoded_bytes) as file:
        yield OpenDataset(head, file, columns)


def inspect(path: Path, columns: Collection[str]) -> FileHead:
    """Look at the first bytes of a file.

    Raises:
        DatasetError: the file is empty, packed twice, binary, or in UTF-16 or UTF-32.
    """
    size = path.stat().st_size
    if size == 0:
        raise DatasetError(Issue("dataset.empty", "the file has 0 bytes"))
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    if (compression := compression_of(head)) is not None:
        head = _decoded_head(path, compression)
    if head.startswith(b"PAR1"):
        return FileHead(size, "parquet", compression, has_bom=False)
    _refuse_binary(head)
    has_bom = head.startswith(_BOM)
    return FileHead(size, _text_container(head.removeprefix(_BOM), columns), compression, has_bom)


def _decoded_head(path: Path, compression: Compression) -> bytes:
    with open_decoded(path, compression) as file:
        head = file.read(_HEAD_BYTES)
    if not head:
        raise DatasetError(Issue("dataset.empty", f"the {compression} file decodes to 0 bytes"))
    if compression_of(head) is not None:
        text = "the file is packed twice; pack it once"
        raise DatasetError(Issue("archive.nested", text))
    return head


def _refuse_binary(head: bytes) -> None:
    if head.startswith(b"PARE"):
        raise DatasetError(
            Issue("parquet.encrypted", "the Parquet file is encrypted; write it without encryption")
        )
    if (name := _name(_MAGIC, head)) is not None or _OFFICE.match(head):
        text = f"the file is {name or 'an Office document'}; upload {_ACCEPTED}"
        raise DatasetError(Issue("format.magic_mismatch", text))
    if (name := _name(_ARCHIVES, head)) is not None or head[257:262] == b"ustar":
        text = f"the file is {name or 'a tar archive'}; unpack it and upload {_ACCEPTED}"
        raise DatasetError(Issue("archive.unsupported", text))
    if (encoding := _wide_encoding(head)) is not None:
        raise DatasetError(Issue("encoding.utf16", f"the file is {encoding}; save it as UTF-8"))


def _name(names: dict[bytes, str], head: bytes) -> str | None:
    return next((name for magic, name in names.items() if head.startswith(magic)), None)


def _wide_encoding(head: bytes) -> str | None:
    if (name := _name(_UTF32_16, head)) is not None:
        return name
    # Rows begin with an ASCII character; in UTF-16 without a mark it has a NUL before or behind it.
    if head[1:2] == b"\0" and head[:1].isascii() and head[:1] > b" ":
        return "UTF-16 LE"
    return "UTF-16 BE" if head[:1] == b"\0" and head[1:2].isascii() and head[1:2] > b" " else None


def _text_container(head: bytes, columns: Collection[str]) -> Container:
    start = head.lstrip()
    if start.startswith(b"["):
        return "json"
    if start.startswith(b"{") or not looks_like_csv(start, columns):
        return "jsonl"
    return "csv"


@contextmanager
def _seekable(file: DecodedFile, compression: Compression | None) -> Iterator[IO[bytes]]:
    """A file that one can move in: the stored one, or a temporary one with what it decodes to."""
    if compression is None:
        yield file.stored
        return
    with tempfile.TemporaryFile() as plain:
        shutil.copyfileobj(file, plain)
        plain.seek(0)
        yield plain
