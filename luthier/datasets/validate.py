"""Validation of a file: read it whole, or its first megabyte, and report every kind of mistake.

Lines of JSON go through a sieve that lets clean rows pass at over 100 MB/s; all others, and all other
containers, go through the exact parser. Memory does not grow with the file. It knows no model: what a chat
template refuses shows in preparation.
"""

from collections.abc import Callable
from pathlib import Path

from luthier.datasets.compression import MAX_DECODED_BYTES
from luthier.datasets.containers import FileHead, OpenDataset, is_plain_text, open_dataset
from luthier.datasets.examples import DatasetError, Format, Issue
from luthier.datasets.fast_rows import Sieve
from luthier.datasets.fingerprints import fingerprint_of
from luthier.datasets.reading import PLAIN, ExaminedRow, Examiner, Reading, read_examples
from luthier.datasets.report import Ledger, ValidationReport
from luthier.datasets.report import failure_message as failure_message  # noqa: PLC0414
from luthier.datasets.row_tally import RowTally
from luthier.datasets.rows import MAX_ROWS, LineChunk, RawRow

HEAD_BYTES = 1024 * 1024
# Fewer rows than this teach next to nothing; OpenAI asks for as many.
MIN_ROWS = 10

_BATCH_ROWS = 1000

# Called with the bytes of the stored file that were read so far, and its size.
OnProgress = Callable[[int, int], None]


def validate_file(
    path: Path,
    filename: str,
    on_progress: OnProgress | None = None,
    *,
    reading: Reading = PLAIN,
    against: tuple[Path, Reading] | None = None,
) -> ValidationReport:
    """Read a file whole and report on it.

    Args:
        filename: what the user calls it; stands in the report.
        on_progress: called about every MiB or thousand rows.
        reading: how rows become examples.
        against: the validation file and how it is read; its rows should not be in this one.
    Raises:
        OSError: the file cannot be read.
    """
    validation = _Validation(path, filename, reading, is_whole=True, on_progress=on_progress)
    if against is not None:
        validation.remember(*against)
    validation.run()
    return validation.report()


def check_head(path: Path, filename: str, *, reading: Reading = PLAIN) -> ValidationReport:
    """Look at the first MiB of a text; a last row that is cut there is not judged.

    Of Parquet and of packed files the first bytes are looked at, and no rows: they decode to more than they
    are.

    Raises:
        OSError: the file cannot be read.
    """
    validation = _Validation(path, filename, reading, is_whole=False)
    validation.run()
    return validation.report()


