"""What becomes of a job whose run ended early: tried again at once or later, set aside, or given up.

`decide` is pure: the row as it stands, how the run ended and the limits go in, the next state with its
counters comes out; `endings` writes it. There are two budgets, one for what machines do to a job and one for
what fails for a passing reason, and a count of deaths that finds the job which brings its own process down.
A new checkpoint sets all three back (`runs.record_checkpoint`), so a job that gets on is never given up.
"""

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Self

from luthier.errors import Failure
from luthier.settings import Settings
from luthier.status import BlockedOn, DesiredState, State
from luthier.tables import Job


class Ending(StrEnum):
    """How a run ended that neither succeeded nor failed for good; stands in `runs.outcome`."""

    LOST = "lost"
    CRASHED = "crashed"
    HUNG = "hung"
    UNAVAILABLE = "unavailable"
    IO_ERROR = "io_error"
    OUT_OF_HOST_MEMORY = "host_oom"
    GPU_FAULT = "gpu_fault"
    STOPPED = "stopped"
    DISK_FULL = "disk_full"
    BLOCKED = "blocked"


_DEATHS = frozenset({Ending.CRASHED, Ending.HUNG})
_INFRA_FIRST_SECONDS, _INFRA_LONGEST_SECONDS = 15, 900
_USER_FIRST_SECONDS, _USER_LONGEST_SECONDS = 60, 3600
# What is not there again after so long would only block the job anew.
_BLOCKED_SECONDS = 30.0
# Nobody tells when a model can be had again: it is asked for, more and more seldom.
_MODEL_FIRST_SECONDS, _MODEL_LONGEST_SECONDS = 60, 900

# The code that a job fails with when the last of its runs ended so, and what happened in words.
_GIVEN_UP: dict[Ending, tuple[str, str]] = {
    Ending.LOST: ("worker_lost", "its worker was lost"),
    Ending.CRASHED: ("process_crashed", "its process crashed"),
    Ending.HUNG: ("process_hung", "its process hung"),
    Ending.UNAVAILABLE: ("remote_unavailable", "something remote did not answer"),
    Ending.IO_ERROR: ("io_error", "a disk failed"),
    Ending.OUT_OF_HOST_MEMORY: ("out_of_host_memory", "the host ran out of memory"),
    Ending.GPU_FAULT: ("gpu_fault", "its GPU failed"),
}


@dataclass(frozen=True)
class Limits:
    """At which count a job is given up; the names are those of the settings."""

    max_infra_restarts: int
    max_user_failures: int
    max_deaths: int

    @classmethod
    def of(cls, settings: Settings) -> Self:
        return cls(settings.max_infra_restarts, settings.max_user_failures, settings.max_deaths)


@dataclass(frozen=True)
class Counters:
    """The columns of a job that count its bad runs since the last checkpoint that was new."""

    infra_restarts: int = 0
    user_failures: int = 0
    no_progress_deaths: int = 0

    @classmethod
    def of(cls, job: Job) -> Self:
        return cls(job.infra_restarts, job.user_failures, job.no_progress_deaths)


@dataclass(frozen=True)
class Decision:
    """Where a job goes after a run.

    Attributes:
        wait_seconds: from now on, in `retry_wait`; in `blocked`, at least.
        is_in_front: it goes before all jobs of its priority that wait.
        blocked_on: in `blocked` alone.
        failure: in `failed` and `quarantined` alone.
    """

    state: State
    counters: Counters
    wait_seconds: float = 0.0
    is_in_front: bool = False
    blocked_on: BlockedOn | None = None
    failure: Failure | None = None


