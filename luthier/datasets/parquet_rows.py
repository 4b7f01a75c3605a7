"""The rows of a Parquet file, a few at a time and only the columns that matter.

The footer is checked first. What it says of sizes proves nothing (a dictionary page of some bytes can stand
for gigabytes, and Arrow ends quietly where pages or groups hold fewer rows than were claimed), so decoded
bytes and rows are counted while they stream by.
"""

import struct
from collections.abc import Collection, Iterator
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from luthier.datasets.examples import DatasetError, Issue
from luthier.datasets.rows import MAX_ROW_BYTES, MAX_ROWS, ParsedRow
from luthier.errors import printable

MAX_COLUMNS = 1000
MAX_ROW_GROUPS = 100_000
MAX_FOOTER_BYTES = 32 * 1024**2

# Few, so that a batch of the longest rows still fits into memory.
_BATCH_ROWS = 16
_SMALL_BATCH_BYTES = 8 * 1024**2
_TAIL = struct.Struct("<I4s")


def parquet_rows(
    file: IO[bytes], columns: Collection[str], max_decoded_bytes: int
) -> Iterator[tuple[ParsedRow, float]]:
    """The rows, each with the share of them that was read so far.

    Args:
        columns: names to read; those that the file lacks are no mistake as long as it has one of them.
    Raises:
        DatasetError: the file is cut off, damaged, encrypted or too large, a column has a type that cannot be
            trained on, or there are not as many rows as the file says.
    """
    _check_tail(file)
    try:
        parquet = pq.ParquetFile(file, memory_map=False, pre_buffer=False, arrow_extensions_enabled=False)
        _check_footer(parquet.metadata)
        names = _checked_columns(parquet.schema_arrow, columns)
        claimed = parquet.metadata.num_rows
        number = decoded = 0
        for batch in parquet.iter_batches(_BATCH_ROWS, columns=names, use_threads=False):
            for value, size in _values(batch):
                number, decoded = number + 1, decoded + size
                if decoded > max_decoded_bytes:
                    raise DatasetError(_decoded_too_large(max_decoded_bytes))
                yield _row(number, value, decoded, size), min(1.0, number / max(1, claimed))
        if number != claimed:
            text = f"the file holds {number} rows, but says that it has {claimed}; write and upload it again"
            raise DatasetError(Issue("parquet.invalid", text))
    except pa.ArrowMemoryError as error:
        text = "the Parquet file takes more memory to decode than there is for it; write it in smaller pages"
        raise DatasetError(Issue("dataset.decoded_too_large", text)) from error
    except (pa.ArrowException, OSError, ValueError) as error:
        # Arrow tells of damaged data with an OSError too, but without the number of a real one.
        if isinstance(error, OSError) and error.errno is not None:
            raise
        text = f"the Parquet file is damaged ({printable(str(error), 120)}); write and upload it again"
        raise DatasetError(Issue("parquet.invalid", text)) from error


def _check_tail(file: IO[bytes]) -> None:
    size = file.seek(0, 2)
    file.seek(max(0, size - _TAIL.size))
    tail = file.read(_TAIL.size)
    file.seek(0)
    footer_bytes, magic = _TAIL.unpack(tail) if len(tail) == _TAIL.size else (0, b"")
    if magic == b"PARE":
        text = "the Parquet file is encrypted; write it without encryption"
        raise DatasetError(Issue("parquet.encrypted", text))
    if magic != b"PAR1" or size < 12:
        text = "the Parquet file has no end; was the upload or the export cut off?"
        raise DatasetError(Issue("parquet.truncated", text))
    if footer_bytes > min(MAX_FOOTER_BYTES, size - 12):
        text = f"the Parquet file claims a footer of {footer_bytes} bytes"
        raise DatasetError(Issue("parquet.invalid", text))


