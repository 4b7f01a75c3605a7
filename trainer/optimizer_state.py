"""An optimizer's state as named tensors and plain values, and back, for any optimizer and without pickles.

Tensors are named by parameter, not by number, so that another order of the parameters does no harm. The state
of 8-bit optimizers is kept as it is, quantised; it serves the optimizer that wrote it.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch.optim import Optimizer

Names = Mapping[str, torch.nn.Parameter]


def state_of(optimizer: Optimizer, parameters: Names) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors named `PARAMETER:KEY`, for safetensors; numbers and the settings of the groups, for JSON."""
    tensors: dict[str, torch.Tensor] = {}
    numbers: dict[str, dict[str, float]] = {}
    for name, parameter in _in_order(optimizer, parameters):
        for key, value in optimizer.state[parameter].items():
            if isinstance(value, torch.Tensor):
                # The maps of 8-bit optimizers are one tensor for all parameters, which safetensors refuses.
                tensors[f"{name}:{key}"] = value.detach().to("cpu", copy=True).contiguous()
            else:
                numbers.setdefault(name, {})[key] = value
    groups = [
        {key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups
    ]
    return tensors, {"numbers": numbers, "groups": groups}


def restore(
    optimizer: Optimizer, parameters: Names, tensors: Mapping[str, torch.Tensor], values: dict[str, Any]
) -> None:
    """Put back what `state_of` gave.

    Raises:
        KeyError: the state is of other parameters.
        ValueError: it is of an optimizer with other groups or shapes.
    """
    found: dict[str, dict[str, Any]] = {name: dict(numbers) for name, numbers in values["numbers"].items()}
    for label, tensor in tensors.items():
        name, _, key = label.rpartition(":")
        found.setdefault(name, {})[key] = tensor
    for name, parameter in _in_order(optimizer, parameters):
        _put(optimizer, parameter, found[name])
    for group, saved in zip(optimizer.param_groups, values["groups"], strict=True):
        for key, value in saved.items():
            group[key] = tuple(value) if isinstance(value, list) else value


def _put(optimizer: Optimizer, parameter: torch.nn.Parameter, found: Mapping[str, Any]) -> None:
    """Into the tensors that are there, which may be paged; new ones only where there are none."""
    state = optimizer.state[parameter]
    for key, value in found.items():
        if isinstance(state.get(key), torch.Tensor):
            if state[key].shape != value.shape or state[key].dtype != value.dtype:
                raise ValueError(f"{key} is {list(value.shape)} and not {list(state[key].shape)}")
            state[key].copy_(value)
        else:
            state[key] = value.to(parameter.device) if isinstance(value, torch.Tensor) else value


def _in_order(optimizer: Optimizer, parameters: Names) -> Iterator[tuple[str, torch.nn.Parameter]]:
    names = {id(parameter): name for name, parameter in parameters.items()}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            yield names[id(parameter)], parameter