def decide(
    job: Job, ending: Ending, limits: Limits, jitter: float, *, message: str = "", is_repeated: bool = False
) -> Decision:
    """What becomes of a job whose run ended so. What its owner wants goes first.

    Args:
        jitter: in [0, 1); the share of the longest wait that is waited.
        message: of this ending, for the failure of a job that is given up.
        is_repeated: whether the run before it ended in the same way, without a new checkpoint since.
    """
    if job.desired_state != DesiredState.RUN or ending == Ending.STOPPED:
        return after_stop(job)
    if ending == Ending.DISK_FULL:
        return blocked(job, BlockedOn.DISK)
    counters = _counted(Counters.of(job), ending)
    if given_up := _given_up(counters, ending, limits, message, is_repeated=is_repeated):
        return given_up
    seconds = jitter * _longest_wait_seconds(counters, ending)
    return Decision(State.RETRY_WAIT if seconds > 0 else State.QUEUED, counters, wait_seconds=seconds)


def after_stop(job: Job) -> Decision:
    """Where a job goes whose run was asked to end: as its owner wishes, else in front of the queue."""
    state = {
        DesiredState.CANCEL: State.CANCELLED,
        DesiredState.PAUSE: State.PAUSED,
        DesiredState.RUN: State.QUEUED,
    }[DesiredState(job.desired_state)]
    return Decision(state, Counters.of(job), is_in_front=state == State.QUEUED)


def blocked(job: Job, blocked_on: BlockedOn, *, blocked_before: int = 0) -> Decision:
    """Where a job goes that waits for something; no budget is used, and its owner's wish goes first.

    Args:
        blocked_before: runs right before this one that ended so, too.
    """
    if job.desired_state != DesiredState.RUN:
        return after_stop(job)
    seconds = _BLOCKED_SECONDS
    if blocked_on == BlockedOn.MODEL:
        seconds = float(min(_MODEL_FIRST_SECONDS * 2**blocked_before, _MODEL_LONGEST_SECONDS))
    return Decision(State.BLOCKED, Counters.of(job), wait_seconds=seconds, blocked_on=blocked_on)


def _counted(counters: Counters, ending: Ending) -> Counters:
    if ending == Ending.UNAVAILABLE:
        return replace(counters, user_failures=counters.user_failures + 1)
    return replace(
        counters,
        infra_restarts=counters.infra_restarts + 1,
        no_progress_deaths=counters.no_progress_deaths + (ending in _DEATHS),
    )


def _given_up(
    counters: Counters, ending: Ending, limits: Limits, message: str, *, is_repeated: bool
) -> Decision | None:
    """The end of a job that is not tried again; None where it is."""
    if ending in _DEATHS and counters.no_progress_deaths >= limits.max_deaths:
        text = f"The job is set aside: {counters.no_progress_deaths} runs died without a new checkpoint"
        return Decision(State.QUARANTINED, counters, failure=_failure(ending, text, message))
    count = counters.user_failures if ending == Ending.UNAVAILABLE else counters.infra_restarts
    limit = limits.max_user_failures if ending == Ending.UNAVAILABLE else limits.max_infra_restarts
    if count >= limit or (ending == Ending.OUT_OF_HOST_MEMORY and is_repeated):
        text = f"The job is not tried again after {count} runs that ended early without a new checkpoint"
        return Decision(State.FAILED, counters, failure=_failure(ending, text, message))
    return None


def _failure(ending: Ending, text: str, message: str) -> Failure:
    code, happened = _GIVEN_UP[ending]
    last = f": {message}" if message else ""
    return Failure(
        code,
        f"{text}. The last time {happened}{last}. Once the cause is gone, retry the job: it goes on from its "
        "last checkpoint",
    )


def _longest_wait_seconds(counters: Counters, ending: Ending) -> float:
    """The wait that jitter takes its share of; after the first loss to a machine there is none."""
    if ending == Ending.UNAVAILABLE:
        return float(min(_USER_FIRST_SECONDS * 2 ** (counters.user_failures - 1), _USER_LONGEST_SECONDS))
    if counters.infra_restarts < 2:
        return 0.0
    return float(min(_INFRA_FIRST_SECONDS * 2 ** (counters.infra_restarts - 2), _INFRA_LONGEST_SECONDS))
