"""Runs a piece of work some times and keeps the best, in numbers that two tools can be compared by."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Result:
    """What one tool did with one file.

    Attributes:
        seconds: wall time of the fastest repeat.
        cpu_seconds: processor time of the repeat that took the least of it, child processes counted.
        megabytes_per_second, rows_per_second: of the file, by one of these two times.
        tokens: that came out, where that was the work.
    """

    what: str
    seconds: float
    cpu_seconds: float
    megabytes_per_second: float
    rows_per_second: float
    tokens: int | None = None


def measured(
    what: str,
    work: Callable[[], None],
    *,
    size: int,
    row_count: int,
    repeats: int,
    rate_by: Literal["cpu", "wall"],
    tokens: Callable[[], int] | None = None,
) -> Result:
    """Run something some times and keep the best.

    Args:
        size: of the file, in bytes.
        tokens: counts what came out, when all is done.
    """
    walls, cpus = [], []
    for _ in range(repeats):
        wall, cpu = time.perf_counter(), _cpu_seconds()
        work()
        walls.append(time.perf_counter() - wall)
        cpus.append(_cpu_seconds() - cpu)
    best = min(cpus if rate_by == "cpu" else walls)
    count = None if tokens is None else tokens()
    return Result(what, min(walls), min(cpus), size / best / 1e6, row_count / best, count)


def _cpu_seconds() -> float:
    """Of this process and of its children that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system
