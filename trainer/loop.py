"""The steps of a run: when to compute, log, evaluate, save and stop, the same for every engine.

Everything happens at the boundary of a step, and what belongs to a boundary is done there once: an
evaluation that a stop cut short is made up for by the run that resumes.
"""

import math
import time
from collections.abc import Callable

from luthier.errors import ExitCode, JobFailure
from luthier.spec import Hyperparameters
from luthier.status import Phase
from trainer.checkpoints import Checkpoints
from trainer.data.batches import TrainingData
from trainer.engines import Engine, NotFiniteError
from trainer.evaluation import evaluate
from trainer.journal import Journal


class Loop:
    """The loop over the steps of one run.

    Args:
        should_stop: asked between steps and between the batches of an evaluation.
    """

    def __init__(
        self,
        *,
        engine: Engine,
        data: TrainingData,
        settings: Hyperparameters,
        journal: Journal,
        checkpoints: Checkpoints,
        should_stop: Callable[[], bool],
    ) -> None:
        self._engine, self._data, self._settings = engine, data, settings
        self._journal, self._checkpoints, self._should_stop = journal, checkpoints, should_stop

    def run(self, step: int) -> tuple[int, bool]:
        """Train on from `step` steps up to `max_steps`, or until asked to stop.

        Returns:
            The steps that are done and saved, and whether the run is finished, last evaluation included.
        Raises:
            JobFailure: a loss or a gradient is not finite.
        """
        is_evaluated = self._evaluated(step)
        while is_evaluated and step < self._settings.max_steps and not self._should_stop():
            step += 1
            self._train(step)
            is_evaluated = self._evaluated(step)
            if is_evaluated and self._checkpoints.is_due(step):
                self._checkpoints.save(step)
        self._checkpoints.save(step)
        return step, is_evaluated and step >= self._settings.max_steps

    def _train(self, step: int) -> None:
        self._journal.enter(Phase.TRAINING)
        started_at = time.monotonic()
        batches = self._data.micro_batches(step)
        try:
            result = self._engine.step(batches)
        except NotFiniteError as error:
            raise _not_finite(error.what, step, error.learning_rate) from error
        self._journal.record_step(step, result, batches, time.monotonic() - started_at)

    def _evaluated(self, step: int) -> bool:
        """Evaluate if that is due after `step` and not done yet; False where a stop cut it short."""
        settings = self._settings
        is_due = step % settings.eval_steps == 0 or step == settings.max_steps
        if not is_due or not len(self._data.validation_numbers) or self._journal.has_eval(step):
            return True
        self._journal.enter(Phase.EVALUATING)
        started_at = time.monotonic()
        score = evaluate(self._engine, self._data.validation_batches(), self._should_stop)
        if score is None:
            return False
        if not math.isfinite(score.loss):
            raise _not_finite("The loss on the validation split", step, settings.learning_rate)
        self._journal.record_eval(step, score, time.monotonic() - started_at)
        return True


def _not_finite(what: str, step: int, learning_rate: float) -> JobFailure:
    return JobFailure(
        f"{what} is not finite at step {step} (learning rate {learning_rate:.3g}). Lower learning_rate, for "
        "example to 1e-5, warm up longer (warmup_ratio 0.1) and keep max_grad_norm at 1.0",
        "nan_loss",
        ExitCode.LOSS_NOT_FINITE,
        "qlora.learning_rate",
    )
