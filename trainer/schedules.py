"""The learning rate as a pure function of the step, the same for every engine.

`factor` says which share of `learning_rate` an update takes; each parameter group multiplies its own rate by
it. A resumed run needs nothing but the number of the step.
"""

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from luthier.spec import Hyperparameters


def factor(done: int, settings: Hyperparameters) -> float:
    """The share of the learning rate that the update after `done` updates takes, 0 to 1.

    It rises in a line from 0 over `warmup_steps`; then it is 1 (constant), or falls to `min_lr_ratio` at
    `max_steps` in a line or along half a cosine. With `lr_restarts` the way down is cut into so many more
    equal parts, and each starts at 1 again. Source: Loshchilov and Hutter 2017, SGDR, arXiv 1608.03983.
    """
    if done < settings.warmup_steps:
        return done / settings.warmup_steps
    if settings.lr_scheduler == "constant":
        return 1.0
    progress = (done - settings.warmup_steps) / max(1, settings.max_steps - settings.warmup_steps)
    lowest = settings.min_lr_ratio
    return lowest + (1.0 - lowest) * _descent(min(progress, 1.0), settings)


def build_scheduler(optimizer: Optimizer, settings: Hyperparameters) -> LambdaLR:
    """`factor` applied to every parameter group of `optimizer`."""
    return LambdaLR(optimizer, lambda done: factor(done, settings))


def _descent(progress: float, settings: Hyperparameters) -> float:
    """From 1 at progress 0 to 0 at progress 1."""
    if settings.lr_scheduler == "linear" or progress == 1.0:
        return 1.0 - progress
    within = progress * (settings.lr_restarts + 1) % 1.0
    return 0.5 * (1.0 + math.cos(math.pi * within))
