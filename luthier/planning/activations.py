"""What a forward pass keeps for the backward pass, a token and decoder layer at a time, with engine `trl`.

The terms follow the code that runs: RMS norms keep their input in fp32; scaled dot product attention keeps
its arguments and its result; SiLU and the product behind it keep theirs; a LoRA pair keeps its input and the
r numbers between A and B. A test compares the sum with what autograd keeps for a real model.

Whether linears that read the same input keep one copy of it or one each is decided by PEFT: layers of
bitsandbytes under CUDA's autocast pass the input on as it is, all others cast it to fp32 and back.
"""

from dataclasses import dataclass

from luthier.planning.shape import Linear, ModelShape
from luthier.planning.trained import FP32
from luthier.spec import Hyperparameters


@dataclass(frozen=True)
class Batch:
    """A micro-batch: `rows` rows of `length` tokens, padding included.

    Attributes:
        is_masked: whether there is padding or packing, which makes attention take a mask of length x length a
            row and repeat grouped keys and values for each head.
    """

    rows: int
    length: int
    is_masked: bool

    @property
    def tokens(self) -> int:
        return self.rows * self.length


@dataclass(frozen=True)
class Arithmetic:
    """The number formats of a run, in bytes a number.

    Attributes:
        compute: of matrix products.
        stream: of the hidden states that run from layer to layer; fp32 where the embedding is trained.
    """

    compute: int
    stream: int
    is_cuda: bool

    @property
    def is_mixed(self) -> bool:
        return self.compute < FP32


def kept_in_layer(shape: ModelShape, settings: Hyperparameters, numbers: Arithmetic, batch: Batch) -> int:
    """Bytes that one decoder layer keeps of a micro-batch until its backward pass."""
    per_token = (
        _norms(shape, settings)
        + _attention(shape, numbers, batch)
        + _linear_inputs(shape, settings, numbers)
        + numbers.compute * 3 * shape.intermediate
        + _dora(shape, settings, numbers)
    )
    return per_token * batch.tokens + _mask(numbers, batch)


def weight_casts_in_layer(shape: ModelShape, settings: Hyperparameters, numbers: Arithmetic) -> int:
    """Bytes of autocast's copies of the fp32 matrices that are trained in one decoder layer."""
    if not numbers.is_mixed:
        return 0
    if settings.method == "full":
        return numbers.compute * shape.layer_linear_count
    sides = sum(linear.in_features + linear.out_features for linear in shape.targets(settings.target_modules))
    return numbers.compute * settings.r * sides


def checkpoint(shape: ModelShape, numbers: Arithmetic, batch: Batch) -> int:
    """Bytes that one decoder layer keeps where activations are recomputed: its input."""
    return numbers.stream * shape.hidden * batch.tokens


def backward_peak(shape: ModelShape, settings: Hyperparameters, numbers: Arithmetic, batch: Batch) -> int:
    """Bytes of passing gradients, at the most: when the last linear of the MLP has been gone through.

    Three tensors of intermediate size: the gradients that come through the weight and through the adapter,
    and their sum. Where PEFT casts, the adapter's is in fp32 for a moment. Two of hidden size go along.
    """
    compute = numbers.compute
    casts = numbers.is_mixed and settings.method != "full" and not shares_inputs(settings, numbers)
    wide = (2 * compute + FP32 if casts else 3 * compute) * shape.intermediate
    return (wide + 2 * numbers.stream * shape.hidden) * batch.tokens


def kept_in_spite(shape: ModelShape, settings: Hyperparameters, numbers: Arithmetic, batch: Batch) -> int:
    """Bytes that one decoder layer keeps although activations are recomputed.

    bitsandbytes' int8 products hold their inputs where checkpointing does not reach them: as attributes of
    the graph and not as saved tensors (0.50.2, `MatMul8bitLt`).
    """
    if settings.quantization != "int8":
        return 0
    inputs = {linear.source: linear.in_features for linear in shape.linears}
    return numbers.compute * sum(inputs.values()) * batch.tokens


def widens(settings: Hyperparameters, numbers: Arithmetic) -> bool:
    """Whether DoRA makes the hidden states fp32: its magnitudes are, and nothing casts their product back."""
    return settings.use_dora and numbers.is_mixed and shares_inputs(settings, numbers)


def shares_inputs(settings: Hyperparameters, numbers: Arithmetic) -> bool:
    """Whether linears of one input keep one copy of it together."""
    return not numbers.is_mixed or (numbers.is_cuda and settings.quantization != "none")


def _norms(shape: ModelShape, settings: Hyperparameters) -> int:
    """fp32 inputs; norms that are trained also keep what their weight is multiplied with."""
    copies = 2 if settings.method == "full" else 1
    return copies * FP32 * shape.layer_norm_features


def _attention(shape: ModelShape, numbers: Arithmetic, batch: Batch) -> int:
    keys = shape.query_features if batch.is_masked else shape.kv_features
    return numbers.compute * 2 * (shape.query_features + keys) + FP32 * shape.heads


def _linear_inputs(shape: ModelShape, settings: Hyperparameters, numbers: Arithmetic) -> int:
    if settings.method == "full":
        return numbers.compute * _distinct_inputs(shape.linears, is_shared=not numbers.is_mixed, is_full=True)
    targets = shape.targets(settings.target_modules)
    kept = numbers.compute * settings.r * len(targets)
    if settings.dropout > 0:
        # Each adapter drops on its own: the result, and a mask of a byte (of fp32 on the CPU).
        mask = 1 if numbers.is_cuda else FP32
        kept += sum((numbers.compute + mask) * linear.in_features for linear in targets)
    else:
        is_shared = shares_inputs(settings, numbers)
        # int8 products keep their input whether there is an adapter or not.
        keepers = shape.linears if is_shared and settings.quantization == "int8" else targets
        kept += numbers.compute * _distinct_inputs(keepers, is_shared=is_shared, is_full=False)
    return kept


def _dora(shape: ModelShape, settings: Hyperparameters, numbers: Arithmetic) -> int:
    """DoRA keeps what the weight and the adapter gave; layers of bitsandbytes give the sum in fp32."""
    if not settings.use_dora:
        return 0
    outputs = sum(linear.out_features for linear in shape.targets(settings.target_modules))
    return outputs * (2 * numbers.compute + (FP32 if widens(settings, numbers) else 0))


def _distinct_inputs(linears: tuple[Linear, ...], *, is_shared: bool, is_full: bool) -> int:
    """Features of the inputs that are kept; what attention has kept as its result costs nothing again."""
    if is_shared:
        return sum(
            {linear.source: linear.in_features for linear in linears if linear.source != "heads"}.values()
        )
    return sum(linear.in_features for linear in linears if not (is_full and linear.source == "heads"))


def _mask(numbers: Arithmetic, batch: Batch) -> int:
    """Attention turns the mask of booleans into one that it can add, anew in every layer."""
    return numbers.compute * batch.rows * batch.length**2 if batch.is_masked else 0