class _Validation:
    """One look at one file."""

    def __init__(
        self,
        path: Path,
        filename: str,
        reading: Reading,
        *,
        is_whole: bool,
        on_progress: OnProgress | None = None,
    ) -> None:
        self._path, self._filename, self._reading, self._is_whole = path, filename, reading, is_whole
        self._size_bytes = path.stat().st_size
        self._on_progress = on_progress
        self._head: FileHead | None = None
        self._format: Format | None = None
        self._row_count = self._line_count = 0
        self._findings, self._examiner = Ledger(), Examiner(reading)
        self._rows = RowTally(self._findings)

    def remember(self, validation_file: Path, reading: Reading) -> None:
        """Note the rows of the validation file."""
        try:
            for _, example in read_examples(validation_file, reading, lambda _issue: None):
                self._rows.held_out.find_repeated([fingerprint_of(example)])
        except DatasetError as error:
            text = f"the validation file could not be compared: {error.issue.message}"
            self._findings.set_warning("split.unchecked", 1, text)

    def run(self) -> None:
        """Look at the rows."""
        limit = self._reading.max_decoded_bytes if self._is_whole else MAX_DECODED_BYTES
        try:
            with open_dataset(self._path, self._reading.wanted_columns, limit) as dataset:
                self._read(dataset)
        except DatasetError as error:
            self._findings.add_errors(error.issue)
            return
        if self._is_whole:
            self._judge_counts(dataset.head)

    def report(self) -> ValidationReport:
        """What was found."""
        findings, head = self._findings, self._head
        self._rows.tell()
        return ValidationReport(
            valid=not findings.error_counts,
            filename=self._filename,
            size_bytes=self._size_bytes,
            container=head.container if head else None,
            compression=head.compression if head else None,
            format=self._format,
            row_count=self._row_count,
            line_count=None if head is None or head.container == "parquet" else self._line_count,
            is_whole=self._is_whole,
            error_count=findings.error_counts.total(),
            error_counts=dict(findings.error_counts),
            errors=findings.errors,
            warnings=findings.warnings,
            statistics=self._rows.statistics(),
        )

    def _read(self, dataset: OpenDataset) -> None:
        self._head = dataset.head
        if not self._is_whole and not is_plain_text(dataset.head.container, dataset.head.compression):
            return
        if dataset.head.has_bom:
            text = "the file begins with a byte order mark, which was passed over"
            self._findings.warn(Issue("encoding.bom_stripped", text))
        is_sifted = self._is_whole and self._reading.is_plain and self._reading.max_rows is None
        if is_sifted and dataset.head.container == "jsonl":
            self._read_chunks(dataset)
        else:
            self._read_rows(dataset)

    def _read_chunks(self, dataset: OpenDataset) -> None:
        """Many lines at a time, through the sieve as soon as the format is known."""
        sieve: Sieve | None = None
        for chunk in dataset.chunks():
            lines = chunk.data.removesuffix(b"\n").split(b"\n")
            start = 0
            while sieve is None and start < len(lines):
                self._examine_lines(chunk, lines, [start])
                start += 1
                first = self._examiner.first
                sieve = Sieve(first[0], lines[start - 1 :]) if first else None
            if sieve is not None:
                self._sift(chunk, lines, start, sieve)
            self._rows.flush()
            self._line_count = chunk.line + len(lines) - 1
            self._tell_progress(dataset)

    def _sift(self, chunk: LineChunk, lines: list[bytes], start: int, sieve: Sieve) -> None:
        sifted = sieve.sift(lines[start:] if start else lines)
        self._count_rows(len(sifted.clean))
        self._rows.add_clean(sifted, chunk.line + start)
        self._examine_lines(chunk, lines, [start + position for position in sifted.suspects])

    def _examine_lines(self, chunk: LineChunk, lines: list[bytes], positions: list[int]) -> None:
        for position in positions:
            data = lines[position]
            if data and not data.isspace():
                self._count(self._examiner.examine(RawRow(chunk.line + position, data, 0, chunk.is_last)))

    def _read_rows(self, dataset: OpenDataset) -> None:
        for number, row in enumerate(dataset.rows(), start=1):
            if self._reading.max_rows is not None and number > self._reading.max_rows:
                return
            if not self._is_whole and (row.end > HEAD_BYTES or row.is_last):
                return
            self._count(self._examiner.examine(row))
            self._line_count = max(self._line_count, row.line)
            if number % _BATCH_ROWS == 0:
                self._rows.flush()
                self._tell_progress(dataset)

    def _count(self, row: ExaminedRow) -> None:
        self._count_rows(1)
        self._format = self._format or row.format
        self._findings.add_errors(*row.errors)
        for issue in row.warnings:
            self._findings.warn(issue)
        if row.example is not None:
            self._rows.add(row.line, row.example)

    def _count_rows(self, count: int) -> None:
        self._row_count += count
        if self._row_count > MAX_ROWS:
            raise DatasetError(Issue("dataset.too_large", f"the file has over {MAX_ROWS} rows; split it"))

    def _judge_counts(self, head: FileHead) -> None:
        """What only the whole file shows."""
        self._rows.flush()
        if self._row_count == 0:
            whys = {
                "json": "its array is empty",
                "csv": "it has a header and 0 data rows",
                "parquet": "its tables are empty",
            }
            blank = f"all of its {self._line_count} lines" if self._line_count else "all of its lines"
            why = whys.get(head.container, f"{blank} are blank")
            self._findings.add_errors(Issue("dataset.no_rows", f"the file has no rows: {why}"))
            return
        if self._row_count < MIN_ROWS:
            text = f"The file has {self._row_count} rows; with fewer than {MIN_ROWS} there is little to learn"
            self._findings.set_warning("dataset.too_small", 1, text)
        if self._row_count >= MIN_ROWS and self._rows.repeat_count == self._row_count - 1:
            text = f"all {self._row_count} rows are the same; was the file written in a loop?"
            self._findings.add_errors(Issue("dataset.all_duplicates", text))

    def _tell_progress(self, dataset: OpenDataset) -> None:
        if self._on_progress is not None:
            self._on_progress(dataset.stored_offset, self._size_bytes)
