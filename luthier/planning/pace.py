"""How long a run takes: floating-point operations over a rate, or launches, whichever is slower.

Entered by `time`. Where earlier runs of the same model, method and device are known, their rate is taken and
the formula is left aside. Operations are counted as in Hoffmann et al. 2022, arXiv 2203.15556, appendix F,
with what QLoRA changes: a frozen weight needs no gradient of its own, so it costs 2 operations a token and
parameter forward and 2 backward, and 2 more where activations are recomputed.
"""

import math
from dataclasses import dataclass
from functools import cached_property

from luthier.planning.activations import Batch
from luthier.planning.facts import DeviceFacts, RateFacts, TokenFacts
from luthier.planning.footprint import arithmetic, micro_batch
from luthier.planning.shape import ModelShape
from luthier.planning.steps import split_row_counts
from luthier.planning.trained import FP32, element_count, trained_tensors
from luthier.spec import Hyperparameters
from luthier.spec.base import Frozen

# Dense bf16 matrix products, FLOP/s. H100 and H200: a product of two 8192 x 8192 matrices ran at 790e12. The
# others: 0.8 of the vendor's datasheet, which is what the H100 reaches of its own.
_CUDA_RATES = {
    "H200": 790e12,
    "H100": 790e12,
    "B200": 1800e12,
    "A100": 250e12,
    "L40S": 290e12,
    "L4": 97e12,
    "A10": 100e12,
    "RTX 5090": 168e12,
    "RTX 4090": 132e12,
    "RTX 3090": 57e12,
    "T4": 52e12,
}
_MEASURED_GPUS = ("H100", "H200")
_UNKNOWN_CUDA_RATE = 60e12
# Of that rate, what the reference engine reaches where the device is what bounds it: 342 of 790e12 FLOP/s on
# an 8B shape with 4 x 2048 tokens.
_CUDA_EFFICIENCY = 0.44
# Seconds that the host needs to launch a decoder layer's kernels, forward and backward, which is what bounds
# small micro-batches on any GPU: for the layer, for each adapter, for each linear of bitsandbytes, and for
# each that is int8 or has DoRA. Fitted to 19 runs on an H100 with 16 cores: 4.5 to 32 ms a layer.
_LAUNCH_LAYER = 0.0045
_LAUNCH_ADAPTER = 0.0004
_LAUNCH_QUANTIZED = 0.0007
_LAUNCH_SPECIAL = 0.0009
# Recomputing launches the forward pass again.
_LAUNCH_RECOMPUTE = 1.65
# FLOP/s of one core: bf16 with instructions for it, and fp32; SmolLM2-135M's shape reached 63e9 and 25e9 with
# one thread on a shared server CPU with AVX-512.
_CPU_RATES = {2: 55e9, 4: 25e9}
# Seconds of a decoder layer on the CPU beside its products.
_CPU_LAYER_SECONDS = 0.015

# From the start of the process to the loaded model: imports, and 16-bit weights read and quantised.
_IMPORT_SECONDS = {"cuda": 18.0, "cpu": 8.0}
_LOAD_BYTES_PER_SECOND = {"cuda": 3e9, "cpu": 0.3e9}
# A checkpoint or the artifacts: written, flushed and hashed.
_WRITE_BYTES_PER_SECOND = 0.4e9
_SAVE_SECONDS = 1.0
_PUBLISH_SECONDS = 3.0

# p90 over p50: rates seen in past runs, by formula on a device that was measured, and on any other.
_SPREADS = {"past runs": 1.15, "formula, measured device": 1.4, "formula": 2.0}


class TimeEstimate(Frozen):
    """Seconds from the start of the trainer to its end, without waiting for a device.

    Attributes:
        p50, p90: half, and nine of ten, of runs are expected to be done by then.
        start, training, evaluation, saving: the parts of p50.
        tokens_per_second: of real tokens, in training.
        basis: where the rate comes from.
    """

    p50: float
    p90: float
    start: float
    training: float
    evaluation: float
    saving: float
    tokens_per_second: float
    basis: str


def time(
    shape: ModelShape,
    settings: Hyperparameters,
    tokens: TokenFacts,
    device: DeviceFacts,
    *,
    checkpointing: bool,
    rates: RateFacts | None = None,
) -> TimeEstimate:
    """How long a training run takes on a device with engine `trl`."""
    work = _Work(shape, settings, tokens, device, checkpointing)
    if rates is None:
        training = settings.max_steps * settings.gradient_accumulation * work.micro_batch_seconds()
        tokens_per_second = work.step_tokens * settings.max_steps / training
        is_measured = device.name is not None and any(name in device.name for name in _MEASURED_GPUS)
        basis = "formula, measured device" if is_measured else "formula"
    else:
        tokens_per_second, basis = rates.tokens_per_second, "past runs"
        training = work.step_tokens * settings.max_steps / tokens_per_second
    start = work.start_seconds() if rates is None or rates.start_seconds is None else rates.start_seconds
    evaluation = work.evaluation_seconds(training)
    saving = work.saving_seconds()
    p50 = start + training + evaluation + saving
    return TimeEstimate(
        p50=round(p50, 1),
        p90=round(p50 * _SPREADS[basis], 1),
        start=round(start, 1),
        training=round(training, 1),
        evaluation=round(evaluation, 1),
        saving=round(saving, 1),
        tokens_per_second=round(tokens_per_second, 1),
        basis=basis,
    )


