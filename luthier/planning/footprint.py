"""The memory that a run needs, part by part, and whether it recomputes activations to get by with it.

Entered by `memory`; the trainer tells it in its plan, the estimate compares it with what a device has. The
sum is built from what the code that runs allocates (`activations.py`, `trained.py`); the constants that are
measured and not derived stand below, each with its origin.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from luthier.planning.activations import (
    Arithmetic,
    Batch,
    backward_peak,
    checkpoint,
    kept_in_layer,
    kept_in_spite,
    weight_casts_in_layer,
    widens,
)
from luthier.planning.facts import DeviceFacts, TokenFacts
from luthier.planning.shape import Linear, ModelShape
from luthier.planning.trained import (
    FP32,
    Tensors,
    element_count,
    optimizer_bytes,
    trained_layers,
    trained_tensors,
)
from luthier.spec import Hyperparameters, Quantization
from luthier.spec.base import Frozen

MIB = 1 << 20

# Blocks of bitsandbytes: 64 weights share a scale, and with double quantisation 256 scales share another.
_WEIGHTS_PER_SCALE = 64
_SCALES_PER_SCALE = 256
# The sixteen values of NF4 in fp32, kept with each weight, and an fp32 mean of the scales.
_CODE_BYTES = 64
_OFFSET_BYTES = 4

# TRL takes the output head in tiles of so many tokens by so many words.
_TILE_TOKENS = 4096
_TILE_WORDS = 32768

# What CUDA takes beside its allocator: measured as 771 to 843 MiB on an H100, driver 580, torch 2.11.
CUDA_CONTEXT = 780 * MIB
# cuBLAS' scratch, which PyTorch takes once and keeps (32 MiB on Hopper, two handles).
_CUBLAS_WORKSPACE = 64 * MIB
# What the caching allocator holds beyond what is in use, as a share of what one decoder layer keeps and
# passes back: between such pieces its holes lie. Fitted to 19 runs on an H100, which had 0.2 to 1.3.
_CUDA_SLACK = 0.6
# A process that has imported the trainer's libraries, before it loads a model.
CPU_PROCESS = 560 * MIB
# Bytes a parameter in the file of the weights, which is 16-bit as a rule.
_FILE_BYTES = 2
# fp32 tensors of a tile's size that are there at once where torch folds it (TRL 1.16's `_backward_tile`).
_CPU_FOLDED_TILES = 8
# glibc's allocator gives back less than it gets.
_CPU_SLACK = 0.15

# "auto" recomputes activations unless the run fits without in this share of what is available; the rest is
# for what the estimate misses.
_FILL_WITHOUT_RECOMPUTING = 0.80


class MemoryEstimate(Frozen):
    """The peak of a run's memory on its device, in bytes, and the parts of it at that moment.

    Attributes:
        weights: of the base, as they are stored; for method `full` the weights that are trained too.
        adapters: the fp32 weights of the adapters.
        gradients: that are there at the peak.
        optimizer: its state, from the first update on.
        activations: kept for the backward pass, and gradients on their way through it.
        logits: the tile of the output head, and what the loss keeps.
        workspace: weights that are dequantised or cast for a product, and cuBLAS' own.
        slack: what the allocator holds and does not use.
        context: of CUDA, or the process and its libraries on the CPU.
        peak: the moment that needs the most.
        gradient_checkpointing: whether this is with activations recomputed.
    """

    weights: int
    adapters: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    workspace: int
    slack: int
    context: int
    peak: str
    gradient_checkpointing: bool

    @property
    def allocated_bytes(self) -> int:
        """Held by tensors: what `torch.cuda.max_memory_allocated` shows."""
        return self.needed_bytes - self.slack - self.context

    @property
    def reserved_bytes(self) -> int:
        """Held by the allocator: what `torch.cuda.max_memory_reserved` shows."""
        return self.needed_bytes - self.context

    @property
    def needed_bytes(self) -> int:
        """All of it."""
        return sum(self.breakdown.values())

    @property
    def breakdown(self) -> dict[str, int]:
        """The parts by name, in bytes."""
        return {
            "weights": self.weights,
            "adapters": self.adapters,
            "gradients": self.gradients,
            "optimizer": self.optimizer,
            "activations": self.activations,
            "logits": self.logits,
            "workspace": self.workspace,
            "slack": self.slack,
            "context": self.context,
        }


def memory(
    shape: ModelShape,
    settings: Hyperparameters,
    *,
    longest: int,
    device: DeviceFacts,
    row_count: int | None = None,
    trained_share: float = 1.0,
    checkpointing: bool | None = None,
) -> MemoryEstimate:
    """The peak memory of a training run with engine `trl`.

    Args:
        longest: tokens of the longest row; with packing every row is as long as `max_seq_length`.
        row_count: rows in training, where there may be fewer than a micro-batch holds.
        trained_share: of the tokens, those that the loss is taken over, 0 to 1.
        checkpointing: whether activations are recomputed; None decides as the trainer would.
    """
    if checkpointing is None:
        checkpointing = wants_checkpointing(shape, settings, device, longest=longest, row_count=row_count)
    batch = micro_batch(settings, longest, row_count)
    numbers = arithmetic(settings, device)
    run = _Run(shape, settings, numbers, batch, trained_share, checkpointing)
    peak, parts = max(run.moments().items(), key=lambda moment: sum(moment[1].values()))
    return MemoryEstimate(
        weights=run.weights,
        adapters=run.adapters,
        optimizer=run.optimizer,
        slack=run.slack(parts),
        context=run.context,
        peak=peak,
        gradient_checkpointing=checkpointing,
        **parts,
    )


def memory_of_rows(
    shape: ModelShape, settings: Hyperparameters, tokens: TokenFacts, device: DeviceFacts
) -> MemoryEstimate:
    """`memory` of a run on rows that have been counted."""
    return memory(
        shape,
        settings,
        longest=tokens.longest,
        device=device,
        row_count=tokens.row_count,
        trained_share=tokens.trained_share,
    )


def wants_checkpointing(
    shape: ModelShape,
    settings: Hyperparameters,
    device: DeviceFacts,
    *,
    longest: int,
    row_count: int | None = None,
) -> bool:
    """Whether activations are recomputed in the backward pass instead of kept.

    "auto" keeps them where all of the run then fits in 80 % of the memory there is, which saves about a
    third of the time, and recomputes them where it does not or nobody knows what there is.
    """
    if settings.gradient_checkpointing != "auto":
        return settings.gradient_checkpointing
    available = device.available_bytes
    if available is None:
        return True
    kept = memory(shape, settings, longest=longest, device=device, row_count=row_count, checkpointing=False)
    return kept.needed_bytes > _FILL_WITHOUT_RECOMPUTING * available


def micro_batch(settings: Hyperparameters, longest: int, row_count: int | None = None) -> Batch:
    """The largest micro-batch of a run; packed rows are laid end to end in one."""
    rows = min(settings.batch_size, row_count or settings.batch_size)
    if settings.packing:
        return Batch(1, rows * settings.max_seq_length, is_masked=True)
    return Batch(rows, min(longest, settings.max_seq_length), is_masked=rows > 1)


def arithmetic(settings: Hyperparameters, device: DeviceFacts) -> Arithmetic:
    """The number formats that the trainer would choose."""
    narrow = {"auto": device.has_bf16, "bf16": True, "fp16": device.is_cuda, "fp32": False}
    is_wide = not narrow[settings.precision]
    compute = FP32 if is_wide else 2
    trains_embedding = settings.method == "full" and settings.trainable_layers is None
    numbers = Arithmetic(compute, FP32 if trains_embedding else compute, device.is_cuda)
    return replace(numbers, stream=FP32) if widens(settings, numbers) else numbers


def quantized_bytes(linear: Linear, quantization: Quantization, double_quant: bool, compute: int) -> int:
    """One weight as it is stored, with its scales, without its bias."""
    count = linear.weight_count
    if quantization == "none":
        return count * compute
    if quantization == "int8":
        return count + FP32 * linear.out_features
    scales = math.ceil(count / _WEIGHTS_PER_SCALE)
    of_scales = scales + FP32 * math.ceil(scales / _SCALES_PER_SCALE) + _OFFSET_BYTES
    return math.ceil(count / 2) + _CODE_BYTES + (of_scales if double_quant else FP32 * scales)


@dataclass(frozen=True)
class _Run:
    """The sums of one run; `moments` are the places where its memory may be highest."""

    shape: ModelShape
    settings: Hyperparameters
    numbers: Arithmetic
    batch: Batch
    trained_share: float
    checkpointing: bool

    @cached_property
    def trained(self) -> tuple[Tensors, ...]:
        return trained_tensors(self.shape, self.settings)

    @property
    def trained_bytes(self) -> int:
        """All trained tensors, or their gradients."""
        return FP32 * element_count(self.trained)

    @property
    def adapters(self) -> int:
        return 0 if self.settings.method == "full" else self.trained_bytes

    @property
    def optimizer(self) -> int:
        return optimizer_bytes(self.trained, self.settings.optimizer)

    def moments(self) -> dict[str, dict[str, int]]:
        """The parts that come and go, at each of them."""
        return {"loss": self._loss(), "backward": self._backward(), "update": self._update()}

    @property
    def weights(self) -> int:
        """The base as it is stored; what is trained of it is fp32, whatever the rest is in."""
        shape, settings, compute = self.shape, self.settings, self.numbers.compute
        stored = sum(
            quantized_bytes(linear, settings.quantization, settings.double_quant, compute)
            for linear in shape.linears
        )
        layer = stored + compute * (shape.layer_bias_count + shape.layer_norm_count)
        others = compute * (shape.embedding_count + shape.head_count + shape.hidden)
        whole = shape.layers * layer + others
        if settings.method != "full":
            return whole
        return whole + (FP32 - compute) * element_count(self.trained)

    def slack(self, parts: Mapping[str, int]) -> int:
        """What the allocator holds and does not use when the parts that come and go are these."""
        if self.numbers.is_cuda:
            passing = backward_peak(self.shape, self.settings, self.numbers, self.batch)
            return round(_CUDA_SLACK * (self._layer() + passing + self._head_gradient()))
        return round(_CPU_SLACK * sum(parts.values()))

    @property
    def context(self) -> int:
        """CUDA's own, or the process; on the CPU the file of the weights, mapped for loading, is resident."""
        if self.numbers.is_cuda:
            return CUDA_CONTEXT
        return CPU_PROCESS + _FILE_BYTES * self.shape.parameter_count

    def _loss(self) -> dict[str, int]:
        """The loss and its gradient, over everything that the layers keep.

        Autocast's copies of all weights are there until the loss is, and after that where the graph keeps
        them; the gradient of the head comes after.
        """
        casts = self._casts(self.shape.layers)
        head = self._head_gradient()
        if self.checkpointing:
            casts, head = (casts, 0) if casts > head else (0, head)
        return {
            "gradients": self._carried() + head,
            "activations": self._kept(),
            "logits": self._logits(),
            "workspace": self._scratch() + casts,
        }

    def _backward(self) -> dict[str, int]:
        """The gradient of the last decoder layer, whose activations are there again."""
        again = self._layer() if self.checkpointing else 0
        layers = 1 if self.checkpointing else self.shape.layers
        return {
            "gradients": self._carried() + self._head_gradient(),
            "activations": self._kept() + again + self._passing(),
            "logits": 0,
            "workspace": self._scratch() + self._dequantized() + self._casts(layers),
        }

    def _update(self) -> dict[str, int]:
        """All gradients; a tied embedding gets two, which are summed at the end of the backward pass."""
        own = (1 if self.settings.gradient_accumulation == 1 else 2) if self.shape.is_tied else 0
        return {
            "gradients": self.trained_bytes + own * self._head_gradient(),
            "activations": 0,
            "logits": 0,
            "workspace": self._scratch(),
        }

    def _layer(self) -> int:
        return kept_in_layer(self.shape, self.settings, self.numbers, self.batch)

    def _passing(self) -> int:
        """Gradients on their way through a layer, or, before them, what DoRA needs to take a norm."""
        passing = backward_peak(self.shape, self.settings, self.numbers, self.batch)
        return max(passing, self._dora_scratch())

    def _dora_scratch(self) -> int:
        """PEFT multiplies the adapter out by way of a unit matrix of the inputs, in fp32 and cast."""
        if not self.settings.use_dora:
            return 0
        targets = self.shape.targets(self.settings.target_modules)
        widest = max((linear.in_features for linear in targets), default=0)
        return (FP32 + self.numbers.compute) * widest**2

    def _kept(self) -> int:
        """What all layers keep, and the mask that they share, a byte an entry."""
        shape, settings = self.shape, self.settings
        mask = self.batch.rows * self.batch.length**2 if self.batch.is_masked else 0
        layers = trained_layers(shape, settings)
        if self.checkpointing:
            in_spite = kept_in_spite(shape, settings, self.numbers, self.batch)
            return mask + layers * (checkpoint(shape, self.numbers, self.batch) + in_spite)
        return mask + layers * kept_in_layer(shape, settings, self.numbers, self.batch)

    def _logits(self) -> int:
        """The last norm, the rows that the loss is taken over, a tile of logits, and the gradient of both."""
        numbers, hidden, tokens = self.numbers, self.shape.hidden, self.batch.tokens
        scored = math.ceil(tokens * self.trained_share) if numbers.is_cuda else tokens
        norm = (FP32 + numbers.stream) * hidden * tokens
        rows = (2 * numbers.compute + FP32) * hidden * scored
        if numbers.is_cuda:
            return norm + rows + min(scored, _TILE_TOKENS) * _TILE_WORDS * numbers.compute
        # Only what is touched of the tile is resident; without Triton it is folded by torch, in fp32.
        tile = min(scored, _TILE_TOKENS) * min(_TILE_WORDS, self.shape.vocabulary)
        return norm + rows + tile * (numbers.compute + _CPU_FOLDED_TILES * FP32)

    def _carried(self) -> int:
        """Gradients of the earlier micro-batches of a step."""
        return self.trained_bytes if self.settings.gradient_accumulation > 1 else 0

    def _head_gradient(self) -> int:
        trains_head = self.settings.method == "full" and self.settings.trainable_layers is None
        return FP32 * self.shape.embedding_count if trains_head else 0

    def _dequantized(self) -> int:
        """The largest weight in the type of the product."""
        largest = max(linear.weight_count for linear in self.shape.linears)
        return 0 if self.settings.quantization == "none" else self.numbers.compute * largest

    def _casts(self, layers: int) -> int:
        """Autocast's copies of trained weights in `layers` decoder layers."""
        layers = min(layers, trained_layers(self.shape, self.settings))
        return layers * weight_casts_in_layer(self.shape, self.settings, self.numbers)

    def _scratch(self) -> int:
        return _CUBLAS_WORKSPACE if self.numbers.is_cuda else 0
