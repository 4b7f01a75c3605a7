"""The frozen base, quantised on loading, and the adapters that are trained on it.

`load_base` reads a local folder and nothing else: safetensors only, no code of the model's own, no hub.
`add_adapters` puts fp32 LoRA weights on it; `save_adapter` and `load_adapter` are their stock PEFT files.
Method: Dettmers et al. 2023, QLoRA, arXiv 2305.14314.
"""

import copy
import json
from pathlib import Path
from typing import Any

import bitsandbytes as bnb
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
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from luthier.errors import ExitCode, JobFailure
from luthier.spec import BaseModelRef, Hyperparameters
from trainer.placement import Placement
from trainer.versions import known_warnings_silenced

ADAPTER_WEIGHTS = "adapter_model.safetensors"

# Keys by which a config.json makes a loader run code that is not installed here.
_FORBIDDEN_KEYS = ("auto_map", "trust_remote_code", "_attn_implementation_internal")


def load_base(ref: BaseModelRef, settings: Hyperparameters, placement: Placement) -> PreTrainedModel:
    """The base model of a run, on its device and quantised as the spec says.

    Raises:
        JobFailure: the folder is missing, lacks what training needs, or is not a causal language model.
    """
    return load_weights(ref, settings.quantization, settings.double_quant, placement)


def load_weights(
    ref: BaseModelRef, quantization: str, double_quant: bool, placement: Placement
) -> PreTrainedModel:
    """As `load_base`, for callers without hyperparameters; `quantization` is one of the spec's words."""
    folder = Path(ref.path)
    _check_config(ref, folder)
    try:
        model, loaded = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=placement.dtype,
            quantization_config=_quantization(quantization, double_quant, placement),
            device_map={"": placement.device},
            attn_implementation="sdpa",
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise _not_loaded(ref, f"{type(error).__name__}: {error}") from error
    if loaded["missing_keys"]:
        raise _not_loaded(ref, f"its files lack {sorted(loaded['missing_keys'])[0]}, which would be random")
    _keep_weights_unpacked(model)
    return model


def load_tokenizer(ref: BaseModelRef) -> PreTrainedTokenizerBase:
    """The tokenizer of a base model.

    Raises:
        JobFailure: the folder has none that can be read.
    """
    try:
        return AutoTokenizer.from_pretrained(ref.path, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise _not_loaded(ref, f"tokenizer: {error}") from error


def add_adapters(model: PreTrainedModel, settings: Hyperparameters) -> PeftModel:
    """Freeze the base and put LoRA weights on it: fp32, A drawn from torch's generator, B zero.

    Raises:
        JobFailure: a target module is not in the model, or r is larger than one of its sides.
    """
    targets = _targets(model, settings)
    side, name = min((min(module.in_features, module.out_features), name) for name, module in targets.items())
    if settings.r > side:
        raise JobFailure(
            f"r is {settings.r} and the smallest target module, {name}, has a side of {side}: "
            f"set r to {side} or less",
            "invalid_spec",
            ExitCode.BAD_SPEC,
            "qlora.r",
        )
    config = LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=settings.r,
        lora_alpha=int(settings.alpha) if settings.alpha.is_integer() else settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=sorted({name.rpartition(".")[2] for name in targets}),
        use_rslora=settings.use_rslora,
    )
    with known_warnings_silenced():
        adapted = get_peft_model(model, config)
    for parameter in trainable(adapted).values():
        parameter.data = parameter.data.float()
    return adapted


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that training changes, by name, in the model's order."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def save_adapter(model: PeftModel, folder: Path, ref: BaseModelRef) -> None:
    """Write the adapter as stock PEFT reads it; the base is named by id, never by a path of this machine."""
    folder.mkdir(parents=True, exist_ok=True)
    state = get_peft_model_state_dict(model, state_dict=dict(trainable(model)), save_embedding_layers=False)
    tensors = {name: tensor.detach().contiguous() for name, tensor in state.items()}
    save_file(tensors, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    config = copy.copy(model.peft_config["default"])
    config.base_model_name_or_path, config.revision, config.inference_mode = ref.id, ref.revision, True
    config.target_modules = sorted(config.target_modules)
    config.save_pretrained(str(folder))


def load_adapter(model: PeftModel, folder: Path) -> None:
    """Put the weights that `save_adapter` wrote into a model of the same shape.

    Raises:
        KeyError: the files do not hold all of the model's adapter weights.
    """
    result = set_peft_model_state_dict(model, load_file(folder / ADAPTER_WEIGHTS))
    missing = [name for name in result.missing_keys if name in trainable(model)]
    if missing or result.unexpected_keys:
        raise KeyError((missing or result.unexpected_keys)[0])


def _check_config(ref: BaseModelRef, folder: Path) -> None:
    """Refuse a folder before a library has read it."""
    try:
        config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise JobFailure(
            f"The base model {ref.id} is not on this worker: {folder.name}/config.json is missing. "
            "Register the model again",
            "model_not_found",
            ExitCode.MISSING,
            "model",
        ) from error
    except ValueError as error:
        raise _not_loaded(ref, f"config.json is not JSON: {error}") from error
    forbidden = [key for key, value in config.items() if _names_code(key, value)]
    if forbidden:
        raise _not_loaded(ref, f"config.json has {forbidden[0]}, which would run code of the model's own")
    if "quantization_config" in config:
        raise _not_loaded(
            ref, "it is quantised already: use the original weights, Luthier quantises on loading"
        )


def _names_code(key: str, value: object) -> bool:
    """A kernel with a slash in its name is fetched from the hub."""
    return (key in _FORBIDDEN_KEYS and bool(value)) or ("attn_implementation" in key and "/" in str(value))


def _not_loaded(ref: BaseModelRef, reason: str) -> JobFailure:
    return JobFailure(
        f"The base model {ref.id} cannot be loaded: {reason}", "model_load_failed", ExitCode.MISSING, "model"
    )


def _quantization(name: str, double_quant: bool, placement: Placement) -> BitsAndBytesConfig | None:
    if name == "none":
        return None
    if name == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=name,
        bnb_4bit_use_double_quant=double_quant,
        bnb_4bit_compute_dtype=placement.dtype,
    )


def _keep_weights_unpacked(model: nn.Module) -> None:
    """Forbid a forward of bitsandbytes that leaves its weights without a gradient.

    On CPUs with AVX512-BF16 the first forward without gradients packs the weights in place for good; training
    after an evaluation then goes on silently without the gradients through the base (seen in 0.50.2).
    """
    for module in model.modules():
        if isinstance(module, bnb.nn.Linear4bit):
            module.support_avx512bf16_for_cpu = False


def _targets(model: PreTrainedModel, settings: Hyperparameters) -> dict[str, nn.Linear]:
    """The modules to adapt by full name; the output head is never one, its weights are read directly."""
    head = model.get_output_embeddings()
    linear = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not head
    }
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
