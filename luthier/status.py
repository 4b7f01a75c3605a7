"""The states of a job, the moves between them, and the words that clients see.

Every change of state in the service goes through `MOVES`; a state that is not listed there as a target
cannot be reached. Clients of OpenAI's API wait on six words only (`public_status`); the finer truth of a
running job stands in its phase. This module knows no database and no clock.
"""

from enum import StrEnum


class Kind(StrEnum):
    """What a job does. All kinds share one table, one queue discipline and one run folder."""

    TRAIN = "train"
    PREPARE = "prepare"
    VALIDATE = "validate"


class Queue(StrEnum):
    """Which agents may claim a job: `train` needs a device, `cpu` does not."""

    TRAIN = "train"
    CPU = "cpu"


QUEUE_OF_KIND = {Kind.TRAIN: Queue.TRAIN, Kind.PREPARE: Queue.CPU, Kind.VALIDATE: Queue.CPU}


class DesiredState(StrEnum):
    """What the owner wants of a job; the supervisor reads it every second."""

    RUN = "run"
    PAUSE = "pause"
    CANCEL = "cancel"


class BlockedOn(StrEnum):
    """What a blocked job waits for; it goes on by itself once that is there again."""

    DISK = "disk"
    QUOTA = "quota"
    MODEL = "model"
    SECRET = "secret"  # noqa: S105, a word and no password


class State(StrEnum):
    """The states; docs/architecture.md draws the moves between them."""

    VALIDATING = "validating"
    QUEUED = "queued"
    STARTING = "starting"
    RUNNING = "running"
    FINALIZING = "finalizing"
    SUCCEEDED = "succeeded"
    RETRY_WAIT = "retry_wait"
    PAUSED = "paused"
    BLOCKED = "blocked"
    CANCELLED = "cancelled"
    FAILED = "failed"
    QUARANTINED = "quarantined"


LEASED = frozenset({State.STARTING, State.RUNNING, State.FINALIZING})
FINAL = frozenset({State.SUCCEEDED, State.CANCELLED, State.FAILED, State.QUARANTINED})
LIVE = frozenset(State) - FINAL

# Where a run may leave its job: done, as its owner wished, to be tried again, or given up.
_AFTER_A_RUN = frozenset(
    {
        State.QUEUED,
        State.RETRY_WAIT,
        State.PAUSED,
        State.BLOCKED,
        State.CANCELLED,
        State.FAILED,
        State.QUARANTINED,
    }
)

MOVES: dict[State, frozenset[State]] = {
    State.VALIDATING: frozenset({State.QUEUED, State.CANCELLED, State.FAILED}),
    State.QUEUED: frozenset({State.STARTING, State.PAUSED, State.BLOCKED, State.CANCELLED, State.FAILED}),
    State.STARTING: _AFTER_A_RUN | {State.RUNNING},
    State.RUNNING: _AFTER_A_RUN | {State.FINALIZING},
    State.FINALIZING: _AFTER_A_RUN | {State.SUCCEEDED},
    State.RETRY_WAIT: frozenset({State.QUEUED, State.PAUSED, State.CANCELLED, State.FAILED}),
    State.PAUSED: frozenset({State.QUEUED, State.CANCELLED, State.FAILED}),
    State.BLOCKED: frozenset({State.QUEUED, State.PAUSED, State.CANCELLED, State.FAILED}),
    **{state: frozenset() for state in FINAL},
}


class Phase(StrEnum):
    """What a job is doing inside its state; shown to people, decided on by nobody."""

    VALIDATING_FILES = "validating_files"
    TOKENIZING = "tokenizing"
    WAITING = "waiting"
    DOWNLOADING_MODEL = "downloading_model"
    LOADING_MODEL = "loading_model"
    TRAINING = "training"
    EVALUATING = "evaluating"
    SAVING = "saving"
    CANCELLING = "cancelling"
    PAUSING = "pausing"
    BACKING_OFF = "backing_off"


_PUBLIC = {
    State.VALIDATING: "validating_files",
    State.QUEUED: "queued",
    State.RETRY_WAIT: "queued",
    State.BLOCKED: "queued",
    State.STARTING: "running",
    State.RUNNING: "running",
    State.FINALIZING: "running",
    State.PAUSED: "paused",
    State.SUCCEEDED: "succeeded",
    State.CANCELLED: "cancelled",
    State.FAILED: "failed",
    State.QUARANTINED: "failed",
}


def public_status(state: State) -> str:
    """The word of OpenAI's API for a state."""
    return _PUBLIC[state]


def may_move(before: State, after: State) -> bool:
    """Whether a job in `before` may go to `after`; final states go nowhere."""
    return after in MOVES[before]
