"""The same rows in every container are the same examples, whatever the file is called."""

import csv
import gzip
import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from luthier.datasets.examples import DatasetError
from luthier.datasets.parquet_rows import parquet_rows
from luthier.datasets.reading import read_examples
from luthier.datasets.validate import check_head, validate_file

TURNS = [
    {"role": "user", "content": 'line\nbreak, "quoted"'},
    {"role": "assistant", "content": "\u00e9\u2028x"},
]
ROWS = [{"messages": TURNS, "tools": [{"name": "f"}]}, {"messages": TURNS * 2, "tools": None}]


def as_csv(rows):
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(rows[0])
    writer.writerows([json.dumps(cell) if cell is not None else "" for cell in row.values()] for row in rows)
    return text.getvalue().encode()


def as_parquet(rows):
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), file, row_group_size=1)
    return file.getvalue()


CONTAINERS = {
    "jsonl": b"".join(json.dumps(row).encode() + b"\n" for row in ROWS),
    "json": json.dumps(ROWS, indent=1).encode(),
    "csv": as_csv(ROWS),
    "parquet": as_parquet(ROWS),
}
PACKERS = {None: bytes, "gzip": gzip.compress, "zstd": zstandard.compress}


@pytest.mark.parametrize("compression", PACKERS)
@pytest.mark.parametrize("container", CONTAINERS)
def test_a_container_is_known_by_its_content(tmp_path, container, compression):
    path = tmp_path / "data.bin"
    path.write_bytes(PACKERS[compression](CONTAINERS[container]))

    report = validate_file(path, "data.bin")
    examples = [example for _, example in read_examples(path)]

    assert report.valid, report.errors
    assert (report.container, report.compression, report.format) == (container, compression, "chat")
    assert [[message.content for message in example.messages] for example in examples] == [
        [turn["content"] for turn in row["messages"]] for row in ROWS
    ]
    assert [example.tools for example in examples] == [({"name": "f"},), ()]


@pytest.mark.parametrize("container", CONTAINERS)
def test_statistics_do_not_depend_on_the_container(tmp_path, container):
    path = tmp_path / "data"
    path.write_bytes(CONTAINERS[container])

    statistics = validate_file(path, "data").statistics

    assert (statistics.messages.minimum, statistics.messages.maximum, statistics.messages.mean) == (2, 4, 3.0)
    assert statistics.characters["user"].p50 == len(TURNS[0]["content"])
    assert statistics.characters["assistant"].total == 3 * len(TURNS[1]["content"])


def test_lines_of_csv_rows_are_those_where_they_begin(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_bytes(b'text\n"a\nb"\n\nc\n""\n')

    assert [line for line, _ in read_examples(path, on_bad_row=[].append)] == [2, 5]
    assert [error.line for error in validate_file(path, "rows.csv").errors] == [6]


def test_of_a_table_only_known_columns_are_read(tmp_path):
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"id": [b"1"], "prompt": ["a"], "completion": ["b"]}), path)

    assert validate_file(path, "rows.parquet").valid


def test_a_parquet_file_that_memory_does_not_hold_is_not_called_damaged():
    class Starved(io.BytesIO):
        def read(self, size=-1):
            if size > 8:
                raise pa.ArrowMemoryError("malloc of size 9 failed")
            return super().read(size)

    with pytest.raises(DatasetError, match="takes more memory") as raised:
        list(parquet_rows(Starved(as_parquet(ROWS)), ["messages"], 1 << 30))
    assert raised.value.issue.code == "dataset.decoded_too_large"


@pytest.mark.parametrize("compression", PACKERS)
def test_the_head_of_every_container_can_be_checked(tmp_path, compression):
    path = tmp_path / "rows"
    rows = b"prompt,completion\n" + (b"q" * 999 + b",answer\n") * 5_000 + b"broken\n"
    path.write_bytes(PACKERS[compression](rows))

    head = check_head(path, "rows")

    assert head.valid
    # What is packed may decode to anything, so that its rows are for the limited process.
    assert (head.row_count == 0) is (compression is not None)
    assert head.row_count < 5_000


def test_progress_counts_stored_bytes(tmp_path):
    path = tmp_path / "rows"
    rows = b"".join(b'{"prompt": "%d", "completion": "b"}\n' % number for number in range(100_000))
    path.write_bytes(gzip.compress(rows))
    told = []

    validate_file(path, "rows", lambda done, total: told.append((done, total)))

    assert {total for _, total in told} == {path.stat().st_size}
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert 0 < told[0][0] <= told[-1][0] <= path.stat().st_size
