"""The order of a project's queue: one number a job, from its priority and its place within that priority.

A place is the time of submission in microseconds; a job that is put in front gets one before all of those, so
that jobs in front keep their order among themselves. One index over one column then serves claims, positions
and lists.
"""

from datetime import UTC, datetime, timedelta

MIN_PRIORITY, MAX_PRIORITY = -100, 100
# Of work that somebody waits for; all other work of the cpu queue has a lower one.
ERRAND_PRIORITY = 10
# Microseconds since 1970 stay below 2^51 until the year 2041, and what stands in front above -2^53.
_PRIORITY_UNIT = 1 << 55
_IN_FRONT = 1 << 53
# Keys of errands are below it, and all others of the cpu queue above.
END_OF_ERRANDS = -ERRAND_PRIORITY * _PRIORITY_UNIT + _PRIORITY_UNIT // 2
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def queue_key(priority: int, submitted_at: datetime, *, is_in_front: bool = False) -> int:
    """The place of a job in its queue; smaller goes first.

    Args:
        priority: -100 to 100; a higher one goes first.
        is_in_front: before all jobs of this priority that are not.
    """
    place = (submitted_at - _EPOCH) // timedelta(microseconds=1)
    return place - priority * _PRIORITY_UNIT - (_IN_FRONT if is_in_front else 0)


def with_priority(key: int, before: int, after: int) -> int:
    """The key of a job whose priority changes and whose place within it stays."""
    return key + (before - after) * _PRIORITY_UNIT


def priority_band(priority: int) -> tuple[int, int]:
    """The least key that a job of this priority may have, and the first that none has."""
    middle = -priority * _PRIORITY_UNIT
    return middle - _PRIORITY_UNIT // 2, middle + _PRIORITY_UNIT // 2
