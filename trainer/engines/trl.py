"""The reference engine: losses and gradients by TRL's SFTTrainer, padded batches, stock PyTorch.

The trainer is assembled with everything but `training_step` and `prediction_step` switched off and is
driven from `trainer.loop`, because its own loop saves pickles, counts steps by epochs and loses the logged
window on a resume.
"""

import contextlib
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from datasets import Dataset
from peft import PeftModel
from torch.optim import Optimizer
from transformers import PreTrainedTokenizerBase
from trl import SFTTrainer

from luthier.spec import Hyperparameters
from trainer import versions
from trainer.data.batches import Batch
from trainer.engines import NotFiniteError, Score, StepResult
from trainer.model import trainable
from trainer.optimizer import build_optimizer, build_scheduler
from trainer.placement import Placement


class TrlEngine:
    """See `trainer.engines.Engine`.

    Args:
        scratch: a folder that the trainer may take for its own; nothing is written to it.
        recompute: whether activations are recomputed in the backward pass.
    """

    name = "trl"

    def __init__(
        self,
        model: PeftModel,
        tokenizer: PreTrainedTokenizerBase,
        settings: Hyperparameters,
        placement: Placement,
        scratch: Path,
        *,
        recompute: bool,
    ) -> None:
        self.model = model
        self._max_grad_norm = settings.max_grad_norm or math.inf
        with _weights_unchanged(model):
            self._trainer = _assemble(model, tokenizer, settings, placement, scratch)
        if recompute:
            versions.enable_activation_checkpointing(model)
        self._parameters = list(trainable(model).values())
        self.optimizer: Optimizer = build_optimizer(self._parameters, settings)
        self.scheduler = build_scheduler(self.optimizer, settings)

    def step(self, micro_batches: Sequence[Batch]) -> StepResult:
        losses = self._losses(micro_batches)
        learning_rate = float(self.scheduler.get_last_lr()[0])
        loss = _finite("The loss", torch.stack(losses).sum(), learning_rate)
        norm = torch.nn.utils.clip_grad_norm_(self._parameters, self._max_grad_norm)
        grad_norm = _finite("The gradient", norm, learning_rate)
        self.optimizer.step()
        self.scheduler.step()
        self.optimizer.zero_grad(set_to_none=True)
        accuracies = versions.take_accuracies(self._trainer, "train")
        return StepResult(loss, _weighted(accuracies, micro_batches), grad_norm, learning_rate)

    def score(self, batch: Batch) -> Score:
        loss, _, _ = self._trainer.prediction_step(self.model, dict(batch.inputs), prediction_loss_only=True)
        return Score(float(loss), versions.take_accuracies(self._trainer, "eval")[0])

    def probe(self, batch: Batch) -> None:
        self._losses([batch])
        self.recover()

    def recover(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        versions.take_accuracies(self._trainer, "train")
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _losses(self, micro_batches: Sequence[Batch]) -> list[torch.Tensor]:
        """The share of each micro-batch in the loss of the step; gradients are added up on the way."""
        # A step whose rows have nothing to learn has a loss of 0, not of 0 / 0.
        count = max(1, sum(batch.target_count for batch in micro_batches))
        targets = torch.tensor(count, device=self.model.device)
        self._trainer.current_gradient_accumulation_steps = len(micro_batches)
        return [
            self._trainer.training_step(self.model, dict(batch.inputs), targets) for batch in micro_batches
        ]


class _StepTrainer(SFTTrainer):
    """SFTTrainer under our own autocast: accelerate's is one for the process and patches the model."""

    compute_dtype: torch.dtype

    def compute_loss_context_manager(self) -> contextlib.ExitStack:
        stack = contextlib.ExitStack()
        if self.compute_dtype is not torch.float32:
            stack.enter_context(torch.autocast(self.args.device.type, dtype=self.compute_dtype))
        return stack


def _assemble(
    model: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    settings: Hyperparameters,
    placement: Placement,
    scratch: Path,
) -> _StepTrainer:
    config = versions.step_config(
        scratch, batch_size=settings.batch_size, use_cpu=not placement.is_cuda, seed=settings.seed
    )
    with versions.known_warnings_silenced():
        trainer = _StepTrainer(
            model=model,
            args=config,
            # The constructor insists on a dataset and a collator; the loop hands over finished batches.
            train_dataset=Dataset.from_dict({"input_ids": [[0]], "labels": [[0]]}),
            data_collator=list,
            processing_class=tokenizer,
        )
    trainer.compute_dtype = placement.dtype
    versions.use_step_losses(trainer)
    return trainer


@contextlib.contextmanager
def _weights_unchanged(model: PeftModel) -> Iterator[None]:
    """Undo what the body does to the adapters: SFTTrainer rounds them to bf16 on a quantised base.

    Small updates would vanish in bf16, and a resumed run, which reads fp32, would differ from an unbroken
    one.
    """
    before = {name: parameter.data for name, parameter in trainable(model).items()}
    yield
    for name, parameter in trainable(model).items():
        parameter.data = before[name]


def _finite(what: str, value: torch.Tensor, learning_rate: float) -> float:
    number = value.item()
    if not math.isfinite(number):
        raise NotFiniteError(what, learning_rate)
    return number


def _weighted(accuracies: Sequence[float], batches: Sequence[Batch]) -> float:
    targets = [batch.target_count for batch in batches]
    right = sum(accuracy * count for accuracy, count in zip(accuracies, targets, strict=True))
    return right / max(1, sum(targets))
