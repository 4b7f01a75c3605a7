"""How many tokens a file has for a model, and what its longest length would cost.

`measure` goes the way of preparation without writing anything, so its numbers are those that a job would
have. Bad rows are counted, not refused: whether a file is valid is another question.
"""

import bisect
import itertools
from collections.abc import Sequence
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from luthier.datasets.prepare import OnProgress, RowStream
from luthier.datasets.template_choice import disagreements, resolve_template
from luthier.datasets.tokenizer import ModelTokenizer
from luthier.spec import DatasetRequest, SourceFile

_EDGES = (0, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072)
_PERCENTS = (5, 25, 50, 75, 90, 95, 99)

Ratio = Annotated[float, Field(ge=0, le=1)]


class TokenHistogram(BaseModel):
    """Rows by length: `counts[i]` have at least `edges[i]` and less than `edges[i + 1]` tokens.

    The last count is of all from the last edge on.
    """

    model_config = ConfigDict(frozen=True)

    edges: tuple[int, ...]
    counts: tuple[int, ...]


class TokenReport(BaseModel):
    """What the rows of a file are for a model.

    Attributes:
        row_count: of the file, good and bad; None where only the first were looked at.
        measured_row_count: good rows that were encoded.
        is_exact: all rows were looked at (as far as `max_samples` goes).
        token_count: of the rows kept, after cuts.
        trained_token_count: of these, the ones learnt.
        histogram, longest, percentiles: of rows before any cut; `percentiles` from percent to tokens.
        truncated_ratio: rows that are cut, of the measured.
        lost_answer_ratio: answers of which a trained token is lost, of all trained on.
        overlength_row_count, untrained_row_count, bad_row_count: dropped, for being too long, for having
            nothing to learn, for mistakes in them.
        disagreements: sentences on where the template that was asked for and the model differ.
    """

    model_config = ConfigDict(frozen=True)

    row_count: int | None
    measured_row_count: int
    is_exact: bool
    token_count: int
    trained_token_count: int
    histogram: TokenHistogram
    longest: int
    percentiles: dict[int, int]
    truncated_ratio: Ratio
    lost_answer_ratio: Ratio
    truncated_row_count: int
    overlength_row_count: int
    untrained_row_count: int
    bad_row_count: int
    disagreements: tuple[str, ...] = ()


def measure(
    source: SourceFile,
    tokenizer: ModelTokenizer,
    *,
    rules: DatasetRequest,
    max_seq_length: int,
    max_rows: int | None = None,
    on_progress: OnProgress | None = None,
) -> TokenReport:
    """Encode the rows of a file, or the first `max_rows`, and count.

    Raises:
        DatasetError: the file cannot be read on, or there is no such template.
        JobFailure: the model's template is broken.
        OSError: the file cannot be read.
    """
    limits = [limit for limit in (rules.max_samples, max_rows) if limit is not None]
    asked = {"max_samples": min(limits) if limits else None, "on_bad_row": "drop"}
    if rules.overlength == "raise":
        asked["overlength"] = "drop"
    stream = RowStream(source, tokenizer, rules.model_copy(update=asked), max_seq_length, keep_lengths=True)
    token_count = trained_token_count = 0
    for batch in stream.batches():
        kept = [row for _, _, row in batch if row is not None]
        token_count += sum(len(row.ids) for row in kept)
        trained_token_count += sum(len(row.mask) - row.mask.count(0) for row in kept)
        if on_progress is not None:
            on_progress(stream.stats.read_row_count, min(limits) if limits else None)
    stats = stream.stats
    seen = stats.read_row_count + stats.bad_row_count
    is_whole = not limits or seen < min(limits)
    lengths = sorted(stream.lengths or ())
    return TokenReport(
        row_count=seen if is_whole else None,
        measured_row_count=stats.read_row_count,
        is_exact=is_whole or (rules.max_samples is not None and min(limits) == rules.max_samples),
        token_count=token_count,
        trained_token_count=trained_token_count,
        histogram=_histogram(lengths),
        longest=lengths[-1] if lengths else 0,
        percentiles=_percentiles(lengths),
        truncated_ratio=_share(stats.truncated_row_count, stats.read_row_count),
        lost_answer_ratio=_share(stats.lost_answer_count, stats.answer_count),
        truncated_row_count=stats.truncated_row_count,
        overlength_row_count=stats.overlength_row_count,
        untrained_row_count=stats.untrained_row_count,
        bad_row_count=stats.bad_row_count,
        disagreements=disagreements(resolve_template(rules.template, tokenizer, rules.style), tokenizer),
    )


def _histogram(lengths: Sequence[int]) -> TokenHistogram:
    """Up to the edge that the longest row needs."""
    needed = bisect.bisect_right(_EDGES, lengths[-1]) if lengths else 1
    edges = _EDGES[:needed]
    starts = [bisect.bisect_left(lengths, edge) for edge in edges] + [len(lengths)]
    counts = tuple(behind - start for start, behind in itertools.pairwise(starts))
    return TokenHistogram(edges=edges, counts=counts)


def _percentiles(lengths: Sequence[int]) -> dict[int, int]:
    """The length that so many per cent of the rows do not exceed (nearest rank)."""
    if not lengths:
        return {}
    return {percent: lengths[-(-percent * len(lengths) // 100) - 1] for percent in _PERCENTS}


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0
