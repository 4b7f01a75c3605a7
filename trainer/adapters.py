"""LoRA adapters on a frozen base: made, started from others, saved as stock PEFT files, and read back.

Trained weights are fp32. Method: Hu et al. 2021, LoRA, arXiv 2106.09685; Kalajdzievski 2023, rsLoRA,
arXiv 2312.03732; Liu et al. 2024, DoRA, arXiv 2402.09353.
"""

import copy
import json
import math
from pathlib import Path
from typing import Any

from peft import (
    LoraConfig,
    PeftModel,
    TaskType,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel

from luthier.errors import ExitCode, JobFailure
from luthier.spec import BaseModelRef, Hyperparameters
from trainer import pissa
from trainer.model import trainable
from trainer.versions import keep_trained_biases, known_warnings_silenced

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"

# The attribute of a model under which the start of PiSSA's adapters is kept, which saving needs.
_START = "adapter_start"


def add_adapters(model: PreTrainedModel, settings: Hyperparameters, saved: Path | None = None) -> PeftModel:
    """Freeze the base and put LoRA weights on it.

    A is drawn from torch's generator and B is zero; with PiSSA they are the principal part of each weight,
    and the base changes by as much.

    Args:
        saved: the adapter of the checkpoint that the run resumes from; PiSSA splits the base as it was split
            then.
    Raises:
        JobFailure: a target module is not in the model, r is larger than one of its sides, or DoRA is asked
            for where it cannot be.
    """
    targets = _targets(model, settings)
    _check_rank(targets, settings)
    _check_combination(model, settings)
    config = LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=settings.r,
        lora_alpha=_whole_if_possible(settings.alpha),
        lora_dropout=settings.dropout,
        target_modules=sorted({name.rpartition(".")[2] for name in targets}),
        bias=settings.bias,
        use_rslora=settings.use_rslora,
        use_dora=settings.use_dora,
    )
    with known_warnings_silenced():
        adapted = get_peft_model(model, config)
    if settings.init_lora_weights == "pissa":
        _split(adapted, saved)
    for parameter in trainable(adapted).values():
        parameter.data = parameter.data.float()
    keep_trained_biases(adapted)
    return adapted


def start_from(model: PeftModel, folder: Path, settings: Hyperparameters) -> None:
    """Put the weights of an adapter of another job into a fresh one, as where training begins.

    Raises:
        JobFailure: it cannot be read, or was made with other settings than these.
    """
    if settings.init_lora_weights == "pissa":
        raise _cannot_start("init_lora_weights 'pissa' is another start: leave it out")
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _cannot_start(f"{CONFIG} cannot be read: {error}") from error
    differing = _differences(config, settings, model.peft_config["default"].target_modules)
    if differing:
        raise _cannot_start("; ".join(differing))
    try:
        load_adapter(model, folder)
    except (KeyError, OSError, RuntimeError, SafetensorError) as error:
        raise _cannot_start(f"{WEIGHTS} does not fit: {error}") from error


