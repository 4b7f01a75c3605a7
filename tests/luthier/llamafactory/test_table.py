"""The table of arguments: all are in it, each does what it says, and the page tells the same."""

from pathlib import Path
from typing import Any

import pytest

from luthier.errors import LuthierError
from luthier.llamafactory import convert
from luthier.llamafactory.page import page
from luthier.llamafactory.table import ARGUMENTS, GROUPS, Treatment
from luthier.spec import JobRequest
from tests.luthier.llamafactory.names import NAMES

ROOT = Path(__file__).parents[3]
LEAST = {"model_name_or_path": "tiny", "dataset": "rows"}
OF_KIND = {kind: [each for each in ARGUMENTS.values() if each.treatment is kind] for kind in Treatment}


def test_every_argument_stands_in_one_row() -> None:
    assert sum(len(group.arguments) for group in GROUPS) == len(ARGUMENTS)
    assert [name for name in NAMES if name not in ARGUMENTS] == []


@pytest.mark.parametrize("name", sorted(ARGUMENTS))
def test_an_argument_names_a_field_of_ours_or_says_why_not(name: str) -> None:
    argument = ARGUMENTS[name]
    assert argument.fields or argument.note
    if argument.treatment is Treatment.HONOURED:
        assert argument.fields
    for field in argument.fields:
        node: Any = JobRequest
        for part in field.split("."):
            assert part in node.model_fields, f"{field} is no field of a job"
            kind = node.model_fields[part].annotation
            node = kind if hasattr(kind, "model_fields") else next(iter(getattr(kind, "__args__", ())), None)


@pytest.mark.parametrize("argument", OF_KIND[Treatment.REFUSED], ids=lambda each: each.name)
def test_a_refused_argument_stops_the_job_and_its_default_does_not(argument: Any) -> None:
    assert convert({**LEAST, argument.name: argument.default}).notes
    with pytest.raises(LuthierError, match=f"'{argument.name}': ") as caught:
        convert({**LEAST, argument.name: "something else"})
    assert argument.note in caught.value.message


@pytest.mark.parametrize("argument", OF_KIND[Treatment.WITHOUT_EFFECT], ids=lambda each: each.name)
def test_what_is_without_effect_changes_nothing_and_is_noted(argument: Any) -> None:
    changed = convert({**LEAST, argument.name: "anything"})
    assert changed.request == convert(LEAST).request
    assert any(note.startswith(f"{argument.name} is without effect: ") for note in changed.notes)


# A value for each argument that is done, and what becomes of it; found by hand.
DONE: dict[str, tuple[Any, str, Any]] = {
    "model_name_or_path": ("other", "model", "other"),
    "adapter_name_or_path": ("ft:tiny:org::1", "model", "ft:tiny:org::1"),
    "disable_gradient_checkpointing": (True, "qlora.gradient_checkpointing", False),
    "gradient_checkpointing": (True, "qlora.gradient_checkpointing", True),
    "activation_checkpointing": (True, "qlora.gradient_checkpointing", True),
    "quantization_bit": (8, "qlora.quantization", "int8"),
    "finetuning_type": ("full", "qlora.method", "full"),
    "pure_bf16": (True, "qlora.precision", "bf16"),
    "bf16": (True, "qlora.precision", "bf16"),
    "fp16": (True, "qlora.precision", "fp16"),
    "lora_rank": (64, "qlora.r", 64),
    "lora_alpha": (7, "qlora.alpha", 7.0),
    "lora_dropout": (0.1, "qlora.dropout", 0.1),
    "lora_target": ("q_proj, v_proj", "qlora.target_modules", ["q_proj", "v_proj"]),
    "loraplus_lr_ratio": (16, "qlora.loraplus_lr_ratio", 16),
    "use_rslora": (True, "qlora.use_rslora", True),
    "use_dora": (True, "qlora.use_dora", True),
    "pissa_init": (True, "qlora.init_lora_weights", "pissa"),
    "template": ("qwen", "dataset.template", "qwen"),
    "cutoff_len": (512, "qlora.max_seq_length", 512),
    "train_on_prompt": (True, "dataset.train_on", "all"),
    "mask_history": (True, "dataset.train_on", "last"),
    "max_samples": (7, "dataset.max_samples", 7),
    "val_size": (100, "dataset.validation_rows", 100),
    "enable_thinking": (False, "dataset.thoughts", "remove"),
    "packing": (True, "qlora.packing", True),
    "neat_packing": (True, "qlora.packing", True),
    "per_device_train_batch_size": (2, "hyperparameters.batch_size", 2),
    "gradient_accumulation_steps": (4, "qlora.gradient_accumulation", 4),
    "num_train_epochs": (2.0, "hyperparameters.n_epochs", 2),
    "max_steps": (60, "qlora.max_steps", 60),
    "learning_rate": ("1e-4", "qlora.learning_rate", 1e-4),
    "lr_scheduler_type": ("cosine", "qlora.lr_scheduler", "cosine"),
    "warmup_ratio": (0.1, "qlora.warmup_ratio", 0.1),
    "warmup_steps": (5, "qlora.warmup_steps", 5),
    "optim": ("adamw_bnb_8bit", "qlora.optimizer", "adamw_8bit"),
    "weight_decay": (0.01, "qlora.weight_decay", 0.01),
    "max_grad_norm": (0.3, "qlora.max_grad_norm", 0.3),
    "neftune_noise_alpha": (5, "qlora.neftune_alpha", 5),
    "auto_find_batch_size": (True, "qlora.auto_fit", True),
    "seed": (3407, "seed", 3407),
    "logging_strategy": ("epoch", "qlora.logging_steps", "epoch"),
    "logging_steps": (1, "qlora.logging_steps", 1),
    "save_strategy": ("epoch", "qlora.save_steps", "epoch"),
    "save_steps": (100, "qlora.save_steps", 100),
    "save_total_limit": (1, "qlora.save_total_limit", 1),
    "output_dir": ("./saves/a b", "suffix", "saves-a-b"),
    "run_name": ("first", "metadata.run_name", "first"),
}
# Beside others, in test_convert.
ELSEWHERE = {
    "quantization_method", "quantization_type", "double_quantization", "freeze_trainable_layers", "dataset",
    "eval_dataset", "dataset_dir", "lr_scheduler_kwargs", "eval_strategy", "eval_steps",
    "evaluation_strategy", "early_stopping_steps", "load_best_model_at_end",
}  # fmt: skip


def test_no_argument_that_is_done_goes_untested() -> None:
    done = {each.name for kind in (Treatment.HONOURED, Treatment.MAPPED) for each in OF_KIND[kind]}
    assert done == set(DONE) | ELSEWHERE


@pytest.mark.parametrize("name", DONE)
def test_an_argument_becomes_a_field(name: str) -> None:
    value, field, expected = DONE[name]
    found: Any = convert({**LEAST, name: value}).request
    for part in field.split("."):
        found = found[part]
    assert found == expected


def test_the_page_is_the_one_that_the_table_prints() -> None:
    committed = (ROOT / "docs" / "llamafactory.md").read_text(encoding="utf-8")
    assert committed == page(), "run: python -m luthier.llamafactory > docs/llamafactory.md"
