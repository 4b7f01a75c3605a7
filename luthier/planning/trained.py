"""The tensors that a run trains, and what their gradients and the optimizer's state take.

Adapters are fp32, and so are weights that are trained themselves; so is every gradient.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from luthier.planning.shape import Linear, ModelShape
from luthier.spec import Hyperparameters, Optimizer

FP32 = 4

# bitsandbytes keeps tensors under 4,096 elements in fp32; a block of 256 elements shares an fp32 scale.
_SMALLEST_8BIT = 4096
_BLOCK_8BIT = 256
# Below this many elements its paged optimizers do not page; what they page is not the allocator's.
_SMALLEST_PAGED = 100_000


@dataclass(frozen=True)
class Tensors:
    """`copies` tensors of one shape; `columns` is 0 for vectors."""

    rows: int
    columns: int
    copies: int

    @property
    def size(self) -> int:
        """Elements of one of them."""
        return self.rows * max(1, self.columns)

    @property
    def element_count(self) -> int:
        return self.size * self.copies


def trained_tensors(shape: ModelShape, settings: Hyperparameters) -> tuple[Tensors, ...]:
    """All tensors that training changes."""
    if settings.method == "full":
        return tuple(_weights(shape, settings))
    return tuple(_adapters(shape, settings))


def element_count(tensors: tuple[Tensors, ...]) -> int:
    return sum(tensor.element_count for tensor in tensors)


def optimizer_bytes(tensors: tuple[Tensors, ...], optimizer: Optimizer) -> int:
    """The optimizer's state on the device, from the first update on."""
    return sum(_state_bytes(tensor, optimizer) * tensor.copies for tensor in tensors)


def trained_layers(shape: ModelShape, settings: Hyperparameters) -> int:
    """Decoder layers with something to train in them."""
    return min(shape.layers, settings.trainable_layers or shape.layers)


def _adapters(shape: ModelShape, settings: Hyperparameters) -> Iterator[Tensors]:
    targets = shape.targets(settings.target_modules)
    for linear in targets:
        yield Tensors(settings.r, linear.in_features, shape.layers)
        yield Tensors(linear.out_features, settings.r, shape.layers)
        if settings.use_dora:
            yield Tensors(linear.out_features, 0, shape.layers)
    if settings.bias != "none":
        of: tuple[Linear, ...] = shape.linears if settings.bias == "all" else targets
        yield from (Tensors(linear.bias_count, 0, shape.layers) for linear in of if linear.has_bias)


def _weights(shape: ModelShape, settings: Hyperparameters) -> Iterator[Tensors]:
    layers = trained_layers(shape, settings)
    for linear in shape.linears:
        yield Tensors(linear.out_features, linear.in_features, layers)
        if linear.has_bias:
            yield Tensors(linear.bias_count, 0, layers)
    yield Tensors(shape.layer_norm_count, 0, layers)
    if settings.trainable_layers is None:
        yield Tensors(shape.hidden, 0, 1)
        yield Tensors(shape.vocabulary, shape.hidden, 1 if shape.is_tied else 2)


def _state_bytes(tensor: Tensors, optimizer: Optimizer) -> int:
    size = tensor.size
    if optimizer == "adafactor":
        # Shazeer and Stern 2018, arXiv 1804.04235: a matrix keeps the means of its rows and columns.
        return FP32 * (tensor.rows + tensor.columns if tensor.columns else size)
    if optimizer.startswith("paged") and size >= _SMALLEST_PAGED:
        return 0
    if optimizer.endswith("8bit") and size >= _SMALLEST_8BIT:
        return 2 * (size + FP32 * math.ceil(size / _BLOCK_8BIT))
    return 2 * FP32 * size
