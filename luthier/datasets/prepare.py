"""Preparation: a file of examples becomes ids and loss masks in Parquet, for one model.

`prepare_file` streams, so that memory depends on the longest rows and not on their number. A mask of 1 marks
a token that the model learns to predict; the shift by one happens in the trainer. `cache_key` names all that
the outcome depends on.
"""

import bisect
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq

from luthier.artifacts import flush, sha256_of
from luthier.datasets.examples import DatasetError, Issue
from luthier.datasets.reading import read_examples
from luthier.datasets.rendering import Rendered, Renderer
from luthier.datasets.tokenizer import ModelTokenizer, Tokens
from luthier.spec import DatasetRequest, PreparedSplit

# Raised with every change of what the same rows become.
DATA_VERSION = 1

SCHEMA = pa.schema([("input_ids", pa.list_(pa.int32())), ("loss_mask", pa.list_(pa.uint8()))])
_BATCH_ROWS = 256
_BATCH_CHARACTERS = 1_000_000

TrainOn = Literal["assistant", "last", "all"]
# Called with the rows prepared so far.
OnProgress = Callable[[int], None]


@dataclass
class PrepareStats:
    """What became of the rows of a file.

    Attributes:
        truncated_row_count: cut at the end to the longest length allowed, and kept.
        untrained_row_count: dropped, since no token of theirs (within that length) is trained on.
        overlength_row_count: dropped, since they were too long.
        longest_row_tokens: before any cut.
    """

    read_row_count: int = 0
    truncated_row_count: int = 0
    untrained_row_count: int = 0
    overlength_row_count: int = 0
    longest_row_tokens: int = 0


@dataclass(frozen=True)
class PreparedFile:
    """The Parquet file that was written, and how it came about."""

    split: PreparedSplit
    stats: PrepareStats


def prepare_file(
    source: Path,
    target: Path,
    tokenizer: ModelTokenizer,
    *,
    rules: DatasetRequest,
    max_seq_length: int,
    on_progress: OnProgress | None = None,
) -> PreparedFile:
    """Render, tokenise and mask every row of a file.

    Args:
        target: the Parquet file to make; it appears whole, flushed to disk, or not at all.
        max_seq_length: in tokens, > 0.
        on_progress: called after every batch.
    Raises:
        DatasetError: a row is bad, the template refuses it, it is too long and `overlength` is `raise`, or no
            row is left to train on.
        JobFailure: the model's template is broken.
        OSError: the file cannot be read or written.
    """
    work = _Preparation(tokenizer, rules, max_seq_length)
    temporary = target.with_name(target.name + ".tmp")
    try:
        with pq.ParquetWriter(temporary, SCHEMA, compression="zstd") as writer:
            for rows in work.batches(source):
                writer.write_batch(_record_batch(rows))
                if on_progress is not None:
                    on_progress(work.stats.read_row_count)
        if work.row_count == 0:
            raise DatasetError(_nothing_left(work.stats, max_seq_length))
        flush(temporary)
        temporary.rename(target)
    finally:
        temporary.unlink(missing_ok=True)
    flush(target.parent)
    split = PreparedSplit(
        path=str(target),
        sha256=sha256_of(target),
        row_count=work.row_count,
        token_count=work.token_count,
        trained_token_count=work.trained_token_count,
    )
    return PreparedFile(split, work.stats)


