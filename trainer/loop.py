"""The steps of a run: when to compute, log, evaluate, sample, save and stop, the same for every engine.

Everything happens at the boundary of a step, and what belongs to a boundary is done there once: an
evaluation, or an answer, that a stop cut short is made up for by the run that resumes.
"""

import math
import time
from collections.abc import Callable

from luthier.errors import ExitCode, JobFailure
from luthier.events import SampleGenerated
from luthier.spec import Hyperparameters
from luthier.status import Phase
from trainer import random_state
from trainer.checkpoints import Checkpoints
from trainer.engines import Engine, NotFiniteError
from trainer.evaluation import evaluate
from trainer.failures import is_out_of_memory
from trainer.fit import Fit
from trainer.generation import Generator
from trainer.journal import Journal
from trainer.movement import Movement
from trainer.probe import probe
from trainer.stopping import is_exhausted
from trainer.watch import Watch, unstable_advice

# Answers cost a pass over the model for each token: so many times between the first evaluation and the last.
_SAMPLED_EVALS = 4


class Loop:
    """The loop over the steps of one run.

    Args:
        generator: answers prompts at evaluations; None where no samples are wanted.
        should_stop: asked between steps, between the batches of an evaluation and at each token of an answer.
    """

    def __init__(
        self,
        *,
        engine: Engine,
        fit: Fit,
        settings: Hyperparameters,
        journal: Journal,
        checkpoints: Checkpoints,
        watch: Watch,
        movement: Movement,
        generator: Generator | None,
        should_stop: Callable[[], bool],
    ) -> None:
        self._engine, self._fit, self._settings = engine, fit, settings
        self._journal, self._checkpoints, self._watch = journal, checkpoints, watch
        self._movement, self._generator, self._should_stop = movement, generator, should_stop

    def probe(self, step: int) -> None:
        """Try the heaviest micro-batch that comes after `step` steps.

        Raises:
            JobFailure: it does not fit.
        """
        first, last = step + 1, self._settings.max_steps
        if first <= last:
            self._fit.do(
                lambda data: probe(self._engine, data.heaviest_batch(first, last), self._settings.optimizer),
                first,
            )

    def run(self, step: int) -> tuple[int, bool]:
        """Train on from `step` steps up to `max_steps`, or until asked to stop.

        Returns:
            The steps that are done and saved, and whether the run is finished, last evaluation included.
        Raises:
            JobFailure: a loss or a gradient is not finite, or memory runs out.
        """
        is_settled = self._settle(step)
        if is_settled:
            self._save(step)
        while is_settled and not self._is_over(step) and not self._should_stop():
            step += 1
            self._train(step)
            is_settled = self._settle(step)
            if is_settled and self._checkpoints.is_due(step):
                self._save(step)
        self._save(step)
        return step, is_settled and self._is_over(step)

    def _is_over(self, step: int) -> bool:
        return step >= self._settings.max_steps or is_exhausted(
            self._journal.evals, self._settings.early_stopping
        )

    def _train(self, step: int) -> None:
        self._journal.enter(Phase.TRAINING)
        started_at, before = time.monotonic(), random_state.capture()
        try:
            result = self._fit.do(lambda data: self._engine.step(data.micro_batches(step)), step)
        except NotFiniteError as error:
            self._engine.recover()
            random_state.restore(*before)
            if self._movement.is_finite():
                # They led to this, so that an older checkpoint may be the last good one.
                self._save(step - 1, keeps_older=True)
            raise self._not_finite(error.what, step, error.learning_rate) from error
        batches = self._fit.data.micro_batches(step)
        self._journal.record_step(step, result, batches, time.monotonic() - started_at)
        self._watch.after_step(step)

    def _settle(self, step: int) -> bool:
        """Do what belongs to the boundary after `step`; False where a stop cut it short."""
        is_due = step % self._settings.eval_steps == 0 or step == self._settings.max_steps
        if is_due and not (self._evaluated(step) and self._sampled(step)):
            return False
        # Before the checkpoint, so that who goes on from the last one does not log it again.
        if self._is_over(step):
            self._journal.log(step)
        return True

    def _evaluated(self, step: int) -> bool:
        if not len(self._fit.data.validation_numbers) or self._journal.has_eval(step):
            return True
        self._journal.enter(Phase.EVALUATING)
        started_at = time.monotonic()
        score = self._fit.do(
            lambda data: evaluate(self._engine, data.validation_batches(), self._should_stop), max(1, step)
        )
        if score is None:
            return False
        if not math.isfinite(score.loss):
            # These weights are not good ones, so that they are not saved.
            raise self._not_finite("The loss on the validation split", step, self._settings.learning_rate)
        self._journal.record_eval(step, score, time.monotonic() - started_at)
        self._watch.after_eval()
        return True

    def _sampled(self, step: int) -> bool:
        generator = self._generator
        if generator is None or self._journal.has_samples(step) or not self._is_sampled(step):
            return True
        self._journal.enter(Phase.EVALUATING)
        started_at = time.monotonic()
        answers = self._answers(generator, step)
        if answers is None:
            return False
        for index, (prompt, text) in enumerate(zip(generator.prompts, answers, strict=False)):
            self._journal.record_sample(
                SampleGenerated(
                    step=step, index=index, prompt=prompt.text, text=text, reference=prompt.reference
                )
            )
        print(f"step {step}: {len(answers)} answers in {time.monotonic() - started_at:.1f} s", flush=True)
        return True

    def _is_sampled(self, step: int) -> bool:
        """Whether prompts are answered at this evaluation: the first, the last, and some evenly between."""
        if self._is_over(step):
            return True
        every = self._settings.eval_steps
        spacing = max(1, math.ceil(self._settings.max_steps // every / _SAMPLED_EVALS))
        return step // every % spacing == 0

    def _answers(self, generator: Generator, step: int) -> list[str] | None:
        """None where a stop cut them short; memory that runs out in them does not cost the run."""
        try:
            return generator.answers(self._should_stop)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        self._engine.recover()
        message = (
            f"Memory ran out while the model answered the sample prompts at step {step}, so there are no "
            "answers: lower samples.count or samples.max_new_tokens"
        )
        self._journal.warn("samples_out_of_memory", message, step=step)
        return []

    def _save(self, step: int, *, keeps_older: bool = False) -> None:
        self._journal.weight_change_norm = self._movement.norm()
        self._checkpoints.save(step, keeps_older=keeps_older)

    def _not_finite(self, what: str, step: int, learning_rate: float) -> JobFailure:
        saved = self._checkpoints.last_step
        kept = f"The checkpoint of step {saved} is kept" if saved else "There is no checkpoint yet"
        return JobFailure(
            f"{what} is not finite at step {step} (learning rate {learning_rate:.3g}). {kept}. To calm the "
            f"run, {unstable_advice(self._settings)}",
            "nan_loss",
            ExitCode.LOSS_NOT_FINITE,
            "qlora.learning_rate",
            [{"loc": "qlora.learning_rate", "message": what, "step": step, "checkpoint_step": saved or None}],
        )
