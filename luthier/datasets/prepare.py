"""Preparation: a file of examples becomes ids and loss masks in Parquet, for one model.

`prepare_file` streams, so that memory depends on the longest rows and not on their number. A mask of 1 marks
a token that the model learns to predict; the shift by one happens in the trainer. What rows cost on the way
(cut, dropped, bad) is counted in `PrepareStats` and nothing of it is silent.
"""

from array import array
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow.parquet as pq

from luthier.artifacts import flush, sha256_of
from luthier.datasets import llamafactory, truncation
from luthier.datasets.encoding import EncodedRow, Encoder, NativeEncoder
from luthier.datasets.examples import DatasetError, Example, Issue
from luthier.datasets.llamafactory import SlotEncoder
from luthier.datasets.parquet import record_batch, schema_for
from luthier.datasets.reading import read_examples, reading_of
from luthier.datasets.template_choice import ChosenTemplate, resolve_template
from luthier.datasets.tokenizer import ModelTokenizer
from luthier.spec import DatasetRequest, PreparedSplit, SourceFile

MAX_UNTRAINED_RATIO = 0.1
MAX_SHOWN_BAD_ROWS = 5

_BATCH_ROWS = 1024
_BATCH_CHARACTERS = 1_000_000
# Batches that are being encoded, or wait for it, while the next is rendered.
_BATCHES_AHEAD = 2

# Called with the rows read so far, and their number where it is known.
OnProgress = Callable[[int, int | None], None]


@dataclass
class PrepareStats:
    """What became of the rows of a file.

    Attributes:
        read_row_count: good ones, whatever became of them.
        bad_row_count: rows that could not be used, and were dropped as `on_bad_row` says.
        bad_rows: messages of the first ones.
        truncated_row_count: cut to the longest length allowed, and kept.
        untrained_row_count: dropped, since no token of theirs (within that length) is trained on.
        overlength_row_count: dropped, since they were too long.
        longest_row_tokens: before any cut.
        answer_count: assistant turns (or texts) trained on, before any cut, of rows that were not too long to
            keep.
        lost_answer_count: of these, with a token cut away.
    """

    read_row_count: int = 0
    bad_row_count: int = 0
    bad_rows: list[str] = field(default_factory=list)
    truncated_row_count: int = 0
    untrained_row_count: int = 0
    overlength_row_count: int = 0
    longest_row_tokens: int = 0
    answer_count: int = 0
    lost_answer_count: int = 0

    def note_bad(self, issue: Issue) -> None:
        """Count a bad row, and keep what is wrong with it when it is among the first."""
        self.bad_row_count += 1
        if len(self.bad_rows) < MAX_SHOWN_BAD_ROWS:
            self.bad_rows.append(issue.message)


@dataclass(frozen=True)
class PreparedFile:
    """The Parquet file that was written, and how it came about."""

    split: PreparedSplit
    stats: PrepareStats