def cache_key(
    file_sha256s: Sequence[str],
    model_folder: Path,
    tokenizer: ModelTokenizer,
    rules: DatasetRequest,
    max_seq_length: int,
) -> str:
    """Hex SHA-256 of all that the prepared rows depend on."""
    facts = {
        "data_version": DATA_VERSION,
        "files": list(file_sha256s),
        "tokenizer": sha256_of(model_folder / "tokenizer.json"),
        "named_tokens": tokenizer.named_tokens,
        "chat_template": tokenizer.chat_template,
        "train_on": rules.train_on,
        "overlength": rules.overlength,
        "max_seq_length": max_seq_length,
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def loss_mask(tokens: Tokens, rendered: Rendered, train_on: TrainOn) -> list[int]:
    """1 for every token to be learnt, 0 for the others.

    A token belongs to a turn when any of its characters does. The first token is never learnt: nothing stands
    before it. Turns of weight 0 are left out, also with `all`; `last` is the last assistant turn.
    """
    mask = [1 if train_on == "all" else 0] * len(tokens.ids)
    if train_on == "all":
        marked = [(turn, 0) for turn in rendered.turns if not turn.is_trained]
    else:
        turns = rendered.turns[-1:] if train_on == "last" else rendered.turns
        marked = [(turn, 1) for turn in turns if turn.is_trained]
    for turn, value in marked:
        first = bisect.bisect_right(tokens.offsets, turn.span.start, key=itemgetter(1))
        behind = bisect.bisect_left(tokens.offsets, turn.span.end, key=itemgetter(0))
        mask[first:behind] = [value] * (behind - first)
    return [0, *mask[1:]] if mask else mask


@dataclass(frozen=True, slots=True)
class _Row:
    ids: list[int]
    mask: list[int]


class _Preparation:
    """The preparation of one file, and the counts of what was kept."""

    def __init__(self, tokenizer: ModelTokenizer, rules: DatasetRequest, max_seq_length: int) -> None:
        self.stats = PrepareStats()
        self.row_count = self.token_count = self.trained_token_count = 0
        self._tokenizer, self._renderer = tokenizer, Renderer(tokenizer)
        self._rules, self._max_seq_length = rules, max_seq_length

    def batches(self, source: Path) -> Iterator[list[_Row]]:
        """The rows to keep, in batches of some hundred rows or a million characters."""
        for batch in self._rendered_batches(source):
            encoded = self._tokenizer.encode_batch([(item.text, item.literals) for _, item in batch])
            kept = [
                row
                for (line, rendered), tokens in zip(batch, encoded, strict=True)
                if (row := self._row(line, rendered, tokens)) is not None
            ]
            self.row_count += len(kept)
            self.token_count += sum(len(row.ids) for row in kept)
            self.trained_token_count += sum(sum(row.mask) for row in kept)
            yield kept

    def _rendered_batches(self, source: Path) -> Iterator[list[tuple[int, Rendered]]]:
        batch: list[tuple[int, Rendered]] = []
        characters = 0
        for line, example in read_examples(source):
            try:
                rendered = self._renderer.render(example)
            except DatasetError as error:
                raise DatasetError(error.issue.at(line)) from error
            batch.append((line, rendered))
            characters += len(rendered.text)
            if len(batch) == _BATCH_ROWS or characters >= _BATCH_CHARACTERS:
                yield batch
                batch, characters = [], 0
        if batch:
            yield batch

    def _row(self, line: int, rendered: Rendered, tokens: Tokens) -> _Row | None:
        """The row as it is kept; None, and counted, when it is dropped."""
        stats, limit = self.stats, self._max_seq_length
        length = len(tokens.ids)
        stats.read_row_count += 1
        stats.longest_row_tokens = max(stats.longest_row_tokens, length)
        if length > limit and self._rules.overlength == "raise":
            raise DatasetError(_overlength(line, length, limit))
        if length > limit and self._rules.overlength == "drop":
            stats.overlength_row_count += 1
            return None
        mask = loss_mask(tokens, rendered, self._rules.train_on)[:limit]
        if not any(mask):
            stats.untrained_row_count += 1
            return None
        stats.truncated_row_count += length > limit
        return _Row(tokens.ids[:limit], mask)


def _overlength(line: int, length: int, limit: int) -> Issue:
    text = (
        f"the row has {length} tokens, over qlora.max_seq_length {limit}; shorten it, raise the length, or "
        "set dataset.overlength to truncate or drop"
    )
    return Issue("dataset.overlength", text, line=line)


def _nothing_left(stats: PrepareStats, limit: int) -> Issue:
    if stats.read_row_count == 0:
        return Issue("dataset.no_rows", "the file has no rows")
    text = (
        f"none of the {stats.read_row_count} rows has a token to learn within qlora.max_seq_length {limit} "
        f"(the longest row has {stats.longest_row_tokens}); raise the length or shorten the prompts"
    )
    return Issue("dataset.all_truncated", text)


def _record_batch(rows: Sequence[_Row]) -> pa.RecordBatch:
    columns = [pa.array([row.ids for row in rows], SCHEMA.field(0).type)]
    columns.append(pa.array([row.mask for row in rows], SCHEMA.field(1).type))
    return pa.RecordBatch.from_arrays(columns, schema=SCHEMA)
