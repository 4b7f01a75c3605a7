"""How far training has moved the weights: the proof that it did something, and the sign that it will not.

The weights at step 0 are kept on the CPU, of large tensors their first elements only; what is left out is
estimated from those.
"""

import math
from collections.abc import Iterator

import torch
from torch import nn

from trainer.model import trainable

_KEPT_ELEMENTS = 1 << 16


class Movement:
    """The trained weights of a model against what they are now.

    Args:
        model: as at step 0 of the job, or later on.
        earlier_norm: how far its weights had moved before.
    """

    def __init__(self, model: nn.Module, earlier_norm: float = 0.0) -> None:
        self._model, self._earlier_norm = model, earlier_norm
        self._before = {name: _kept(parameter) for name, parameter in trainable(model).items()}

    def norm(self) -> float:
        """2-norm of the change of all trained weights; at least what it was before."""
        squares = [scale * _square(now - before) for scale, now, before in self._pairs()]
        return max(self._earlier_norm, math.sqrt(sum(squares)))

    def ratio(self) -> float:
        """The same over the 2-norm that the weights had at step 0."""
        start = sum(scale * _square(before) for scale, _, before in self._pairs())
        return self.norm() / max(math.sqrt(start), torch.finfo(torch.float32).tiny)

    def has_effect(self) -> bool:
        """Whether the change is large enough for fp32 to tell it from none, beside the weights' own size."""
        return self.ratio() > torch.finfo(torch.float32).eps

    def b_norm(self) -> float | None:
        """2-norm over all B matrices as they are; None without adapters."""
        squares = [
            _square(parameter.detach())
            for name, parameter in trainable(self._model).items()
            if ".lora_B." in name
        ]
        return math.sqrt(sum(squares)) if squares else None

    def is_finite(self) -> bool:
        """Whether every trained weight is a number."""
        return all(bool(parameter.isfinite().all()) for parameter in trainable(self._model).values())

    def _pairs(self) -> Iterator[tuple[float, torch.Tensor, torch.Tensor]]:
        """For each tensor: how many elements one that is kept stands for, its elements now, and before."""
        for name, parameter in trainable(self._model).items():
            before = self._before[name]
            yield parameter.numel() / before.numel(), _kept(parameter), before


def _square(values: torch.Tensor) -> float:
    """Squared 2-norm; in fp32 that of weights that ran away would be infinite."""
    return float(values.double().square().sum())


def _kept(parameter: nn.Parameter) -> torch.Tensor:
    return parameter.detach().flatten()[:_KEPT_ELEMENTS].float().cpu().clone()
