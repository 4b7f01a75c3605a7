"""All rows of a database as files, and back, on SQLite and on Postgres alike.

Tables are read as the database has them, not as `luthier.tables` wants them, so that an older schema can be
saved before it is migrated. A file holds a line of column names and one line a row; times are in UTC without
a zone. `load` fills tables that are there and empty.
"""

import json
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

import zstandard
from sqlalchemy import JSON, Connection, DateTime, Integer, MetaData, Table, select, text

_VERSION_TABLE = "alembic_version"
_SUFFIX = ".jsonl.zst"
_BATCH_ROWS = 1000


def dump(connection: Connection, folder: Path) -> dict[str, int]:
    """Write every table into a folder; returns the number of rows of each."""
    folder.mkdir(parents=True)
    return {table.name: _dump_table(connection, table, folder) for table in tables_of(connection)}


def load(connection: Connection, folder: Path) -> None:
    """Fill the empty tables of a database from a folder; counters go on behind the highest number."""
    for table in tables_of(connection):
        path = folder / f"{table.name}{_SUFFIX}"
        if path.exists():
            _load_table(connection, table, path)


def tables_of(connection: Connection) -> list[Table]:
    """The tables that are there, those that others refer to first."""
    metadata = MetaData()
    metadata.reflect(connection)
    return [table for table in metadata.sorted_tables if table.name != _VERSION_TABLE]


def storage_keys(connection: Connection) -> Iterator[tuple[str, str]]:
    """The table's name and the key of everything in storage that rows speak of."""
    for table in tables_of(connection):
        if "storage_key" in table.c:
            for key in connection.execute(select(table.c.storage_key)).scalars():
                yield table.name, key


def _dump_table(connection: Connection, table: Table, folder: Path) -> int:
    count = 0
    result = connection.execution_options(yield_per=_BATCH_ROWS).execute(
        select(table).order_by(*table.primary_key)
    )
    with zstandard.open(folder / f"{table.name}{_SUFFIX}", "wt", encoding="utf-8") as file:
        file.write(json.dumps(list(table.c.keys())) + "\n")
        for row in result:
            file.write(json.dumps([_plain(value) for value in row], ensure_ascii=False) + "\n")
            count += 1
    return count


def _load_table(connection: Connection, table: Table, path: Path) -> None:
    for column in table.c:
        if isinstance(column.type, JSON):
            column.type.none_as_null = True
    with zstandard.open(path, "rt", encoding="utf-8", newline="\n") as file:
        names: list[str] = json.loads(next(file))
        while lines := list(islice(file, _BATCH_ROWS)):
            rows = [_typed(connection, table, names, json.loads(line)) for line in lines]
            connection.execute(table.insert(), rows)
    if connection.dialect.name == "postgresql":
        _set_counter(connection, table)


def _plain(value: Any) -> Any:
    if not isinstance(value, datetime):
        return value
    return (value.astimezone(UTC) if value.tzinfo else value).replace(tzinfo=None).isoformat()


def _typed(
    connection: Connection, table: Table, names: Sequence[str], values: Sequence[Any]
) -> dict[str, Any]:
    row = dict(zip(names, values, strict=True))
    zone = UTC if connection.dialect.name == "postgresql" else None
    for name, value in row.items():
        if value is not None and isinstance(table.c[name].type, DateTime):
            row[name] = datetime.fromisoformat(value).replace(tzinfo=zone)
    return row


def _set_counter(connection: Connection, table: Table) -> None:
    """Have a column that numbers itself go on behind the highest number."""
    columns = [column for column in table.primary_key if isinstance(column.type, Integer)]
    if len(table.primary_key) != 1 or not columns:
        return
    name = columns[0].name
    sequence = connection.execute(
        text("SELECT pg_get_serial_sequence(:table, :column)"), {"table": table.name, "column": name}
    ).scalar_one()
    highest = connection.execute(select(columns[0]).order_by(columns[0].desc()).limit(1)).scalar()
    if sequence is not None and highest is not None:
        counter = {"sequence": sequence, "highest": highest}
        connection.execute(text("SELECT setval(:sequence, :highest)"), counter)
