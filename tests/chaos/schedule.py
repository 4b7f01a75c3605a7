"""The faults of a random run, drawn from a seed: what happens, to whom, for how long, after which pause."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum


class Fault(StrEnum):
    """What can happen in a random run; the words stand in the report."""

    KILL_AGENT = "kill -9 of an agent"
    STOP_AGENT = "SIGSTOP of an agent"
    KILL_TRAINER = "kill -9 of a trainer"
    KILL_API = "kill -9 of the API"
    KILL_DISPATCHER = "kill -9 of the dispatcher"
    KILL_REDIS = "kill -9 of Redis"
    FLUSH_REDIS = "FLUSHALL of Redis"
    STOP_POSTGRES = "Postgres stopped with -m immediate"


@dataclass(frozen=True)
class Planned:
    """One fault to come.

    Attributes:
        draw: in [0, 1); which of those that are there at the time is hit.
        away_seconds: until what was stopped or killed comes back.
        pause_seconds: after the fault before it.
    """

    fault: Fault
    draw: float
    away_seconds: float
    pause_seconds: float


# From the prototype's measurements: an agent that sleeps longer than its lease is worth more than one nap.
_AWAY_SECONDS = {
    Fault.KILL_AGENT: (0.0, 0.5),
    Fault.STOP_AGENT: (1.5, 2.5),
    Fault.KILL_TRAINER: (0.0, 0.0),
    Fault.KILL_API: (0.0, 0.5),
    Fault.KILL_DISPATCHER: (0.0, 1.0),
    Fault.KILL_REDIS: (0.5, 2.0),
    Fault.FLUSH_REDIS: (0.0, 0.0),
    Fault.STOP_POSTGRES: (0.2, 1.0),
}
_PAUSE_SECONDS = (0.3, 1.0)


def draw_schedule(seed: int, counts: dict[Fault, int]) -> Sequence[Planned]:
    """So many of each fault, in an order and with numbers that the seed decides."""
    numbers = random.Random(seed)
    faults = [fault for fault, count in counts.items() for _ in range(count)]
    numbers.shuffle(faults)
    return [
        Planned(
            fault,
            draw=numbers.random(),
            away_seconds=numbers.uniform(*_AWAY_SECONDS[fault]),
            pause_seconds=numbers.uniform(*_PAUSE_SECONDS),
        )
        for fault in faults
    ]
