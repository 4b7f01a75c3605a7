"""Noise on the embeddings while training. Source: Jain et al. 2023, NEFTune, arXiv 2310.05914, algorithm 1.

Every component of a token's embedding gets an independent draw from the uniform distribution over +-alpha /
sqrt(length x width), where the length is that of the token's own row, without padding, and alone where rows
are packed. Draws come from torch's generator, which checkpoints keep, so that a resumed run draws on.
"""

from collections.abc import Mapping

import torch
from torch import nn


class EmbeddingNoise:
    """The noise on one embedding; it is silent while the module is in evaluation mode.

    `expect` must be told the inputs of every forward pass in training before it is made.
    """

    def __init__(self, embedding: nn.Module, alpha: float) -> None:
        self._alpha = alpha
        self._lengths = torch.ones(1, 1)
        embedding.register_forward_hook(self._add)

    def expect(self, inputs: Mapping[str, torch.Tensor]) -> None:
        """Take the lengths of the rows: of `attention_mask`, or of `position_ids` where rows are packed."""
        self._lengths = row_lengths(inputs)

    def _add(self, module: nn.Module, _: object, embedded: torch.Tensor) -> torch.Tensor:
        if not module.training:
            return embedded
        lengths = self._lengths.to(embedded.device, torch.float32)
        bound = self._alpha / (lengths * embedded.size(-1)).sqrt()
        noise = torch.empty_like(embedded).uniform_(-1.0, 1.0)
        return embedded + noise * bound.unsqueeze(-1).to(embedded.dtype)


def row_lengths(inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Tokens in the row that each token belongs to: int64 [rows, 1], or [1, total] where rows are packed."""
    if "attention_mask" in inputs:
        return inputs["attention_mask"].sum(dim=1, keepdim=True)
    row_of_token = (inputs["position_ids"][0] == 0).cumsum(0) - 1
    return torch.bincount(row_of_token)[row_of_token].unsqueeze(0)
