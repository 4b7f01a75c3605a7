"""What computes a step: the seam behind which engines differ, and the choice of one.

An engine turns micro-batches into one optimizer update and a batch into its loss. Order of the data, logs,
evaluation, checkpoints and stops are the loop's, written once. `trl` is the engine that there is.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch.amp import GradScaler
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from luthier.spec import Hyperparameters
from trainer.data.batches import Batch
from trainer.methods import Model


@dataclass(frozen=True)
class StepResult:
    """One optimizer update.

    Attributes:
        loss: mean negative log-likelihood over all target tokens of the step, in nats.
        accuracy: share of target tokens that were the model's first choice, 0 to 1.
        grad_norm: 2-norm over all gradients before clipping.
        learning_rate: the one that this update used; with LoRA+, that of A.
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
    """One way to compute; what it holds is read and restored by checkpoints.

    Attributes:
        scaler: the loss scale of fp16; switched off in other precisions.
    """

    name: str
    model: Model
    optimizer: Optimizer
    scheduler: LambdaLR
    scaler: GradScaler

    def step(self, micro_batches: Sequence[Batch]) -> StepResult:
        """One optimizer update over all the micro-batches; raises `NotFiniteError`.

        A batch has `attention_mask` and a row a line, or, where rows are packed, one line of them with
        `position_ids` that start again from 0 at each; rows never see each other.
        """
        ...

    def score(self, batch: Batch) -> Score:
        """Loss and accuracy of a batch, without gradients; the model is in evaluation mode."""
        ...

    def probe(self, batch: Batch) -> None:
        """Forward and backward of a micro-batch as in a step, to see whether it fits; nothing stays of it."""
        ...

    def recover(self) -> None:
        """Drop what a step has left that ran out of memory, so that it can be done again in smaller parts.

        Weights, optimizer and schedule are as before that step; random numbers have been drawn.
        """
        ...


@dataclass(frozen=True)
class Choice:
    """The name of an engine, and a line for people on why it was taken."""

    name: str
    reason: str


def choose(settings: Hyperparameters) -> Choice:
    """The engine of a run. `trl` does all that the settings can ask for, so "auto" means it."""
    if settings.engine == "auto":
        return Choice("trl", "auto: the reference engine, which does every method on every device")
    return Choice(settings.engine, "asked for")
