"""Rows and tokens of a job's files, told from what was prepared before or from a sample of the rows.

Tokens are exact where all rows were counted; else they are counted in the first rows of each file, and the
whole is told from these with an error.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from luthier.planning.facts import TokenFacts
from luthier.spec import PreparedSplit

SAMPLED_ROWS = 1000
_CONFIDENCE = 1.96


@dataclass(frozen=True)
class Counted:
    """One file of a job: its rows that can be trained on, and their tokens; fractions where estimated.

    `disagreements` are sentences on where the template and the model differ, as the measurement found them.
    """

    row_count: float
    token_count: float
    trained_token_count: float
    longest: int
    truncated_row_count: float = 0.0
    relative_error: float = 0.0
    is_exact: bool = True
    disagreements: tuple[str, ...] = ()


def counted_exactly(split: PreparedSplit, stats: Mapping[str, Any]) -> Counted:
    """What preparation has counted."""
    return Counted(
        row_count=split.row_count,
        token_count=split.token_count,
        trained_token_count=split.trained_token_count,
        longest=split.longest_row_tokens or stats.get("longest_row_tokens", 0),
        truncated_row_count=stats.get("truncated_row_count", 0),
    )


def counted_by_sample(report: Mapping[str, Any], row_count: int, max_seq_length: int) -> Counted:
    """What a measurement says about a file of `row_count` rows.

    The error is that of the mean length at 95 % confidence, from the spread in the sample.
    """
    measured, bad = report["measured_row_count"], report.get("bad_row_count", 0)
    dropped = report.get("overlength_row_count", 0) + report.get("untrained_row_count", 0)
    kept, seen = measured - dropped, max(1, measured + bad)
    is_exact = bool(report["is_exact"])
    scale = 1.0 if is_exact else row_count / seen
    return Counted(
        row_count=kept * scale,
        token_count=report["token_count"] * scale,
        trained_token_count=report["trained_token_count"] * scale,
        longest=min(report["longest"], max_seq_length),
        truncated_row_count=report.get("truncated_row_count", 0) * scale,
        relative_error=0.0 if is_exact or kept < 1 else _error_of_mean(report["histogram"], max_seq_length),
        is_exact=is_exact,
        disagreements=tuple(report.get("disagreements", ())),
    )


def token_facts(
    train: Sequence[tuple[Counted, float]], validation: Counted | None, max_rows: int | None
) -> TokenFacts | None:
    """The files of a job with their weights, added up; None where no row is left to train on.

    Args:
        max_rows: `dataset.max_samples`.
    """
    shares = [
        (file, weight * (min(1.0, max_rows / file.row_count) if max_rows and not file.is_exact else 1.0))
        for file, weight in train
        if file.row_count > 0
    ]
    row_count = round(sum(file.row_count * share for file, share in shares))
    token_count = round(sum(file.token_count * share for file, share in shares))
    if row_count < 1 or token_count < 1:
        return None
    return TokenFacts(
        row_count=row_count,
        token_count=token_count,
        trained_token_count=round(sum(file.trained_token_count * share for file, share in shares)),
        longest=max(1, *(file.longest for file, _ in shares)),
        truncated_row_count=round(sum(file.truncated_row_count * share for file, share in shares)),
        is_exact=all(file.is_exact for file, _ in shares),
        relative_error=max(file.relative_error for file, _ in shares),
        validation_row_count=round(validation.row_count) if validation else 0,
        validation_token_count=round(validation.token_count) if validation else 0,
        disagreements=tuple(dict.fromkeys(text for file, _ in shares for text in file.disagreements)),
    )


def _error_of_mean(histogram: Mapping[str, Any], max_seq_length: int) -> float:
    """Half the width of the interval of the mean, over the mean; rows lie evenly in their bins."""
    edges = [min(edge, max_seq_length) for edge in histogram["edges"]]
    behind = [*edges[1:], min(2 * edges[-1], max_seq_length)]
    middles = [(low + high) / 2 for low, high in zip(edges, behind, strict=True)]
    counts = histogram["counts"]
    total = sum(counts)
    mean = sum(count * middle for count, middle in zip(counts, middles, strict=True)) / max(1, total)
    if total < 2 or mean <= 0:
        return 1.0
    within = [(high - low) ** 2 / 12 for low, high in zip(edges, behind, strict=True)]
    squares = sum(
        count * ((middle - mean) ** 2 + inner)
        for count, middle, inner in zip(counts, middles, within, strict=True)
    )
    return float(min(1.0, _CONFIDENCE * math.sqrt(squares / (total - 1) / total) / mean))
