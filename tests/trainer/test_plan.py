"""What the trainer asks planning, on the device that the tests stand on."""

from collections.abc import Callable
from typing import Any

import torch
from transformers import AutoConfig

from luthier.devices import this_cpu
from luthier.spec import Hyperparameters
from tests.trainer.conftest import DEFAULTS, Run
from trainer import placement
from trainer.plan import device_facts, plan_memory
from trainer.versions import cpu_computes_bf16

SETTINGS = Hyperparameters.model_validate(DEFAULTS)


def test_the_device_says_what_memory_it_has() -> None:
    place = placement.choose("auto", "auto")
    facts = device_facts(place)
    assert facts.is_cuda == torch.cuda.is_available()
    assert (facts.available_bytes or 0) > 1 << 28


def test_an_estimate_takes_the_cpu_for_what_the_trainer_takes_it_for() -> None:
    assert this_cpu().has_bf16 == cpu_computes_bf16()


def test_a_small_run_keeps_its_activations(make_run: Callable[..., Run]) -> None:
    config: dict[str, Any] = AutoConfig.from_pretrained(make_run().spec.model.path).to_dict()
    told = plan_memory(config, SETTINGS, placement.choose("auto", "auto"), longest=64, row_count=16)
    assert told is not None
    assert not told.gradient_checkpointing


def test_a_model_without_sizes_has_no_plan() -> None:
    place = placement.choose("auto", "auto")
    assert plan_memory({"model_type": "novel"}, SETTINGS, place, longest=64, row_count=16) is None
