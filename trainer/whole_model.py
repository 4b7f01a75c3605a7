"""Full fine-tuning: the weights of the model itself, all of them or those of its last decoder layers.

What is trained is held in fp32, so that small updates count; products are computed in the run's precision.
Frozen layers stay in that precision. A checkpoint holds the trained weights alone; the artifact is the whole
model in the type that the base had, as transformers reads it.
"""

import copy
import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel

from luthier.errors import ExitCode, JobFailure
from luthier.spec import BaseModelRef, Hyperparameters
from trainer.model import trainable

TRAINED = "trained.safetensors"


def unfreeze(model: PreTrainedModel, settings: Hyperparameters) -> PreTrainedModel:
    """Let all weights be trained, or those of the last `trainable_layers` decoder layers, in fp32.

    Raises:
        JobFailure: the model has fewer layers.
    """
    if settings.trainable_layers is None:
        parts: list[nn.Module] = [model]
    else:
        layers = _decoder_layers(model)
        if settings.trainable_layers > len(layers):
            raise JobFailure(
                f"trainable_layers is {settings.trainable_layers} and the model has {len(layers)} layers: "
                f"set trainable_layers to {len(layers)} or less, or leave it out to train all weights",
                "invalid_spec",
                ExitCode.BAD_SPEC,
                "qlora.trainable_layers",
            )
        parts = layers[-settings.trainable_layers :]
    model.requires_grad_(False)
    for part in parts:
        part.float().requires_grad_(True)
    return model


def save_trained(model: PreTrainedModel, folder: Path) -> None:
    """Write the trained weights in fp32, each once, under their names in the model."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: parameter.detach().contiguous() for name, parameter in trainable(model).items()}
    save_file(tensors, folder / TRAINED, metadata={"format": "pt"})


def load_trained(model: PreTrainedModel, folder: Path) -> None:
    """Put back what `save_trained` wrote.

    Raises:
        KeyError: a weight is missing.
        RuntimeError: one has another shape.
    """
    tensors = load_file(folder / TRAINED)
    with torch.no_grad():
        for name, parameter in trainable(model).items():
            parameter.copy_(tensors[name])


def publish(model: PreTrainedModel, folder: Path, ref: BaseModelRef) -> None:
    """Write the whole model, in the 16-bit type of the base where it had one, and else in fp32."""
    dtype = _stored_type(ref)
    model.save_pretrained(folder, state_dict=_cast(model.state_dict(), dtype))
    config = copy.deepcopy(model.config)
    config.dtype = dtype
    config.save_pretrained(folder)


def _cast(state: dict[str, torch.Tensor], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Copies on the CPU; what was one tensor under two names, such as a tied head, still is."""
    copies: dict[int, torch.Tensor] = {}
    for tensor in state.values():
        if tensor.data_ptr() not in copies:
            copies[tensor.data_ptr()] = tensor.to(
                "cpu", dtype if tensor.is_floating_point() else tensor.dtype
            )
    return {name: copies[tensor.data_ptr()] for name, tensor in state.items()}


def _decoder_layers(model: PreTrainedModel) -> list[nn.Module]:
    """The list of modules that has as many entries as the config has layers."""
    count = model.config.get_text_config().num_hidden_layers
    lists = (module for module in model.modules() if isinstance(module, nn.ModuleList))
    return list(next(module for module in lists if len(module) == count))


def _stored_type(ref: BaseModelRef) -> torch.dtype:
    config = json.loads((Path(ref.path) / "config.json").read_text(encoding="utf-8"))
    name = str(config.get("dtype") or config.get("torch_dtype"))
    return {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(name, torch.float32)
