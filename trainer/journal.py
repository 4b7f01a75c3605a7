"""What a run has measured: told as events at once, and kept for the report and for the next run.

`state` goes into a checkpoint and `restore` takes it back, the sums of a half-filled logging window
included, so that a resumed run logs the same numbers as an unbroken one. Times are those of this process,
added to what earlier runs of the job took.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from luthier.events import EvalLogged, EventWriter, PhaseChanged, StepLogged
from luthier.spec import Hyperparameters
from luthier.status import Phase
from trainer.data.batches import Batch
from trainer.data.order import StepOrder
from trainer.engines import Score, StepResult
from trainer.placement import Placement, peak_memory_bytes


@dataclass
class _Window:
    """Sums since the last logged step."""

    step_count: int = 0
    loss: float = 0.0
    right: float = 0.0
    target_count: int = 0
    token_count: int = 0
    seconds: float = 0.0


@dataclass
class _Pace:
    """How long a thing takes on average; 0 where it has not happened."""

    count: int = 0
    seconds: float = 0.0

    def add(self, seconds: float) -> None:
        self.count += 1
        self.seconds += seconds

    @property
    def mean(self) -> float:
        return self.seconds / self.count if self.count else 0.0


class Journal:
    """The history of a job, of which this run writes a part.

    Attributes:
        steps, evals: every logged event since step 0, oldest first.
        trained_token_count: target tokens since step 0.
    """

    def __init__(
        self,
        events: EventWriter,
        settings: Hyperparameters,
        order: StepOrder,
        placement: Placement,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.steps: list[StepLogged] = []
        self.evals: list[EvalLogged] = []
        self.trained_token_count = 0
        self._events, self._settings, self._order, self._placement = events, settings, order, placement
        self._clock, self._started_at, self._earlier_seconds = clock, clock(), 0.0
        self._window = _Window()
        self._phase: Phase | None = None
        self._step_pace, self._eval_pace = _Pace(), _Pace()

    @property
    def elapsed_seconds(self) -> float:
        """Seconds that all runs of the job have spent so far, up to their last checkpoints."""
        return self._earlier_seconds + self._clock() - self._started_at

    def enter(self, phase: Phase) -> None:
        """Tell that the run is now in `phase`; nothing where it is already."""
        if phase is not self._phase:
            self._phase = phase
            self._events.write(PhaseChanged(phase=phase))

    def record_step(self, step: int, result: StepResult, batches: Sequence[Batch], seconds: float) -> None:
        """Add one optimizer update, and log the window where `logging_steps` or the end asks for it."""
        window, targets = self._window, sum(batch.target_count for batch in batches)
        window.step_count += 1
        window.loss += result.loss
        window.right += result.accuracy * targets
        window.target_count += targets
        window.token_count += sum(batch.token_count for batch in batches)
        window.seconds += seconds
        self.trained_token_count += targets
        self._step_pace.add(seconds)
        if step % self._settings.logging_steps == 0 or step == self._settings.max_steps:
            self._log(step, result)

    def record_eval(self, step: int, score: Score, seconds: float) -> None:
        """Log one pass over the validation split after `step` steps."""
        self._eval_pace.add(seconds)
        event = EvalLogged(
            step=step,
            total_steps=self._settings.max_steps,
            eval_loss=score.loss,
            eval_mean_token_accuracy=score.accuracy,
        )
        self.evals.append(event)
        self._events.write(event)

    def has_eval(self, step: int) -> bool:
        """Whether the evaluation after `step` steps has been recorded, by this run or an earlier one."""
        return any(event.step == step for event in self.evals)

    def state(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return {
            "steps": [event.model_dump(mode="json", exclude={"at"}) for event in self.steps],
            "evals": [event.model_dump(mode="json", exclude={"at"}) for event in self.evals],
            "trained_token_count": self.trained_token_count,
            "elapsed_seconds": self.elapsed_seconds,
            "window": asdict(self._window),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave."""
        self.steps = [StepLogged.model_validate(event) for event in state["steps"]]
        self.evals = [EvalLogged.model_validate(event) for event in state["evals"]]
        self.trained_token_count = state["trained_token_count"]
        self._earlier_seconds = state["elapsed_seconds"]
        self._window = _Window(**state["window"])

    def _log(self, step: int, result: StepResult) -> None:
        window, self._window = self._window, _Window()
        event = StepLogged(
            step=step,
            total_steps=self._settings.max_steps,
            epoch=self._order.epoch_at(step),
            train_loss=window.loss / window.step_count,
            train_mean_token_accuracy=window.right / max(1, window.target_count),
            learning_rate=result.learning_rate,
            grad_norm=result.grad_norm,
            tokens_per_second=window.token_count / window.seconds if window.seconds else None,
            seconds_remaining=self._seconds_remaining(step),
            elapsed_seconds=self.elapsed_seconds,
            trained_token_count=self.trained_token_count,
            peak_memory_bytes=peak_memory_bytes(self._placement),
        )
        self.steps.append(event)
        self._events.write(event)

    def _seconds_remaining(self, step: int) -> float:
        """The steps and evaluations to come, at the mean pace of this run."""
        total, every = self._settings.max_steps, self._settings.eval_steps
        evals = math.ceil(total / every) - step // every
        return (total - step) * self._step_pace.mean + evals * self._eval_pace.mean
