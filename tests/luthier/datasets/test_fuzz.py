"""Readers under fire: whatever bytes come, there is a report or a DatasetError, soon and in little memory.

Rows of every format, right and nearly right, are written into every container and then damaged byte by byte.
The short form runs with a fixed seed; the long one, marked `full`, looks for new ways each time.
"""

import csv
import gzip
import io
import json
import tracemalloc
import zlib
from datetime import timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from luthier.datasets import validate
from luthier.datasets.convert import convert_file
from luthier.datasets.entries import resolve_entry
from luthier.datasets.examples import DatasetError, Format
from luthier.datasets.fast_rows import Sieve
from luthier.datasets.reading import PLAIN, Reading, read_examples
from luthier.datasets.validate import validate_file
from luthier.spec import SourceFile

# Every file is tiny: even on a machine with much else to do, only a loop without end takes so long.
DEADLINE = timedelta(seconds=60)
MAX_MEMORY_BYTES = 64 * 1024**2
SHORT = settings(
    max_examples=80,
    deadline=DEADLINE,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
LONG = settings(SHORT, max_examples=5000, derandomize=False)

texts = st.one_of(
    st.text(max_size=20),
    st.sampled_from(["", " ", "\0", "\u202e", "<|im_start|>", 'a "quoted" text', "a\\b", "\ud800", "{", "7"]),
)
scalars = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), texts)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3)
)
roles = st.sampled_from(
    ["user", "assistant", "system", "tool", "human", "gpt", "observation", "function_call"]
)
calls = st.lists(
    st.fixed_dictionaries(
        {"id": texts, "function": st.fixed_dictionaries({"name": texts, "arguments": texts})}
    )
)


def objects(required, optional):
    """Objects with their fields, now and then with others or of other types."""
    return st.fixed_dictionaries(required, optional=optional | {"extra": values}) | st.fixed_dictionaries(
        dict.fromkeys(required, values)
    )


turns = objects(
    {"role": roles, "content": texts},
    {"tool_calls": calls, "tool_call_id": texts, "weight": st.integers(0, 1)},
)
spoken = objects({"from": roles, "value": texts}, {})
histories = st.lists(st.lists(texts, min_size=2, max_size=2), max_size=2)
rows = st.one_of(
    objects({"messages": st.lists(turns, max_size=5)}, {"tools": values}),
    objects({"conversations": st.lists(spoken, max_size=5)}, {"system": texts, "tools": values}),
    objects({"prompt": texts, "completion": texts}, {"label": values}),
    objects({"instruction": texts, "output": texts}, {"input": texts, "system": texts, "history": histories}),
    objects({"text": texts}, {}),
)


def as_jsonl(items):
    return b"".join(_json(item) + b"\n" for item in items)


def _json(item):
    return json.dumps(item, ensure_ascii=False).encode("utf-8", "surrogatepass")


def as_array(items):
    return b"[" + b",\n".join(_json(item) for item in items) + b"]"


def as_csv(items):
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(items[0] if items else ["prompt", "completion"])
    writer.writerows([_cell(value) for value in item.values()] for item in items)
    return text.getvalue().encode("utf-8", "surrogatepass")


def _cell(value):
    return value if isinstance(value, str) else json.dumps(value)


def as_parquet(items):
    try:
        table = pa.Table.from_pylist(items)
        file = io.BytesIO()
        pq.write_table(table, file)
    except (pa.ArrowException, ValueError, OverflowError, TypeError):
        return as_parquet([{"prompt": "a", "completion": "b"}])
    return file.getvalue()


@st.composite
def files(draw):
    """A file of any container with up to a few places of damage."""
    items = draw(st.lists(rows, max_size=4))
    data = draw(st.sampled_from([as_jsonl, as_array, as_csv, as_parquet]))(items)
    packers = st.sampled_from([bytes, bytes, gzip.compress, zstandard.compress, zlib.compress])
    if draw(st.booleans()):
        data = draw(damaged(data))
    data = draw(packers)(data)
    return draw(damaged(data)) if draw(st.booleans()) else data


