"""What a child process can report: one JSON object a line in `events.jsonl`, the only channel out of a run.

Children append with `EventWriter`; the supervisor reads with `read_events`, which takes only whole lines and
tells the offset to go on from. Readers ignore fields and types that they do not know, so that an older
supervisor survives a newer child. Numbers are finite: what is not, is left out.
"""

import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

MAX_LINE_BYTES = 256 * 1024
# The last line carries the result: a preview of a hundred long rows has some 20 MiB.
MAX_RESULT_BYTES = 64 * 1024 * 1024
_RESULT_MARK = b'"type":"run_ended"'
# The mark stands behind the time, at the beginning of a line.
_MARK_WITHIN_BYTES = 100


class Event(BaseModel):
    """A fact that happened, in the past tense. `at` is Unix seconds, set by the writer."""

    model_config = ConfigDict(extra="ignore", frozen=True, protected_namespaces=())
    at: float = 0.0


class RunStarted(Event):
    """The child read its spec. `resumed_from_step` is 0 for a run from the start."""

    type: Literal["run_started"] = "run_started"
    resumed_from_step: int = 0
    device: str = "cpu"
    versions: dict[str, str] = {}


class PhaseChanged(Event):
    """`phase` is a word of `status.Phase`."""

    type: Literal["phase_changed"] = "phase_changed"
    phase: str


class PlanChosen(Event):
    """How the run will be done, and why; `summary` is one line for people.

    `total_steps` is exact here, also where the job was planned with an estimate. `memory_bytes` is the peak
    that is expected; `packing_efficiency` the share of the room in packed rows that holds tokens, 0 to 1.
    """

    type: Literal["plan_chosen"] = "plan_chosen"
    engine: str
    precision: str
    total_steps: int
    trainable_parameter_count: int
    parameter_count: int
    train_row_count: int
    eval_row_count: int
    gradient_checkpointing: bool
    summary: str
    engine_reason: str = ""
    memory_bytes: int | None = None
    packing_efficiency: float | None = None


class ProgressMade(Event):
    """How far work without steps has come: preparation, validation, a download."""

    type: Literal["progress_made"] = "progress_made"
    done: int
    total: int | None = None
    unit: str


class StepLogged(Event):
    """Metrics since the last such line.

    Both counts are from step 0 of the job: `trained_token_count` of tokens that the loss is taken over,
    `token_count` of all but padding.
    """

    type: Literal["step_logged"] = "step_logged"
    step: int
    total_steps: int
    epoch: float
    train_loss: float | None = None
    train_mean_token_accuracy: float | None = None
    learning_rate: float | None = None
    grad_norm: float | None = None
    tokens_per_second: float | None = None
    seconds_remaining: float | None = None
    elapsed_seconds: float | None = None
    trained_token_count: int = 0
    token_count: int = 0
    peak_memory_bytes: int | None = None


class EvalLogged(Event):
    """One pass over the validation split after `step` steps; step 0 is the base model."""

    type: Literal["eval_logged"] = "eval_logged"
    step: int
    total_steps: int
    epoch: float | None = None
    eval_loss: float | None = None
    eval_mean_token_accuracy: float | None = None
    eval_seconds: float | None = None
    elapsed_seconds: float | None = None
    seconds_remaining: float | None = None


class SampleGenerated(Event):
    """One answer of the model being trained; at step 0 it is the base model's.

    `index` numbers the prompts, from 0, the same at every step; `reference` is the answer in the data.
    """

    type: Literal["sample_generated"] = "sample_generated"
    step: int
    index: int = 0
    prompt: str
    text: str
    reference: str | None = None


class CheckpointSaved(Event):
    """A whole checkpoint lies at `path`, relative to the run folder, manifest written.

    `keeps_older` asks that the one before it stays, whatever the limit: nobody has found this one good yet.
    """

    type: Literal["checkpoint_saved"] = "checkpoint_saved"
    step: int
    path: str
    keeps_older: bool = False


class WarningRaised(Event):
    """Something that the user should know and that did not stop the run."""

    type: Literal["warning_raised"] = "warning_raised"
    code: str
    message: str
    data: dict[str, Any] = {}


class RunEnded(Event):
    """The child's last line.

    `outcome` is `done`, `stopped` (asked to, checkpoint written) or `failed`; then `code`, `message` and
    `param` tell why, as in `JobFailure`. `result` is what the kind of work is for: a validation report,
    `PreparedData`, the metrics of a training run.
    """

    type: Literal["run_ended"] = "run_ended"
    outcome: Literal["done", "stopped", "failed"]
    step: int = 0
    trained_token_count: int = 0
    code: str | None = None
    message: str | None = None
    param: str | None = None
    details: list[dict[str, Any]] = []
    result: dict[str, Any] = {}


AnyEvent = Annotated[
    RunStarted
    | PhaseChanged
    | PlanChosen
    | ProgressMade
    | StepLogged
    | EvalLogged
    | SampleGenerated
    | CheckpointSaved
    | WarningRaised
    | RunEnded,
    Field(discriminator="type"),
]
_READER: TypeAdapter[AnyEvent] = TypeAdapter(AnyEvent)


class EventWriter:
    """Appends events to a file, each in one write, so that a reader never sees half a line twice.

    Args:
        path: `events.jsonl`; made if missing.
        clock: Unix seconds.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._clock = clock

    def write(self, event: Event) -> None:
        """Append one event, stamped now."""
        stamped = event.model_copy(update={"at": self._clock()} | _finite(event))
        os.write(self._descriptor, stamped.model_dump_json().encode() + b"\n")

    def close(self) -> None:
        os.close(self._descriptor)


def read_events(path: Path, offset: int) -> Iterator[tuple[AnyEvent, int]]:
    """The whole lines of `path` after byte `offset`, each with the offset behind it.

    Lines that are too long, broken or of an unknown type are skipped. A missing file has no lines.
    """
    if not path.exists():
        return
    with path.open("rb") as file:
        file.seek(offset)
        for line in file:
            if not line.endswith(b"\n"):
                return
            offset += len(line)
            is_result = _RESULT_MARK in line[:_MARK_WITHIN_BYTES]
            if len(line) > (MAX_RESULT_BYTES if is_result else MAX_LINE_BYTES):
                continue
            try:
                yield _READER.validate_json(line), offset
            except ValidationError:
                continue


def _finite(event: Event) -> dict[str, Any]:
    """None in the place of every float that is not finite."""
    values = ((name, getattr(event, name)) for name in type(event).model_fields)
    return {name: None for name, value in values if isinstance(value, float) and not math.isfinite(value)}