def prepare_file(
    source: SourceFile,
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
        DatasetError: a row is bad and `on_bad_row` is `refuse`, it is too long and `overlength` is `raise`,
            too many rows have nothing to learn, or no row is left to train on; there is no such template.
        JobFailure: the model's template is broken.
        OSError: the file cannot be read or written.
    """
    rows = RowStream(source, tokenizer, rules, max_seq_length)
    temporary = target.with_name(target.name + ".tmp")
    row_count = token_count = trained_token_count = longest = 0
    try:
        with pq.ParquetWriter(temporary, schema_for(tokenizer), compression="zstd") as writer:
            for batch in rows.batches():
                kept = [row for _, _, row in batch if row is not None]
                writer.write_batch(record_batch(kept))
                row_count += len(kept)
                token_count += sum(len(row.ids) for row in kept)
                trained_token_count += sum(len(row.mask) - row.mask.count(0) for row in kept)
                longest = max(longest, *(len(row.ids) for row in kept), 0)
                if on_progress is not None:
                    on_progress(rows.stats.read_row_count, rules.max_samples)
        rows.check_enough(row_count)
        flush(temporary)
        temporary.rename(target)
    finally:
        temporary.unlink(missing_ok=True)
    flush(target.parent)
    split = PreparedSplit(
        path=str(target),
        sha256=sha256_of(target),
        row_count=row_count,
        token_count=token_count,
        trained_token_count=trained_token_count,
        longest_row_tokens=longest,
        weight=source.weight,
    )
    return PreparedFile(split, rows.stats)


def build_encoder(
    tokenizer: ModelTokenizer, chosen: ChosenTemplate, rules: DatasetRequest, max_tokens: int | None
) -> Encoder:
    """What makes rows by the rules of a job.

    Raises:
        DatasetError: the style cannot be had with this template.
    """
    if rules.style == "luthier" or chosen.named is None:
        return NativeEncoder(tokenizer, chosen, rules.train_on, max_tokens)
    return SlotEncoder(tokenizer, chosen.named, rules.train_on, max_tokens, rules.thoughts)


def truncation_rule(rules: DatasetRequest) -> str:
    """How rows that are too long are cut, for people."""
    return llamafactory.RULE if rules.style == "llamafactory" else truncation.RULE


# A row of the file: its line, its example, and what became of it; None where it was dropped.
StreamedRow = tuple[int, Example, EncodedRow | None]


class RowStream:
    """The rows of one file as they would be trained on, and the counts of what was not kept.

    While one batch is encoded in a thread, which holds no lock of the interpreter's, the next is rendered.

    Attributes:
        lengths: tokens of every good row before any cut, where they are kept.
    """

    def __init__(
        self,
        source: SourceFile,
        tokenizer: ModelTokenizer,
        rules: DatasetRequest,
        max_seq_length: int,
        *,
        keep_lengths: bool = False,
    ) -> None:
        self.stats = PrepareStats()
        self.lengths = array("i") if keep_lengths else None
        self._path, self._reading = Path(source.path), reading_of(source, rules)
        self._rules, self._limit = rules, max_seq_length
        cuts = rules.overlength == "truncate"
        chosen = resolve_template(rules.template, tokenizer, rules.style)
        self._encoder = build_encoder(tokenizer, chosen, rules, max_seq_length if cuts else None)

    def batches(self) -> Iterator[list[StreamedRow]]:
        """All rows, in batches of some hundred or a million characters.

        Raises:
            DatasetError: as `prepare_file`.
        """
        with ThreadPoolExecutor(max_workers=1) as pool:
            waiting: list[tuple[list[_Drawn], Future[list[EncodedRow | Issue]]]] = []
            for batch in self._drawn():
                rows = [(row.example, row.rendered) for row in batch]
                waiting.append((batch, pool.submit(self._encoder.encode, rows)))
                if len(waiting) > _BATCHES_AHEAD:
                    yield self._settled(*waiting.pop(0))
            for batch, future in waiting:
                yield self._settled(batch, future)

    def check_enough(self, row_count: int) -> None:
        """See that of the rows read, enough are left to train on.

        Raises:
            DatasetError: none are, or more than a tenth have nothing to learn and bad rows are refused.
        """
        stats, limit = self.stats, self._limit
        if row_count == 0:
            raise DatasetError(_nothing_left(stats, limit))
        if (
            self._rules.on_bad_row == "refuse"
            and stats.untrained_row_count > MAX_UNTRAINED_RATIO * stats.read_row_count
        ):
            raise DatasetError(_too_few_trained(stats, limit))

    def _drawn(self) -> Iterator[list["_Drawn"]]:
        batch: list[_Drawn] = []
        characters = 0
        on_bad_row = self.stats.note_bad if self._rules.on_bad_row == "drop" else None
        for line, example in read_examples(self._path, self._reading, on_bad_row):
            try:
                rendered = self._encoder.render(example)
            except DatasetError as error:
                self._pass_over(error.issue, line)
                continue
            batch.append(_Drawn(line, example, rendered))
            characters += _size(example)
            if len(batch) == _BATCH_ROWS or characters >= _BATCH_CHARACTERS:
                yield batch
                batch, characters = [], 0
        if batch:
            yield batch

    def _settled(self, batch: list["_Drawn"], future: Future[list[EncodedRow | Issue]]) -> list[StreamedRow]:
        return [
            (drawn.line, drawn.example, self._judged(drawn.line, result))
            for drawn, result in zip(batch, future.result(), strict=True)
        ]

    def _judged(self, line: int, row: EncodedRow | Issue) -> EncodedRow | None:
        """The row where it is kept; None, and counted, where it is dropped."""
        stats, limit = self.stats, self._limit
        if isinstance(row, Issue):
            self._pass_over(row, line)
            return None
        stats.read_row_count += 1
        stats.longest_row_tokens = max(stats.longest_row_tokens, row.full_token_count)
        if self.lengths is not None:
            self.lengths.append(row.full_token_count)
        is_too_long = row.full_token_count > limit
        if is_too_long and self._rules.overlength == "raise":
            raise DatasetError(_overlength(line, row.full_token_count, limit))
        if is_too_long and self._rules.overlength == "drop":
            stats.overlength_row_count += 1
            return None
        stats.answer_count += row.answer_count
        stats.lost_answer_count += row.lost_answer_count
        if 1 not in row.mask:
            stats.untrained_row_count += 1
            return None
        stats.truncated_row_count += row.is_cut
        return row

    def _pass_over(self, issue: Issue, line: int) -> None:
        if self._rules.on_bad_row == "refuse":
            raise DatasetError(issue.at(line))
        self.stats.note_bad(issue.at(line))


@dataclass(frozen=True, slots=True)
class _Drawn:
    line: int
    example: Example
    rendered: object


def _size(example: Example) -> int:
    """About how many characters an example has."""
    texts = sum(len(text) for text, _ in example.text)
    return texts + sum(len(message.content or "") for message in example.messages)


def _overlength(line: int, length: int, limit: int) -> Issue:
    text = (
        f"the row has {length} tokens, over qlora.max_seq_length {limit}; shorten it, raise the length, or "
        "set dataset.overlength to truncate or drop"
    )
    return Issue("dataset.overlength", text, line=line)


def _nothing_left(stats: PrepareStats, limit: int) -> Issue:
    if stats.read_row_count == 0 and stats.bad_row_count == 0:
        return Issue("dataset.no_rows", "the file has no rows")
    if stats.read_row_count == 0:
        text = f"all {stats.bad_row_count} rows are bad, so nothing is left; the first: {stats.bad_rows[0]}"
        return Issue("dataset.no_rows", text)
    text = (
        f"none of the {stats.read_row_count} rows has a token to learn within qlora.max_seq_length {limit} "
        f"(the longest row has {stats.longest_row_tokens}); raise the length or shorten the prompts"
    )
    return Issue("dataset.all_truncated", text)


def _too_few_trained(stats: PrepareStats, limit: int) -> Issue:
    text = (
        f"{stats.untrained_row_count} of {stats.read_row_count} rows have no token to learn within "
        f"qlora.max_seq_length {limit}, more than {MAX_UNTRAINED_RATIO:.0%}; give them an answer of weight "
        "1, raise the length, or set dataset.on_bad_row to drop to go on without them"
    )
    return Issue("dataset.too_few_trained", text)