def save_adapter(model: PeftModel, folder: Path, ref: BaseModelRef) -> None:
    """Write the adapter as stock PEFT reads it over the original base.

    The base is named by id, never by a path of this machine. PiSSA's adapters are saved in their plain form,
    with twice the rank.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state = get_peft_model_state_dict(model, state_dict=dict(trainable(model)), save_embedding_layers=False)
    config = copy.copy(model.peft_config["default"])
    start = getattr(model, _START, None)
    if start is not None:
        state = pissa.plain(state, start)
        growth = math.sqrt(2) if config.use_rslora else 2
        config.r, config.lora_alpha = 2 * config.r, growth * config.lora_alpha
    tensors = {name: tensor.detach().contiguous() for name, tensor in state.items()}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    config.base_model_name_or_path, config.revision, config.inference_mode = ref.id, ref.revision, True
    config.target_modules = sorted(config.target_modules)
    config.save_pretrained(str(folder))


def load_adapter(model: PeftModel, folder: Path) -> None:
    """Put the weights that `save_adapter` wrote into a model of the same shape.

    Raises:
        KeyError: the files do not hold all of the model's adapter weights.
        RuntimeError: a tensor has another shape.
    """
    state = load_file(folder / WEIGHTS)
    if getattr(model, _START, None) is not None:
        state = pissa.trained_half(state)
    # peft itself cannot tell a missing bias from the base's other weights, which are never in the file.
    expected = get_peft_model_state_dict(
        model, state_dict=dict(trainable(model)), save_embedding_layers=False
    )
    missing = expected.keys() - state.keys()
    if missing:
        raise KeyError(min(missing))
    result = set_peft_model_state_dict(model, state)
    if result.unexpected_keys:
        raise KeyError(result.unexpected_keys[0])


def _split(model: PeftModel, saved: Path | None) -> None:
    if saved is None:
        pissa.split_base(model)
    else:
        pissa.split_base_as(model, load_file(saved / WEIGHTS))
    setattr(model, _START, pissa.start_of(model))


def _differences(config: dict[str, Any], settings: Hyperparameters, targets: set[str]) -> list[str]:
    """What in an adapter's config is not as the settings have it, each with both values."""
    asked = {
        "peft_type": "LORA",
        "r": settings.r,
        "lora_alpha": settings.alpha,
        "target_modules": sorted(targets),
        "bias": settings.bias,
        "use_rslora": settings.use_rslora,
        "use_dora": settings.use_dora,
        "rank_pattern": {},
        "alpha_pattern": {},
    }
    there = {"bias": "none", "use_rslora": False, "use_dora": False, "rank_pattern": {}, "alpha_pattern": {}}
    there |= config
    if isinstance(there.get("target_modules"), list):
        there["target_modules"] = sorted(there["target_modules"])
    if there.get("target_modules") == "all-linear" == settings.target_modules:
        asked["target_modules"] = "all-linear"
    return [
        f"{name} of the adapter is {there.get(name)} and the job's is {value}"
        for name, value in asked.items()
        if there.get(name) != value
    ]


def _cannot_start(reason: str) -> JobFailure:
    return JobFailure(
        f"Training cannot start from this tuned model: {reason}", "invalid_spec", ExitCode.BAD_SPEC, "model"
    )


def _check_rank(targets: dict[str, nn.Linear], settings: Hyperparameters) -> None:
    side, name = min((min(module.in_features, module.out_features), name) for name, module in targets.items())
    if settings.r > side:
        raise JobFailure(
            f"r is {settings.r} and the smallest target module, {name}, has a side of {side}: "
            f"set r to {side} or less",
            "invalid_spec",
            ExitCode.BAD_SPEC,
            "qlora.r",
        )


def _check_combination(model: PreTrainedModel, settings: Hyperparameters) -> None:
    if settings.use_dora and settings.init_lora_weights == "pissa":
        raise JobFailure(
            "init_lora_weights 'pissa' and use_dora exclude each other: DoRA's norms would belong to a base "
            "that no one has. Leave one of them out",
            "invalid_spec",
            ExitCode.BAD_SPEC,
            "qlora.init_lora_weights",
        )
    # peft 0.21 moves a weight when it has dequantised it on a CPU, and bitsandbytes then loses its scales.
    if settings.use_dora and settings.quantization == "int8" and model.device.type == "cpu":
        raise JobFailure(
            "use_dora on a base in int8 needs a GPU: set quantization to 'nf4' or 'fp4', or leave use_dora "
            "out",
            "invalid_spec",
            ExitCode.BAD_SPEC,
            "qlora.use_dora",
        )


def _targets(model: PreTrainedModel, settings: Hyperparameters) -> dict[str, nn.Linear]:
    """The modules to adapt by full name; the output head is never one, its weights are read directly."""
    head = model.get_output_embeddings()
    linear = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not head
    }
    if not linear:
        raise JobFailure(
            f"{type(model).__name__} has no linear layer that adapters could be put on: set method to 'full'",
            "invalid_spec",
            ExitCode.BAD_SPEC,
            "qlora.method",
        )
    if settings.target_modules == "all-linear":
        return linear
    valid = {name.rpartition(".")[2] for name in linear}
    unknown = [name for name in settings.target_modules if name not in valid]
    if unknown:
        raise JobFailure(
            f"target_modules names {', '.join(unknown)}, which the model does not have. "
            f"It has: {', '.join(sorted(valid))}",
            "invalid_spec",
            ExitCode.BAD_SPEC,
            "qlora.target_modules",
        )
    return {
        name: module for name, module in linear.items() if name.rpartition(".")[2] in settings.target_modules
    }


def _whole_if_possible(number: float) -> int | float:
    return int(number) if float(number).is_integer() else number
