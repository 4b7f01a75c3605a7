"""The optimizers, their groups and their state; the schedule as a function of the step."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import get_scheduler

from luthier.errors import ExitCode, JobFailure
from tests.trainer.conftest import make_settings
from trainer import optimizer as optimizers
from trainer.optimizer import build_optimizer, parameter_groups
from trainer.schedules import build_scheduler, factor

OPTIMIZERS = ["adamw", "adamw_8bit", "paged_adamw_32bit", "paged_adamw_8bit", "adafactor"]


def _parameter(*shape):
    return torch.nn.Parameter(torch.ones(shape))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_learns(make_run, name):
    run = make_run(optimizer=name, max_steps=8)

    run.train()

    assert run.losses[-1] < run.losses[0] - 0.2


def test_the_first_step_of_8_bit_and_paged_adamw_is_that_of_adamw(make_run):
    """The state of small tensors is not quantised, and all of these implement one formula."""
    runs = [make_run(optimizer=name, precision="fp32", max_steps=2) for name in OPTIMIZERS[:4]]

    for run in runs:
        run.train()

    for other in runs[1:]:
        assert other.losses == pytest.approx(runs[0].losses, abs=1e-4)


def test_the_state_of_8_bit_adamw_is_saved_in_8_bit(make_run):
    """Tensors of 4096 elements and more are kept so."""
    run = make_run(optimizer="adamw_8bit", method="full", quantization="none", max_steps=1)
    run.train()

    tensors = load_file(run.checkpoint(1) / "optimizer.safetensors")
    state = json.loads((run.checkpoint(1) / "state.json").read_text())["optimizer"]

    embedding = "model.embed_tokens.weight"
    assert tensors[f"{embedding}:state1"].dtype == torch.uint8
    assert tensors["model.norm.weight:state1"].dtype == torch.float32
    assert state["numbers"][embedding] == {"step": 1}


def test_weight_decay_is_for_matrices_and_lora_plus_for_b():
    parameters = {
        "q.lora_A.default.weight": _parameter(2, 4),
        "q.lora_B.default.weight": _parameter(4, 2),
        "q.base_layer.bias": _parameter(4),
    }

    groups = parameter_groups(
        parameters, make_settings(learning_rate=1e-3, weight_decay=0.1, loraplus_lr_ratio=16)
    )

    told = [(len(group["params"]), group["lr"], group["weight_decay"]) for group in groups]
    assert told == [(1, 1e-3, 0.1), (1, 1e-3, 0.0), (1, pytest.approx(16e-3), 0.1)]


def test_b_learns_faster_with_lora_plus(make_run):
    """Adam's first step is the learning rate, whatever the gradient, and B starts at zero."""
    runs = [make_run(loraplus_lr_ratio=ratio, learning_rate=1e-4, max_steps=1) for ratio in (None, 8.0)]
    sizes = []
    for run in runs:
        run.train()
        weights = load_file(run.artifacts / "adapter/adapter_model.safetensors")
        sizes.append(max(float(tensor.abs().max()) for name, tensor in weights.items() if "lora_B" in name))

    assert sizes == [pytest.approx(1e-4, rel=0.01), pytest.approx(8e-4, rel=0.01)]
    assert [event.learning_rate for event in runs[1].events("step_logged")] == [1e-4]


def test_an_optimizer_that_does_not_work_here_is_refused_by_name(monkeypatch):
    def unsupported(*_):
        raise RuntimeError("no kernel for this device")

    monkeypatch.setitem(optimizers._MAKERS, "adamw_8bit", unsupported)

    with pytest.raises(JobFailure, match="no kernel for this device") as failure:
        build_optimizer({"weight": _parameter(2, 2)}, make_settings(optimizer="adamw_8bit"))

    assert (failure.value.exit_code, failure.value.param) == (ExitCode.BAD_SPEC, "qlora.optimizer")
    assert "Set optimizer to 'adamw'" in failure.value.message


@pytest.mark.parametrize(
    ("settings", "theirs"),
    [
        ({"lr_scheduler": "linear"}, ("linear", {})),
        ({"lr_scheduler": "cosine"}, ("cosine", {})),
        ({"lr_scheduler": "constant"}, ("constant_with_warmup", {})),
        (
            {"lr_scheduler": "cosine", "lr_restarts": 2},
            ("cosine_with_restarts", {"num_cycles": 3}),
        ),
        ({"lr_scheduler": "cosine", "min_lr_ratio": 0.1}, ("cosine_with_min_lr", {"min_lr_rate": 0.1})),
    ],
    ids=["linear", "cosine", "constant", "restarts", "minimum"],
)
@pytest.mark.parametrize("warmup", [0, 5])
def test_a_schedule_is_that_of_transformers_of_the_same_name(settings, theirs, warmup):
    chosen = make_settings(max_steps=31, warmup_steps=warmup, learning_rate=1.0, **settings)
    name, special = theirs
    ours, other = (torch.optim.SGD([_parameter(1)], lr=1.0) for _ in range(2))
    schedules = (
        build_scheduler(ours, chosen),
        get_scheduler(name, other, warmup, 31, scheduler_specific_kwargs=special),
    )
    rates = []

    for _ in range(32):
        rates.append([schedule.get_last_lr()[0] for schedule in schedules])
        for stepped, schedule in zip((ours, other), schedules, strict=True):
            stepped.step()
            schedule.step()

    assert [left for left, _ in rates] == pytest.approx([right for _, right in rates], abs=1e-12)


def test_linear_and_restarted_cosine_end_at_their_minimum():
    for scheduler, restarts in (("linear", 0), ("cosine", 0), ("cosine", 3)):
        settings = make_settings(
            lr_scheduler=scheduler, lr_restarts=restarts, min_lr_ratio=0.25, max_steps=40
        )

        factors = [factor(step, settings) for step in range(41)]

        assert (factors[0], factors[-1]) == (1.0, 0.25)
        assert min(factors) >= 0.25
        assert [step for step in range(1, 40) if factors[step] == 1.0] == [10, 20, 30][:restarts]


def test_a_step_beyond_the_last_keeps_the_minimum():
    assert factor(50, make_settings(max_steps=40, min_lr_ratio=0.25)) == 0.25
    assert factor(50, make_settings(max_steps=40, lr_scheduler="cosine")) == 0.0
