"""The memory of a run: numbers by hand for a small shape, and what must hold for any."""

from typing import Any

import pytest

from luthier import planning
from luthier.planning import DeviceFacts, ModelShape, ShapeError
from luthier.planning.footprint import quantized_bytes
from luthier.planning.trained import Tensors, element_count, optimizer_bytes, trained_tensors
from luthier.spec import Hyperparameters
from tests.factories import make_request

GIB = 1 << 30
CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 1000,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
SMALL = ModelShape.from_config(CONFIG)
# Qwen2.5-1.5B's, arXiv 2412.15115.
LARGE = ModelShape.from_config(
    {
        "model_type": "qwen2", "vocab_size": 151936, "hidden_size": 1536, "intermediate_size": 8960,
        "num_hidden_layers": 28, "num_attention_heads": 12, "num_key_value_heads": 2,
        "max_position_embeddings": 32768, "tie_word_embeddings": True,
    }
)  # fmt: skip
GPU = DeviceFacts(kind="cuda", total_bytes=80 * GIB)


def settings(**qlora: Any) -> Hyperparameters:
    batch = qlora.pop("batch_size", 4)
    request = make_request(
        hyperparameters={"batch_size": batch},
        qlora={"r": 4, "gradient_accumulation": 1, "gradient_checkpointing": True} | qlora,
    )
    return planning.resolve(request, 1000, qlora.get("max_seq_length", 512), seed=1)


def needed(shape: ModelShape = LARGE, *, longest: int = 512, **qlora: Any) -> int:
    return planning.memory(shape, settings(**qlora), longest=longest, device=GPU).needed_bytes


def test_the_parts_of_a_small_shape_by_hand() -> None:
    # A layer: q 64x64, k and v 64x32, o 64x64, gate and up 64x128, down 128x64, two norms of 64.
    assert SMALL.layer_linear_count == 2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128
    assert SMALL.parameter_count == 2 * 1000 * 64 + 2 * (36864 + 128) + 64
    # r 4 on all seven: 4 x (in + out) each.
    sides = (64 + 64) * 2 + (64 + 32) * 2 + (64 + 128) * 3
    told = planning.memory(SMALL, settings(), longest=512, device=GPU)
    assert told.adapters == 4 * 2 * 4 * sides
    assert told.optimizer == 2 * told.adapters
    # NF4: half a byte a weight, a byte for each 64, 4 for each 256 of those, a code of 64 and a mean of 4.
    assert quantized_bytes(SMALL.linears[0], "nf4", True, 2) == 2048 + 64 + 4 + 64 + 4
    linear_bytes = sum(quantized_bytes(linear, "nf4", True, 2) for linear in SMALL.linears)
    assert told.weights == 2 * (linear_bytes + 2 * 128) + 2 * (2 * 1000 * 64 + 64)


@pytest.mark.parametrize(
    ("optimizer", "size", "expected"),
    [
        ("adamw", 5000, 40_000),
        ("adamw_8bit", 4095, 8 * 4095),  # too small to be quantised
        ("adamw_8bit", 5120, 2 * (5120 + 4 * 20)),
        ("paged_adamw_32bit", 99_999, 8 * 99_999),
        ("paged_adamw_8bit", 100_000, 0),  # outside the device's allocator
        ("adafactor", 5000, 20_000),  # a vector is not factored
    ],
)
def test_the_state_of_each_optimizer(optimizer: Any, size: int, expected: int) -> None:
    assert optimizer_bytes((Tensors(size, 0, 1),), optimizer) == expected


def test_adafactor_keeps_rows_and_columns_of_a_matrix() -> None:
    assert optimizer_bytes((Tensors(100, 50, 3),), "adafactor") == 3 * 4 * 150


def test_full_trains_every_parameter_once() -> None:
    every = trained_tensors(LARGE, settings(method="full"))
    assert element_count(every) == LARGE.parameter_count


def test_layers_that_are_frozen_are_not_trained() -> None:
    some = trained_tensors(LARGE, settings(method="full", trainable_layers=3))
    assert element_count(some) == 3 * LARGE.layer_count


