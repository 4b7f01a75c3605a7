"""Planning beside the real thing: parameters of real models, stored weights, and what autograd keeps."""

import importlib
import json
from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from luthier.planning import DeviceFacts, ModelShape
from luthier.planning.activations import Batch, kept_in_layer, weight_casts_in_layer
from luthier.planning.footprint import arithmetic, quantized_bytes
from luthier.planning.shape import FAMILIES, Linear
from luthier.planning.trained import element_count, trained_tensors
from luthier.spec import BaseModelRef, Hyperparameters
from tests.trainer.conftest import DEFAULTS
from trainer.adapters import add_adapters
from trainer.model import load_base, trainable
from trainer.placement import Placement

SIZES: dict[str, Any] = {
    "vocab_size": 640,
    "hidden_size": 96,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
CPU = DeviceFacts(kind="cpu")
ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "bench" / "results"


@pytest.mark.parametrize(
    "extra",
    [
        {},
        {"attention_bias": True, "mlp_bias": True},
        {"tie_word_embeddings": True},
        {"tie_word_embeddings": False},
    ],
    ids=str,
)
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_config_gives_the_parameters_of_the_real_model(family: str, extra: dict[str, Any]) -> None:
    config = AutoConfig.for_model(family, **SIZES, **extra)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    shape = ModelShape.from_config(json.loads(config.to_json_string(use_diff=False)))
    assert shape.parameter_count == sum(parameter.numel() for parameter in model.parameters())
    layer = dict(model.model.layers[0].named_modules())
    linears = [name.rpartition(".")[2] for name, part in layer.items() if isinstance(part, torch.nn.Linear)]
    assert sorted(linears) == sorted(linear.name for linear in shape.linears)


@pytest.mark.parametrize("double_quant", [True, False])
@pytest.mark.parametrize(("inputs", "outputs"), [(64, 96), (256, 640), (576, 1536)])
def test_a_quantised_weight_takes_what_bitsandbytes_stores(
    inputs: int, outputs: int, double_quant: bool
) -> None:
    weight = torch.randn(outputs, inputs)
    packed, state = bnb.functional.quantize_4bit(weight, compress_statistics=double_quant, quant_type="nf4")
    stored = [packed, state.absmax, state.code]
    if double_quant:
        stored += [state.state2.absmax, state.offset]
    assert quantized_bytes(Linear("x", inputs, outputs, False, "x"), "nf4", double_quant, 2) == sum(
        tensor.nbytes for tensor in stored
    )


@pytest.mark.parametrize(
    ("change", "dtype"),
    [
        ({}, torch.bfloat16),
        ({}, torch.float32),
        ({"dropout": 0.1}, torch.bfloat16),
        ({"target_modules": ["q_proj", "down_proj"]}, torch.bfloat16),
        ({"quantization": "int8"}, torch.bfloat16),
        ({"method": "lora", "quantization": "none"}, torch.bfloat16),
        ({"method": "lora", "quantization": "none"}, torch.float32),
    ],
    ids=str,
)
@pytest.mark.parametrize("is_masked", [False, True])
def test_a_layer_keeps_what_autograd_keeps(
    tmp_path: Path, change: dict[str, Any], dtype: torch.dtype, is_masked: bool
) -> None:
    precision = "fp32" if dtype is torch.float32 else "bf16"
    settings = Hyperparameters.model_validate(DEFAULTS | {"precision": precision, "r": 4} | change)
    batch = Batch(2, 64, is_masked)
    two, three = (_kept(tmp_path / str(layers), layers, settings, dtype, batch) for layers in (2, 3))
    shape = ModelShape.from_config(json.loads((tmp_path / "2" / "config.json").read_text()))
    numbers = arithmetic(settings, CPU)
    told = kept_in_layer(shape, settings, numbers, batch) + weight_casts_in_layer(shape, settings, numbers)
    # The rest is a number a row and norm, which the formula leaves out.
    assert told == pytest.approx(three - two, rel=0.02)


@pytest.mark.parametrize("change", [{}, {"dropout": 0.1}, {"target_modules": ["q_proj"]}], ids=str)
def test_linears_of_one_input_keep_it_once_under_autocast_of_cuda(
    tmp_path: Path, change: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    # PEFT asks whether CUDA's autocast is on, whatever the device; here it is told of the CPU's.
    of_device = torch.is_autocast_enabled
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device="cpu": of_device(device))
    settings = Hyperparameters.model_validate(DEFAULTS | {"precision": "bf16", "r": 4} | change)
    batch = Batch(2, 64, is_masked=False)
    two, three = (_kept(tmp_path / str(layers), layers, settings, torch.bfloat16, batch) for layers in (2, 3))
    shape = ModelShape.from_config(json.loads((tmp_path / "2" / "config.json").read_text()))
    numbers = arithmetic(settings, DeviceFacts(kind="cuda"))
    told = kept_in_layer(shape, settings, numbers, batch) + weight_casts_in_layer(shape, settings, numbers)
    if settings.dropout:
        # Dropout's mask is of bytes on CUDA and of the input's type here.
        told += batch.tokens * sum(linear.in_features for linear in shape.linears)
    assert told == pytest.approx(three - two, rel=0.02)


@pytest.mark.parametrize("measured", sorted(RESULTS.glob("memory-*.json")), ids=lambda path: path.stem)
def test_memory_is_told_within_15_percent_of_what_real_runs_took(
    measured: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    bench = importlib.import_module("memory")
    rows = json.loads(measured.read_text())["cases"]
    errors = {row["name"]: bench.estimated(bench.Case(**row["case"]), row)["error_ratio"] for row in rows}
    assert errors
    assert {name: error for name, error in errors.items() if abs(error) > 0.15} == {}


def test_the_trained_tensors_are_those_of_the_real_model(tmp_path: Path) -> None:
    settings = Hyperparameters.model_validate(DEFAULTS)
    model = _adapted(tmp_path / "model", 3, settings, torch.float32)
    shape = ModelShape.from_config(json.loads((tmp_path / "model" / "config.json").read_text()))
    real = [parameter.numel() for parameter in trainable(model).values()]
    told = trained_tensors(shape, settings)
    assert element_count(told) == sum(real)
    assert sum(tensor.copies for tensor in told) == len(real)


def _adapted(folder: Path, layers: int, settings: Hyperparameters, dtype: torch.dtype) -> torch.nn.Module:
    config = AutoConfig.for_model("qwen2", **SIZES | {"num_hidden_layers": layers, "hidden_size": 192})
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    place = Placement(torch.device("cpu"), dtype)
    base = load_base(BaseModelRef(id="random", path=str(folder)), settings, place)
    return add_adapters(base, settings).train()


def _kept(folder: Path, layers: int, settings: Hyperparameters, dtype: torch.dtype, batch: Batch) -> int:
    """Bytes of all tensors that a forward pass keeps for its backward pass, beside the parameters."""
    model = _adapted(folder, layers, settings, dtype)
    known = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage
        return tensor

    ids = torch.randint(0, 640, (batch.rows, batch.length))
    mask = torch.ones_like(ids)
    if batch.is_masked:
        mask[0, batch.length // 2 :] = 0
    is_mixed = dtype is not torch.float32
    autocast = torch.autocast("cpu", dtype=torch.bfloat16, enabled=is_mixed)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), autocast:
        model.base_model.model.model(input_ids=ids, attention_mask=mask, use_cache=False)
    return sum(storage.nbytes() for storage in kept.values())