def _check_footer(metadata: pq.FileMetaData) -> None:
    if metadata.num_row_groups > MAX_ROW_GROUPS:
        text = f"the file has {metadata.num_row_groups} row groups, over the limit of {MAX_ROW_GROUPS}"
        raise DatasetError(Issue("parquet.too_many_row_groups", text))
    if metadata.num_rows > MAX_ROWS:
        text = f"the file says that it has {metadata.num_rows} rows, over the limit of {MAX_ROWS}; split it"
        raise DatasetError(Issue("dataset.too_large", text))


def _checked_columns(schema: pa.Schema, columns: Collection[str]) -> list[str]:
    """The columns to read, in the order of the file."""
    if len(schema.names) > MAX_COLUMNS:
        text = f"the file has {len(schema.names)} columns, over the limit of {MAX_COLUMNS}"
        raise DatasetError(Issue("parquet.too_many_columns", text))
    for field in schema:
        if _is_extension(field):
            text = f"the column '{printable(field.name, 40)}' has an extension type; write plain strings"
            raise DatasetError(Issue("parquet.extension_type", text))
    names = [name for name in schema.names if name in columns]
    for name in names:
        if names.count(name) > 1:
            text = f"the file has the column '{printable(name, 40)}' twice; rename one"
            raise DatasetError(Issue("parquet.duplicate_column", text))
        _check_type(schema.field(name))
    if names:
        return names
    shown = ", ".join(printable(name, 24) for name in schema.names[:10])
    wanted = ", ".join(printable(name, 24) for name in sorted(columns)[:20])
    text = f"the file has the columns {shown}; of {wanted} there must be some"
    raise DatasetError(Issue("schema.unknown", text))


def _is_extension(field: pa.Field) -> bool:
    if isinstance(field.type, pa.BaseExtensionType) or b"ARROW:extension:name" in (field.metadata or {}):
        return True
    return any(_is_extension(child) for child in _children(field.type))


def _children(type_: pa.DataType) -> Iterator[pa.Field]:
    # A dictionary's fields cannot be asked for; its values are a type and not a field.
    if not isinstance(type_, pa.DictionaryType):
        yield from (type_.field(index) for index in range(type_.num_fields))


def _check_type(field: pa.Field) -> None:
    """Refuse what is no JSON value (bytes, decimals, dates and the like), and what decodes without bound."""
    if not _is_plain(field.type):
        text = (
            f"the column '{printable(field.name, 40)}' is {printable(str(field.type), 80)}; write strings, "
            "or lists of structs of strings"
        )
        raise DatasetError(Issue("parquet.schema", text, field.name[:80]))


def _is_plain(type_: pa.DataType) -> bool:
    types = pa.types
    if types.is_struct(type_) or types.is_list(type_) or types.is_large_list(type_):
        return all(_is_plain(child.type) for child in _children(type_))
    scalars = (types.is_string, types.is_large_string, types.is_null, types.is_boolean)
    return any(test(type_) for test in (*scalars, types.is_integer, types.is_floating))


def _values(batch: pa.RecordBatch) -> Iterator[tuple[dict[str, Any], int]]:
    """The rows of a batch as objects, each with its share of the decoded bytes."""
    share = batch.nbytes // max(1, batch.num_rows)
    if batch.nbytes <= _SMALL_BATCH_BYTES:
        yield from ((value, share) for value in _objects(batch))
        return
    for index in range(batch.num_rows):
        row = batch.slice(index, 1)
        yield from ((value, row.nbytes) for value in _objects(row))


def _objects(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    try:
        rows: list[dict[str, Any]] = batch.to_pylist()
    except UnicodeDecodeError as error:
        text = f"a string is not UTF-8 (0x{error.object[error.start]:02X}); write the file again"
        raise DatasetError(Issue("encoding.invalid_utf8", text)) from error
    return rows


def _row(number: int, value: dict[str, Any], end: int, size: int) -> ParsedRow:
    issue = None
    if size > MAX_ROW_BYTES:
        issue = Issue("row.too_large", "the row is over 16 MiB; split it into several", line=number)
    return ParsedRow(number, value, end, issue)


def _decoded_too_large(limit: int) -> Issue:
    return Issue("dataset.decoded_too_large", f"the file decodes to more than {limit} bytes; split it")
