"""PiSSA: adapters that start as the principal part of a weight, which the frozen base then lacks.

With W = U S V^T, A starts as sqrt(S_r / s) V_r^T and B as U_r sqrt(S_r / s), where s is the adapter's scale,
and the base keeps W - s B A. What was learned, s (B A - B0 A0), is a plain adapter of twice the rank over the
original base: that is the form in which it is saved, and the start can be read back from it.
Source: Meng et al. 2024, arXiv 2404.02948, sections 3 and C (conversion); the fast decomposition with 16
iterations is its section 4's: exact ones take minutes a matrix in models of billions of parameters.
"""

from collections.abc import Iterator

import torch
from peft import PeftModel
from peft.tuners.lora import Linear

_ITERATIONS = 16
_ADAPTER = "default"

Tensors = dict[str, torch.Tensor]


def split_base(model: PeftModel) -> None:
    """Move the principal part of every adapted weight into its adapter; draws from torch's generator."""
    for _, layer in _layers(model):
        weight = layer.get_base_layer().weight.detach()
        u, s, v = torch.svd_lowrank(weight.float(), q=layer.r[_ADAPTER], niter=_ITERATIONS)
        root = (s / layer.scaling[_ADAPTER]).sqrt()
        _start(layer, a=root.unsqueeze(1) * v.T, b=u * root)


def split_base_as(model: PeftModel, saved: Tensors) -> None:
    """As `split_base`, with the start that `plain` keeps in what it saved: the same base to the last bit."""
    for name, layer in _layers(model):
        rank = layer.r[_ADAPTER]
        _start(
            layer,
            a=saved[f"{name}.lora_A.weight"][rank:].to(layer.get_base_layer().weight.device),
            b=-saved[f"{name}.lora_B.weight"][:, rank:].to(layer.get_base_layer().weight.device),
        )


def start_of(model: PeftModel) -> Tensors:
    """The adapter weights as they are now, on the CPU, under the names of a saved adapter."""
    start: Tensors = {}
    for name, layer in _layers(model):
        start[f"{name}.lora_A.weight"] = layer.lora_A[_ADAPTER].weight.detach().to("cpu", copy=True)
        start[f"{name}.lora_B.weight"] = layer.lora_B[_ADAPTER].weight.detach().to("cpu", copy=True)
    return start


def plain(tensors: Tensors, start: Tensors) -> Tensors:
    """The adapter over the original base: [A; A0] and [B, -B0], of twice the rank; biases as they are."""
    return {name: _joined(name, tensor, start.get(name)) for name, tensor in tensors.items()}


def trained_half(saved: Tensors) -> Tensors:
    """What `plain` was given."""
    return {name: _first_half(name, tensor) for name, tensor in saved.items()}


def _joined(name: str, tensor: torch.Tensor, start: torch.Tensor | None) -> torch.Tensor:
    if start is None:
        return tensor
    here = start.to(tensor.device)
    return torch.cat([tensor, here]) if "lora_A" in name else torch.cat([tensor, -here], dim=1)


def _first_half(name: str, tensor: torch.Tensor) -> torch.Tensor:
    if "lora_A" in name:
        return tensor[: tensor.size(0) // 2]
    return tensor[:, : tensor.size(1) // 2] if "lora_B" in name else tensor


def _start(layer: Linear, a: torch.Tensor, b: torch.Tensor) -> None:
    base = layer.get_base_layer().weight
    rest = base.detach().float() - layer.scaling[_ADAPTER] * b.contiguous() @ a.contiguous()
    base.data = rest.to(base.dtype)
    layer.lora_A[_ADAPTER].weight.data = a.contiguous()
    layer.lora_B[_ADAPTER].weight.data = b.contiguous()


def _layers(model: PeftModel) -> Iterator[tuple[str, Linear]]:
    for name, module in model.named_modules():
        if isinstance(module, Linear):
            yield name, module