@pytest.mark.parametrize(
    ("less", "more"),
    [
        ({"longest": 256}, {"longest": 512}),
        ({"batch_size": 4}, {"batch_size": 8}),
        ({"r": 8}, {"r": 64}),
        ({"gradient_checkpointing": True}, {"gradient_checkpointing": False}),
        ({"quantization": "nf4"}, {"quantization": "int8"}),
        ({"double_quant": True}, {"double_quant": False}),
        (
            {"quantization": "int8", "gradient_checkpointing": False},
            {"method": "lora", "gradient_checkpointing": False},
        ),
        ({"method": "lora"}, {"method": "full"}),
        ({"method": "full", "trainable_layers": 4}, {"method": "full"}),
        ({"optimizer": "adamw_8bit", "r": 64}, {"optimizer": "adamw", "r": 64}),
        ({"gradient_checkpointing": False}, {"gradient_checkpointing": False, "dropout": 0.1}),
        ({"use_dora": False}, {"use_dora": True}),
        ({"target_modules": ["q_proj", "v_proj"]}, {"target_modules": "all-linear"}),
        ({"batch_size": 4}, {"batch_size": 4, "packing": True, "max_seq_length": 2048}),
    ],
    ids=str,
)
def test_more_never_takes_less(less: dict[str, Any], more: dict[str, Any]) -> None:
    assert needed(**less) < needed(**more)


def test_int8_keeps_its_inputs_whatever_is_recomputed() -> None:
    # Of each token and layer, in two bytes: what attention, heads, gate and down read.
    inputs = 2 * 28 * 2048 * (3 * 1536 + 8960)
    assert needed(quantization="int8") - needed() > inputs


def test_rows_are_never_longer_than_they_may_be() -> None:
    assert needed(longest=512) == needed(longest=100_000)


def test_a_micro_batch_holds_no_more_rows_than_there_are() -> None:
    numbers = settings(batch_size=64)
    few = planning.memory(LARGE, numbers, longest=512, device=GPU, row_count=4)
    assert few == planning.memory(LARGE, settings(batch_size=4), longest=512, device=GPU)


def test_a_wider_vocabulary_shows_in_the_embedding() -> None:
    wide = ModelShape.from_config(CONFIG | {"vocab_size": 2000})
    assert needed(wide) - needed(SMALL) == 2 * 2 * 1000 * 64


def test_auto_keeps_activations_where_they_fit() -> None:
    numbers = settings(gradient_checkpointing="auto", batch_size=8)
    answers = [
        planning.wants_checkpointing(LARGE, numbers, DeviceFacts(kind="cuda", total_bytes=size), longest=512)
        for size in (8 * GIB, 80 * GIB, None)
    ]
    assert answers == [True, False, True]


def test_free_memory_counts_and_not_all_there_is() -> None:
    numbers = settings(gradient_checkpointing="auto", batch_size=8)
    taken = DeviceFacts(kind="cuda", total_bytes=80 * GIB, free_bytes=8 * GIB)
    assert planning.wants_checkpointing(LARGE, numbers, taken, longest=512)


def test_what_is_asked_for_is_done_whatever_fits() -> None:
    tight = DeviceFacts(kind="cuda", total_bytes=GIB)
    assert not planning.wants_checkpointing(LARGE, settings(gradient_checkpointing=False), tight, longest=512)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_local_experts": 8}, "mixture of experts"),
        ({"hidden_size": None}, "hidden_size is None"),
        ({"num_hidden_layers": "2"}, "num_hidden_layers is '2'"),
        ({"vocab_size": 0}, "vocab_size is 0"),
    ],
)
def test_a_config_without_sizes_is_refused_with_the_reason(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        ModelShape.from_config(CONFIG | change)


def test_a_family_that_is_not_known_is_counted_as_llama_and_says_so() -> None:
    unknown = ModelShape.from_config(CONFIG | {"model_type": "novel"})
    assert (unknown.is_exact, unknown.parameter_count) == (False, SMALL.parameter_count)


def test_a_multimodal_config_is_read_by_its_text_model() -> None:
    nested = ModelShape.from_config({"model_type": "gemma3", "text_config": CONFIG})
    assert nested.parameter_count == SMALL.parameter_count