@st.composite
def damaged(draw, data):
    """Bytes flipped, cut off, doubled or put elsewhere."""
    for _ in range(draw(st.integers(1, 4))):
        first, second = sorted(draw(st.tuples(*[st.integers(0, len(data))] * 2)))
        match draw(st.sampled_from(["flip", "cut", "double", "splice", "insert"])):
            case "flip" if first < len(data):
                data = data[:first] + bytes([data[first] ^ draw(st.integers(1, 255))]) + data[first + 1 :]
            case "cut":
                data = data[:second]
            case "double":
                data = data[:second] + data[first:second] + data[second:]
            case "splice":
                data = data[first:second] + data[:first] + data[second:]
            case "insert":
                data = data[:first] + draw(st.binary(max_size=6)) + data[first:]
    return data


ENTRY, _ = resolve_entry({"file_name": "x", "formatting": "sharegpt"}, "fuzz")
READINGS = [
    PLAIN,
    Reading(columns={"instruction": "prompt", "output": "completion"}),
    Reading(entry=ENTRY),
    Reading(format_string="Q: {prompt} A: {completion}{eos_token}"),
    Reading(max_rows=2),
]


def check(path: Path, data: bytes, reading: Reading) -> None:
    """Everything that reads a file, on one file."""
    path.write_bytes(data)
    tracemalloc.start()
    report = validate_file(path, "fuzz", reading=reading)
    json.loads(report.model_dump_json())
    told = []
    try:
        good = sum(1 for _ in read_examples(path, reading, told.append))
    except DatasetError:
        assert not report.valid
    else:
        assert report.row_count == good + len(told)
        assert report.valid or not good or told or "dataset.all_duplicates" in report.error_counts
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < MAX_MEMORY_BYTES


def check_conversion(path: Path) -> None:
    target = path.with_name("converted.jsonl")
    try:
        count = convert_file(SourceFile(path=str(path), filename="fuzz", param="file"), target)
    except DatasetError:
        assert not target.exists()
        return
    assert validate_file(target, "converted").row_count == count
    target.unlink()


@SHORT
@given(data=files(), reading=st.sampled_from(READINGS))
def test_any_file_ends_in_a_report(tmp_path, data, reading):
    check(tmp_path / "fuzz", data, reading)
    check_conversion(tmp_path / "fuzz")


@pytest.mark.full
@pytest.mark.timeout(1800)
@LONG
@given(data=files(), reading=st.sampled_from(READINGS))
def test_any_file_ends_in_a_report_at_length(tmp_path, data, reading):
    check(tmp_path / "fuzz", data, reading)
    check_conversion(tmp_path / "fuzz")


def check_sieve(path: Path, data: bytes) -> None:
    """The sieve and the exact parser say the same of a file of lines."""
    path.write_bytes(data)
    sifted = validate_file(path, "fuzz").model_dump()
    with pytest.MonkeyPatch.context() as patch:
        # Texts have no plain form, so that a sieve of theirs suspects every line.
        patch.setattr(validate, "Sieve", lambda _format, _lines: Sieve(Format.TEXT))
        exact = validate_file(path, "fuzz").model_dump()
    # What stops the reading stops it at the next chunk, or at the next row.
    if not exact["error_counts"].keys() & {"format.multiline_json", "format.cr_newlines", "content.nul"}:
        assert sifted == exact


# The first row has keys of its own, of which some come again, with other values or as others'.
own = st.dictionaries(st.sampled_from(["id", "source", 'q"', "text", "label"]), scalars, max_size=3)
owned = st.tuples(rows, own).map(lambda pair: {**pair[1], **pair[0]})
lines = st.lists(rows | owned, min_size=1, max_size=4).map(as_jsonl)


@SHORT
@given(data=lines | lines.flatmap(damaged))
def test_the_sieve_agrees_with_the_exact_parser(tmp_path, data):
    check_sieve(tmp_path / "fuzz", data)


@pytest.mark.full
@pytest.mark.timeout(1800)
@LONG
@given(data=lines | lines.flatmap(damaged))
def test_the_sieve_agrees_with_the_exact_parser_at_length(tmp_path, data):
    check_sieve(tmp_path / "fuzz", data)
