"""The reference engine: losses and gradients by TRL's SFTTrainer, padded batches, stock PyTorch.

The trainer is assembled with everything but `training_step` and `prediction_step` switched off and is
driven from `trainer.loop`, because its own loop saves pickles, counts steps by epochs and loses the logged
window on a resume.
"""

import contextlib
import math
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch.amp import GradScaler
from torch.optim import Optimizer
from transformers import PreTrainedTokenizerBase
from trl import SFTTrainer

from luthier.errors import ExitCode, JobFailure
from luthier.spec import Hyperparameters
from trainer import versions
from trainer.data.batches import Batch
from trainer.engines import NotFiniteError, Score, StepResult
from trainer.methods import Model
from trainer.model import trainable
from trainer.noise import EmbeddingNoise
from trainer.optimizer import build_optimizer
from trainer.placement import Placement
from trainer.schedules import build_scheduler

# Below this loss scale, a gradient that is not finite is no matter of fp16's range.
_LEAST_SCALE = 1.0


class TrlEngine:
    """See `trainer.engines.Engine`.

    Args:
        scratch: a folder that the trainer may take for its own; nothing is written to it.
        recompute: whether activations are recomputed in the backward pass.
    """

    name = "trl"

    def __init__(
        self,
        model: Model,
        tokenizer: PreTrainedTokenizerBase,
        settings: Hyperparameters,
        placement: Placement,
        scratch: Path,
        *,
        recompute: bool,
    ) -> None:
        if not placement.is_cuda and not versions.can_train_on_cpu():
            raise _cannot_train_here()
        self.model = model
        self._max_grad_norm = settings.max_grad_norm or math.inf
        self.scaler = GradScaler(placement.device.type, enabled=placement.dtype is torch.float16)
        with _weights_unchanged(model):
            self._trainer = _assemble(model, tokenizer, settings, placement, scratch)
        self._trainer.scaler, self._trainer.compute_dtype = self.scaler, placement.dtype
        if recompute:
            versions.enable_activation_checkpointing(model)
        self._noise = (
            EmbeddingNoise(model.get_input_embeddings(), settings.neftune_alpha)
            if settings.neftune_alpha
            else None
        )
        parameters = trainable(model)
        self._parameters = list(parameters.values())
        self.optimizer: Optimizer = build_optimizer(parameters, settings)
        self.scheduler = build_scheduler(self.optimizer, settings)

    def step(self, micro_batches: Sequence[Batch]) -> StepResult:
        learning_rate = float(self.scheduler.get_last_lr()[0])
        loss, grad_norm, accuracies = self._gradients(micro_batches, learning_rate)
        try:
            self.optimizer.step()
        finally:
            self.scaler.update()
        self.scheduler.step()
        self.optimizer.zero_grad(set_to_none=True)
        return StepResult(loss, _weighted(accuracies, micro_batches), grad_norm, learning_rate)

    def recover(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        for mode in ("train", "eval"):
            versions.take_accuracies(self._trainer, mode)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _gradients(
        self, micro_batches: Sequence[Batch], learning_rate: float
    ) -> tuple[float, float, list[float]]:
        """Loss, norm before clipping and accuracies, with the clipped gradients in the parameters.

        Where gradients leave the range of fp16, the scale is halved and all is computed again, so that no
        rows are passed over.
        """
        while True:
            scale = self.scaler.get_scale()
            loss = _finite("The loss", self._backward(micro_batches).item() / scale, learning_rate)
            accuracies = versions.take_accuracies(self._trainer, "train")
            if self.scaler.is_enabled():
                self.scaler.unscale_(self.optimizer)
            norm = float(torch.nn.utils.clip_grad_norm_(self._parameters, self._max_grad_norm))
            if math.isfinite(norm) or not self.scaler.is_enabled() or scale <= _LEAST_SCALE:
                return loss, _finite("The gradient", norm, learning_rate), accuracies
            self.scaler.update()
            self.optimizer.zero_grad(set_to_none=True)

    def _backward(self, micro_batches: Sequence[Batch]) -> torch.Tensor:
        """The sum of the losses of all micro-batches, each taken over the targets of the whole step."""
        # A step whose rows have nothing to learn has a loss of 0, not of 0 / 0.
        count = max(1, sum(batch.target_count for batch in micro_batches))
        targets = torch.tensor(count, device=self.model.device)
        self._trainer.current_gradient_accumulation_steps = len(micro_batches)
        losses = []
        for batch in micro_batches:
            if self._noise is not None:
                self._noise.expect(batch.inputs)
            losses.append(self._trainer.training_step(self.model, dict(batch.inputs), targets))
        return torch.stack(losses).sum()

    def score(self, batch: Batch) -> Score:
        loss, _, _ = self._trainer.prediction_step(self.model, dict(batch.inputs), prediction_loss_only=True)
        return Score(float(loss), versions.take_accuracies(self._trainer, "eval")[0])

    def probe(self, batch: Batch) -> None:
        self._backward([batch])
        self.recover()


def _cannot_train_here() -> JobFailure:
    return JobFailure(
        f"trl {version('trl')} trains on CUDA alone: install trl 1.16 on this worker, or give it a GPU",
        "server_error",
        ExitCode.MISSING,
    )


class _StepTrainer(SFTTrainer):
    """SFTTrainer under our own autocast and loss scale: accelerate's belong to the process."""

    compute_dtype: torch.dtype
    scaler: GradScaler

    def compute_loss_context_manager(self) -> contextlib.ExitStack:
        stack = contextlib.ExitStack()
        if self.compute_dtype is not torch.float32:
            stack.enter_context(torch.autocast(self.args.device.type, dtype=self.compute_dtype))
        return stack

    def compute_loss(self, model: Model, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = super().compute_loss(model, inputs, *args, **kwargs)
        return self.scaler.scale(loss) if model.training else loss


def _assemble(
    model: Model,
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
    versions.use_step_losses(trainer)
    return trainer


@contextlib.contextmanager
def _weights_unchanged(model: Model) -> Iterator[None]:
    """Undo what the body does to the adapters: SFTTrainer rounds them to bf16 on a quantised base.

    Small updates would vanish in bf16, and a resumed run, which reads fp32, would differ from an unbroken
    one.
    """
    before = {name: parameter.data for name, parameter in trainable(model).items()}
    yield
    for name, parameter in trainable(model).items():
        parameter.data = before[name]


def _finite(what: str, number: float, learning_rate: float) -> float:
    if not math.isfinite(number):
        raise NotFiniteError(what, learning_rate)
    return number


def _weighted(accuracies: Sequence[float], batches: Sequence[Batch]) -> float:
    targets = [batch.target_count for batch in batches]
    right = sum(accuracy * count for accuracy, count in zip(accuracies, targets, strict=True))
    return right / max(1, sum(targets))
