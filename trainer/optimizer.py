"""The optimizers, over fp32 parameters, and which parameter is treated how: the same for every engine.

Checkpoints exchange this state between engines, so it is made here and not by a library's trainer; how it is
saved stands in `optimizer_state.py`.
"""

import itertools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import bitsandbytes as bnb
import torch
from torch.optim import Optimizer
from transformers import Adafactor

from luthier.errors import ExitCode, JobFailure
from luthier.spec import Hyperparameters
from luthier.spec import Optimizer as OptimizerName
from trainer.versions import known_warnings_silenced

# bitsandbytes keeps the state of smaller tensors in 32 bit; the probe must be one that it takes in 8 bit.
_PROBE_SIZE = 8192


def build_optimizer(parameters: Mapping[str, torch.nn.Parameter], settings: Hyperparameters) -> Optimizer:
    """The optimizer of a run, with the betas (0.9, 0.999) and epsilon 1e-8 of AdamW, arXiv 1711.05101.

    Adafactor (arXiv 1804.04235) keeps no first moment and takes the learning rate as it is given, without the
    paper's scaling by step and size, as other trainers do it under this name. bitsandbytes' optimizers have
    their state from the start, so that its memory is known before the first step.

    Raises:
        JobFailure: the installed library cannot run this optimizer on the device of the parameters.
    """
    groups = parameter_groups(parameters, settings)
    _check_works(settings, next(iter(parameters.values())).device)
    optimizer = _MAKERS[settings.optimizer](groups, settings.learning_rate)
    allocate_state(optimizer)
    return optimizer


def parameter_groups(
    parameters: Mapping[str, torch.nn.Parameter], settings: Hyperparameters
) -> list[dict[str, Any]]:
    """Parameters by learning rate and weight decay; the first group has the learning rate of the settings.

    Weight decay is for matrices: biases, norms and DoRA's magnitudes have none. With `loraplus_lr_ratio`, B
    learns so many times as fast as A. Source: Hayou et al. 2024, LoRA+, arXiv 2402.12354, section 4.
    """
    groups = []
    for is_b, is_matrix in itertools.product((False, True), (True, False)):
        members = [
            parameter
            for name, parameter in parameters.items()
            if ("lora_B" in name) == is_b and (parameter.ndim > 1) == is_matrix
        ]
        ratio = (settings.loraplus_lr_ratio or 1.0) if is_b else 1.0
        decay = settings.weight_decay if is_matrix else 0.0
        groups.append({"params": members, "lr": settings.learning_rate * ratio, "weight_decay": decay})
    return [group for group in groups if group["params"]]


def allocate_state(optimizer: Optimizer) -> None:
    """Make the state that bitsandbytes would make at the first step; nothing for other optimizers.

    Its paged tensors are special allocations, into which a checkpoint is copied.
    """
    if not isinstance(optimizer, bnb.optim.optimizer.Optimizer8bit):
        return
    with known_warnings_silenced():
        for group_index, group in enumerate(optimizer.param_groups):
            for index, parameter in enumerate(group["params"]):
                optimizer.init_state(group, parameter, group_index, index)


def _adamw(groups: Iterable[dict[str, Any]], rate: float) -> Optimizer:
    return torch.optim.AdamW(groups, lr=rate, fused=True)


def _adafactor(groups: Iterable[dict[str, Any]], rate: float) -> Optimizer:
    return Adafactor(groups, lr=rate, scale_parameter=False, relative_step=False)


_MAKERS: dict[OptimizerName, Callable[[Iterable[dict[str, Any]], float], Optimizer]] = {
    "adamw": _adamw,
    "adamw_8bit": bnb.optim.AdamW8bit,
    "paged_adamw_32bit": bnb.optim.PagedAdamW32bit,
    "paged_adamw_8bit": bnb.optim.PagedAdamW8bit,
    "adafactor": _adafactor,
}


def _check_works(settings: Hyperparameters, device: torch.device) -> None:
    """Take one step on a tensor of our own: libraries tell what they lack in the first step only."""
    probe = torch.nn.Parameter(torch.zeros(_PROBE_SIZE, device=device))
    probe.grad = torch.ones_like(probe)
    try:
        optimizer = _MAKERS[settings.optimizer]([{"params": [probe]}], 1.0)
        allocate_state(optimizer)
        optimizer.step()
    except (RuntimeError, NotImplementedError, AttributeError, ValueError) as error:
        raise _unavailable(settings, device, error) from error
    if not probe.detach().any():
        raise _unavailable(settings, device, "a step changes nothing")


def _unavailable(settings: Hyperparameters, device: torch.device, reason: object) -> JobFailure:
    return JobFailure(
        f"The optimizer {settings.optimizer} does not work on this worker's {device.type}: {reason}. Set "
        "optimizer to 'adamw'",
        "invalid_spec",
        ExitCode.BAD_SPEC,
        "qlora.optimizer",
    )
