"""What a run does when memory runs out: half the micro-batch once where `auto_fit` allows, else a failure.

The rows of a step and their order stay, and the loss is the mean over all its tokens, so that halving changes
where a step is cut and nothing else. What was being done is done again from the same random state.
"""

import math
from collections.abc import Callable
from typing import TypeVar

from luthier.spec import Hyperparameters
from trainer import random_state
from trainer.data.batches import TrainingData
from trainer.engines import Engine
from trainer.failures import Shortage, is_out_of_memory, out_of_memory
from trainer.journal import Journal
from trainer.placement import Placement, peak_memory_bytes

_Result = TypeVar("_Result")


class Fit:
    """The data of a run, cut into micro-batches that fit.

    Attributes:
        data: as it is cut now; a run that resumes goes on with what its checkpoint had come to.
    """

    def __init__(
        self,
        engine: Engine,
        data: TrainingData,
        settings: Hyperparameters,
        journal: Journal,
        placement: Placement,
    ) -> None:
        self.data = data.with_batch_size(journal.batch_size)
        self._engine, self._settings, self._journal = engine, settings, journal
        self._placement = placement

    def do(self, action: Callable[[TrainingData], _Result], step: int) -> _Result:
        """The result of `action`, done a second time with half the micro-batch where it ran out of memory.

        Raises:
            JobFailure: it does not fit, with what to change.
        """
        before = random_state.capture()
        while True:
            try:
                return action(self.data)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                if not self._may_halve:
                    raise out_of_memory(self._settings, self._shortage(step)) from error
            # Only here: the frames that the error holds on to have let go of their tensors.
            self._engine.recover()
            self._halve(step)
            random_state.restore(*before)

    @property
    def _may_halve(self) -> bool:
        is_whole = self.data.batch_size == self._settings.batch_size
        return self._settings.auto_fit and is_whole and self.data.batch_size > 1

    def _halve(self, step: int) -> None:
        shortage = self._shortage(step)
        before, after = self.data.batch_size, self.data.batch_size // 2
        self.data, self._journal.batch_size = self.data.with_batch_size(after), after
        count = math.ceil(self.data.order.rows_per_step / after)
        self._journal.warn(
            "micro_batch_halved",
            f"Memory ran out at step {step}: the run goes on with micro-batches of {after} instead of "
            f"{before} rows and {count} of them in a step; the rows of a step, and its loss, stay the same. "
            f"To start so at once, set batch_size to {after}",
            batch_size=after,
            gradient_accumulation=count,
            **shortage.facts(),
        )

    def _shortage(self, step: int) -> Shortage:
        return Shortage(
            step=step,
            peak_memory_bytes=peak_memory_bytes(self._placement),
            longest_row_tokens=self.data.longest_row_tokens(step),
            batch_size=self.data.batch_size,
            is_on_gpu=self._placement.is_cuda,
        )
