"""What a run has measured: told as events at once, and kept for the report and for the next run.

`state` goes into a checkpoint and `restore` takes it back, the sums of a half-filled logging window
included, so that a resumed run logs the same numbers as an unbroken one and repeats no sample and no warning.
Times are those of this process, added to what earlier runs of the job took.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from luthier.events import EvalLogged, EventWriter, PhaseChanged, SampleGenerated, StepLogged, WarningRaised
from luthier.spec import Hyperparameters
from luthier.status import Phase
from trainer.data.batches import Batch
from trainer.data.order import StepOrder
from trainer.engines import Score, StepResult
from trainer.placement import Placement, peak_memory_bytes


@dataclass
class _Window:
    """Sums since the last logged step, and what the newest step had."""

    step_count: int = 0
    loss: float = 0.0
    right: float = 0.0
    target_count: int = 0
    token_count: int = 0
    seconds: float = 0.0
    learning_rate: float = 0.0
    grad_norm: float = 0.0


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
        steps, evals, samples: every event of the kind since step 0, oldest first.
        trained_token_count: target tokens since step 0.
        token_count: tokens since step 0, padding apart.
        batch_size: rows in a micro-batch, from now on; less than the spec's once memory ran out.
        weight_change_norm: how far the weights had moved when they were last saved.
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
        self.samples: list[SampleGenerated] = []
        self.trained_token_count = self.token_count = 0
        self.batch_size, self.weight_change_norm = settings.batch_size, 0.0
        self._events, self._settings, self._order, self._placement = events, settings, order, placement
        self._clock, self._started_at, self._earlier_seconds = clock, clock(), 0.0
        self._window = _Window()
        self._phase: Phase | None = None
        self._phase_at, self._phase_seconds = self._started_at, dict[str, float]()
        self._warned: set[str] = set()
        self._step_pace, self._eval_pace = _Pace(), _Pace()

    @property
    def elapsed_seconds(self) -> float:
        """Seconds that all runs of the job have spent so far, up to their last checkpoints."""
        return self._earlier_seconds + self._clock() - self._started_at

    @property
    def phase_seconds(self) -> dict[str, float]:
        """The same by phase."""
        now = {self._phase: self._clock() - self._phase_at} if self._phase else {}
        names = self._phase_seconds | {phase: self._phase_seconds.get(phase, 0.0) for phase in now}
        return {str(name): seconds + now.get(name, 0.0) for name, seconds in names.items()}

    def enter(self, phase: Phase) -> None:
        """Tell that the run is now in `phase`; nothing where it is already."""
        if phase is not self._phase:
            self._phase_seconds = self.phase_seconds
            self._phase, self._phase_at = phase, self._clock()
            self._events.write(PhaseChanged(phase=phase))

    def warn(self, code: str, message: str, **data: Any) -> None:
        """Tell the user something once in the life of a job; nothing where `code` has been told."""
        if code not in self._warned:
            self._warned.add(code)
            self._events.write(WarningRaised(code=code, message=message, data=data))

    def record_step(self, step: int, result: StepResult, batches: Sequence[Batch], seconds: float) -> None:
        """Add one optimizer update, and log the window where `logging_steps` or the end asks for it."""
        window, targets = self._window, sum(batch.target_count for batch in batches)
        tokens = sum(batch.token_count for batch in batches)
        window.step_count += 1
        window.loss += result.loss
        window.right += result.accuracy * targets
        window.target_count += targets
        window.token_count += tokens
        window.seconds += seconds
        window.learning_rate, window.grad_norm = result.learning_rate, result.grad_norm
        self.trained_token_count += targets
        self.token_count += tokens
        self._step_pace.add(seconds)
        if step % self._settings.logging_steps == 0 or step == self._settings.max_steps:
            self.log(step)

    def log(self, step: int) -> None:
        """Log what the window holds after `step` steps; nothing where it is empty."""
        window, self._window = self._window, _Window()
        if window.step_count == 0:
            return
        event = StepLogged(
            step=step,
            total_steps=self._settings.max_steps,
            epoch=self._order.epoch_at(step),
            train_loss=window.loss / window.step_count,
            train_mean_token_accuracy=window.right / max(1, window.target_count),
            learning_rate=window.learning_rate,
            grad_norm=window.grad_norm,
            tokens_per_second=window.token_count / window.seconds if window.seconds else None,
            seconds_remaining=self._seconds_remaining(step),
            elapsed_seconds=self.elapsed_seconds,
            trained_token_count=self.trained_token_count,
            token_count=self.token_count,
            peak_memory_bytes=peak_memory_bytes(self._placement),
        )
        self.steps.append(event)
        self._events.write(event)

    def record_eval(self, step: int, score: Score, seconds: float) -> None:
        """Log one pass over the validation split after `step` steps."""
        self._eval_pace.add(seconds)
        event = EvalLogged(
            step=step,
            total_steps=self._settings.max_steps,
            epoch=self._order.epoch_at(step),
            eval_loss=score.loss,
            eval_mean_token_accuracy=score.accuracy,
            eval_seconds=seconds,
            elapsed_seconds=self.elapsed_seconds,
            seconds_remaining=self._seconds_remaining(step),
        )
        self.evals.append(event)
        self._events.write(event)

    def record_sample(self, sample: SampleGenerated) -> None:
        """Tell one answer of the model."""
        self.samples.append(sample)
        self._events.write(sample)

    def has_eval(self, step: int) -> bool:
        """Whether the evaluation after `step` steps has been recorded, by this run or an earlier one."""
        return any(event.step == step for event in self.evals)

    def has_samples(self, step: int) -> bool:
        """The same for the answers after `step` steps."""
        return any(event.step == step for event in self.samples)

    def state(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return {
            "steps": [event.model_dump(mode="json", exclude={"at"}) for event in self.steps],
            "evals": [event.model_dump(mode="json", exclude={"at"}) for event in self.evals],
            "samples": [event.model_dump(mode="json", exclude={"at"}) for event in self.samples],
            "trained_token_count": self.trained_token_count,
            "token_count": self.token_count,
            "batch_size": self.batch_size,
            "weight_change_norm": self.weight_change_norm,
            "elapsed_seconds": self.elapsed_seconds,
            "phase_seconds": self.phase_seconds,
            "warned": sorted(self._warned),
            "window": asdict(self._window),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave."""
        self.steps = [StepLogged.model_validate(event) for event in state["steps"]]
        self.evals = [EvalLogged.model_validate(event) for event in state["evals"]]
        self.samples = [SampleGenerated.model_validate(event) for event in state["samples"]]
        self.trained_token_count, self.token_count = state["trained_token_count"], state["token_count"]
        self.batch_size, self.weight_change_norm = state["batch_size"], state["weight_change_norm"]
        self._earlier_seconds = state["elapsed_seconds"]
        self._phase_seconds = {
            name: seconds + self._phase_seconds.get(name, 0.0)
            for name, seconds in state["phase_seconds"].items()
        }
        self._warned |= set(state["warned"])
        self._window = _Window(**state["window"])

    def _seconds_remaining(self, step: int) -> float:
        """The steps and evaluations to come, at the mean pace of this run."""
        total, every = self._settings.max_steps, self._settings.eval_steps
        evals = math.ceil(total / every) - step // every if step < total else 0
        return (total - step) * self._step_pace.mean + evals * self._eval_pace.mean