def saved_bytes(shape: ModelShape, settings: Hyperparameters) -> int:
    """A checkpoint, at the most: what is trained, in fp32, and two numbers of optimizer state for each."""
    return 3 * FP32 * element_count(trained_tensors(shape, settings))


@dataclass(frozen=True)
class _Work:
    """What there is to compute in one run."""

    shape: ModelShape
    settings: Hyperparameters
    tokens: TokenFacts
    device: DeviceFacts
    recompute: bool

    @property
    def mean(self) -> float:
        """Tokens of a row."""
        return self.tokens.token_count / self.tokens.row_count

    @cached_property
    def split(self) -> tuple[int, int]:
        """Rows for training, and rows held out of them."""
        settings = self.settings
        return split_row_counts(self.tokens.row_count, settings.validation_split, settings.validation_rows)

    @cached_property
    def batch(self) -> Batch:
        """The largest micro-batch."""
        return micro_batch(self.settings, self.tokens.longest, self.split[0])

    @property
    def step_tokens(self) -> float:
        """Real tokens of an optimizer step."""
        micro = self.batch.tokens if self.settings.packing else self.batch.rows * self.mean
        return micro * self.settings.gradient_accumulation

    def micro_batch_seconds(self) -> float:
        """One forward and backward pass over a micro-batch of middling length."""
        flops = self._flops_of_micro_batch()
        if self.device.is_cuda:
            return max(flops / (_CUDA_EFFICIENCY * _cuda_rate(self.device)), self._launch_seconds())
        rate = _CPU_RATES[arithmetic(self.settings, self.device).compute] * max(1, self.device.cores)
        return flops / rate + self.shape.layers * _CPU_LAYER_SECONDS

    def start_seconds(self) -> float:
        kind = self.device.kind
        return _IMPORT_SECONDS[kind] + 2 * self.shape.parameter_count / _LOAD_BYTES_PER_SECOND[kind]

    def evaluation_seconds(self, training: float) -> float:
        """Forward passes over the validation split, and the sampled answers, each time that it is due."""
        settings, own = self.settings, self.tokens.validation_token_count
        evaluated = own or self.split[1] * self.mean
        if not evaluated:
            return 0.0
        times = math.ceil(settings.max_steps / settings.eval_steps) + 1
        per_token = training / (settings.max_steps * self.step_tokens)
        forward = 4 if self.recompute else 3
        one_token = self.micro_batch_seconds() / (
            forward * (1 if self.device.is_cuda else self._padded_tokens)
        )
        answers = settings.samples.count * settings.samples.max_new_tokens * one_token
        return times * (evaluated * per_token / forward + answers)

    def saving_seconds(self) -> float:
        settings = self.settings
        times = math.ceil(settings.max_steps / settings.save_steps)
        written = saved_bytes(self.shape, settings)
        return times * (_SAVE_SECONDS + written / _WRITE_BYTES_PER_SECOND) + _PUBLISH_SECONDS

    @property
    def _padded_length(self) -> float:
        """Tokens of the longest row of a middling micro-batch: for log-normal lengths, as texts have them."""
        if self.settings.packing:
            return float(self.batch.length)
        return min(float(self.tokens.longest), self.mean * (1 + 0.5 * math.log(self.batch.rows)))

    @property
    def _padded_tokens(self) -> float:
        return self.batch.rows * self._padded_length

    def _launch_seconds(self) -> float:
        """What the host needs for all layers of a micro-batch."""
        settings, seconds = self.settings, _LAUNCH_LAYER
        if settings.method != "full":
            adapters = len(self.shape.targets(settings.target_modules))
            is_special = settings.quantization == "int8" or settings.use_dora
            seconds += adapters * (_LAUNCH_ADAPTER + (_LAUNCH_SPECIAL if is_special else 0))
        if settings.quantization != "none":
            seconds += len(self.shape.linears) * _LAUNCH_QUANTIZED
        return self.shape.layers * seconds * (_LAUNCH_RECOMPUTE if self.recompute else 1)

    def _flops_of_micro_batch(self) -> float:
        shape, settings = self.shape, self.settings
        is_full = settings.method == "full"
        passes = (6 if is_full else 4) + (2 if self.recompute else 0)
        linears = passes * shape.layers * shape.layer_linear_count
        adapters = 0 if is_full else 6 * element_count(trained_tensors(shape, settings))
        # A causal kernel skips half of the products; one with a mask does not.
        halves = 2 if self.batch.is_masked else 1
        attention = (
            (3.5 + self.recompute) * 2 * halves * shape.layers * shape.query_features * self._padded_length
        )
        # TRL computes the logits again in the backward pass.
        scored = (
            self.tokens.trained_share * self.batch.rows * self.mean
            if self.device.is_cuda
            else self._padded_tokens
        )
        head = (8 if is_full else 6) * shape.embedding_count * scored
        return self._padded_tokens * (linears + adapters + attention) + head


def _cuda_rate(device: DeviceFacts) -> float:
    """Matrix products of a GPU, by its name."""
    name = device.name or ""
    return next((rate for part, rate in _CUDA_RATES.items() if part in name), _UNKNOWN_CUDA_RATE)
