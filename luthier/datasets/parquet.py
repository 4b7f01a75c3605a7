"""The file format of prepared rows: Parquet with ids and a loss mask, a row an example.

It is `luthier.spec.PreparedSplit`'s; `trainer/data` reads it. Rows become Arrow by the buffer, not by the
number, since there are millions of these.
"""

from array import array
from collections.abc import Sequence
from itertools import accumulate

import pyarrow as pa

from luthier.datasets.encoding import EncodedRow
from luthier.datasets.tokenizer import ModelTokenizer
from luthier.spec import END_ID_KEY

SCHEMA = pa.schema([("input_ids", pa.list_(pa.int32())), ("loss_mask", pa.list_(pa.uint8()))])


def schema_for(tokenizer: ModelTokenizer) -> pa.Schema:
    """The schema of a file of that tokenizer's ids, with the id that stands for the end."""
    end = tokenizer.token_of(tokenizer.named_tokens.get("eos_token", ""))
    return SCHEMA if end is None else SCHEMA.with_metadata({END_ID_KEY: str(end)})


def record_batch(rows: Sequence[EncodedRow]) -> pa.RecordBatch:
    """Rows as Arrow."""
    ids = array("i")
    for row in rows:
        ids.fromlist(row.ids)
    offsets = array("i", accumulate((len(row.ids) for row in rows), initial=0))
    masks = b"".join(row.mask for row in rows)
    columns = [
        _lists(offsets, pa.Array.from_buffers(pa.int32(), len(ids), [None, pa.py_buffer(ids)])),
        _lists(offsets, pa.Array.from_buffers(pa.uint8(), len(masks), [None, pa.py_buffer(masks)])),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=SCHEMA)


def _lists(offsets: "array[int]", values: pa.Array) -> pa.ListArray:
    places = pa.Array.from_buffers(pa.int32(), len(offsets), [None, pa.py_buffer(offsets)])
    return pa.ListArray.from_arrays(places, values)
