"""What computes a step: the seam behind which engines differ.

An engine turns micro-batches into one optimizer update and a batch into its loss. Order of the data, logs,
evaluation, checkpoints and stops are the loop's, written once. `trl` is the engine that there is.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from peft import PeftModel
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from trainer.data.batches import Batch


@dataclass(frozen=True)
class StepResult:
    """One optimizer update.

    Attributes:
        loss: mean negative log-likelihood over all target tokens of the step, in nats.
        accuracy: share of target tokens that were the model's first choice, 0 to 1.
        grad_norm: 2-norm over all adapter gradients before clipping.
        learning_rate: the one that this update used.
    """

    loss: float
    accuracy: float
    grad_norm: float
    learning_rate: float


@dataclass(frozen=True)
class Score:
    """One batch under the model as it is; both are means over its target tokens."""

    loss: float
    accuracy: float


class NotFiniteError(Exception):
    """The loss or the gradient of a step is infinite or not a number; the weights have not been changed."""

    def __init__(self, what: str, learning_rate: float) -> None:
        super().__init__(f"{what} is not finite")
        self.what, self.learning_rate = what, learning_rate


class Engine(Protocol):
    """One way to compute; `model`, `optimizer` and `scheduler` are read and restored by checkpoints."""

    name: str
    model: PeftModel
    optimizer: Optimizer
    scheduler: LambdaLR

    def step(self, micro_batches: Sequence[Batch]) -> StepResult:
        """One optimizer update over all the micro-batches; raises `NotFiniteError`."""
        ...

    def score(self, batch: Batch) -> Score:
        """Loss and accuracy of a batch, without gradients; the model is in evaluation mode."""
        ...

    def probe(self, batch: Batch) -> None:
        """Forward and backward of a micro-batch as in a step, to see whether it fits; nothing stays of it."""
        ...

    def recover(self) -> None:
        """Give up a step that failed half way: gradients and cached memory are freed, weights unchanged."""
        ...
