"""AdamW in fp32 over the adapters, and its learning rate: the same for every engine.

Checkpoints exchange this state between engines, so it is made here and not by a library's trainer.
"""

import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers import get_scheduler

from luthier.spec import Hyperparameters


def build_optimizer(parameters: list[torch.nn.Parameter], settings: Hyperparameters) -> torch.optim.AdamW:
    """AdamW with the betas (0.9, 0.999) and epsilon 1e-8 of its paper, arXiv 1711.05101."""
    return torch.optim.AdamW(
        parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True
    )


def build_scheduler(optimizer: torch.optim.Optimizer, settings: Hyperparameters) -> LambdaLR:
    """Linear warmup over `warmup_steps`, then what `lr_scheduler` says down to `max_steps`."""
    constant = settings.lr_scheduler == "constant"
    return get_scheduler(
        "constant_with_warmup" if constant else settings.lr_scheduler,
        optimizer,
        num_warmup_steps=settings.warmup_steps,
        num_training_steps=settings.max_steps,
    )
