"""How numbers are spread, in constant memory: exact up to 64, above that within 1/32 of the number.

`Histogram` takes numbers as they come and gives a `Distribution` at the end. It serves validation, which
may not keep a number a row; `measure` keeps the lengths, and is exact.
"""

from collections import Counter
from collections.abc import Iterable

from pydantic import BaseModel, ConfigDict

_EXACT_BITS = 6


class Distribution(BaseModel):
    """Some numbers in short; percentiles are within 1/32 of the number above 64, all else is exact."""

    model_config = ConfigDict(frozen=True)

    count: int
    total: int
    minimum: int
    mean: float
    maximum: int
    p50: int
    p90: int
    p99: int


class Histogram:
    """Counts of whole numbers from 0 up, in buckets that widen with them."""

    def __init__(self) -> None:
        self._buckets: Counter[int] = Counter()
        self._count = self._total = self._maximum = 0
        self._minimum: int | None = None

    def add_all(self, values: Iterable[int]) -> None:
        """Count some numbers, each at least 0."""
        counts = Counter(values)
        if not counts:
            return
        low = min(counts)
        self._minimum = low if self._minimum is None else min(low, self._minimum)
        self._maximum = max(self._maximum, *counts)
        for value, count in counts.items():
            self._buckets[_floor(value)] += count
            self._count += count
            self._total += value * count

    def distribution(self) -> Distribution | None:
        """What was counted; None when nothing was."""
        if self._minimum is None:
            return None
        p50, p90, p99 = (self._percentile(share) for share in (0.5, 0.9, 0.99))
        return Distribution(
            count=self._count,
            total=self._total,
            minimum=self._minimum,
            mean=round(self._total / self._count, 2),
            maximum=self._maximum,
            p50=p50,
            p90=p90,
            p99=p99,
        )

    def _percentile(self, share: float) -> int:
        """The least number that at least this share of all does not exceed, as its bucket begins."""
        seen = 0
        for floor in sorted(self._buckets):
            seen += self._buckets[floor]
            if seen >= share * self._count:
                return max(floor, self._minimum or 0)
        return self._maximum


def _floor(value: int) -> int:
    """Where the bucket of a number begins: its highest six bits."""
    shift = max(0, value.bit_length() - _EXACT_BITS)
    return value >> shift << shift
