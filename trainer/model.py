"""The base model of a run, quantised on loading, and its tokenizer.

`load_base` reads a local folder and nothing else: safetensors only, no code of the model's own, no hub.
Method: Dettmers et al. 2023, QLoRA, arXiv 2305.14314.
"""

import json
from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import torch
from safetensors import SafetensorError
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

# Keys by which a config.json makes a loader run code that is not installed here.
_FORBIDDEN_KEYS = ("auto_map", "trust_remote_code", "_attn_implementation_internal")


def load_base(ref: BaseModelRef, settings: Hyperparameters, placement: Placement) -> PreTrainedModel:
    """The base model of a run, on its device and quantised as the spec says.

    Frozen weights are held in the type that the run computes in; all of them in fp32 where all are trained.

    Raises:
        JobFailure: the folder is missing, lacks what training needs, or is not a causal language model.
    """
    is_all_trained = settings.method == "full" and settings.trainable_layers is None
    dtype = torch.float32 if is_all_trained else placement.dtype
    return _load(
        ref, _quantization(settings.quantization, settings.double_quant, placement), dtype, placement
    )


def load_weights(
    ref: BaseModelRef, quantization: str, double_quant: bool, placement: Placement
) -> PreTrainedModel:
    """As `load_base`, for callers without hyperparameters; `quantization` is one of the spec's words."""
    return _load(ref, _quantization(quantization, double_quant, placement), placement.dtype, placement)


def load_tokenizer(ref: BaseModelRef) -> PreTrainedTokenizerBase:
    """The tokenizer of a base model.

    Raises:
        JobFailure: the folder has none that can be read.
    """
    try:
        return AutoTokenizer.from_pretrained(ref.path, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise _not_loaded(ref, f"tokenizer: {error}") from error


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that training changes, by name, in the model's order."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def _load(
    ref: BaseModelRef, quantization: BitsAndBytesConfig | None, dtype: torch.dtype, placement: Placement
) -> PreTrainedModel:
    folder = Path(ref.path)
    _check_config(ref, folder)
    try:
        model, loaded = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            quantization_config=quantization,
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
