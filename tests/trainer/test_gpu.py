"""What only a GPU can show."""

import pytest
import torch

from luthier.errors import ExitCode, JobFailure
from tests.trainer.conftest import make_settings
from trainer import optimizer_state
from trainer.optimizer import build_optimizer

pytestmark = pytest.mark.gpu


@pytest.fixture
def little_memory():
    torch.cuda.set_per_process_memory_fraction(0.002)
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)


def test_auto_takes_the_gpu_and_keeps_activations_that_fit(make_run):
    run = make_run()

    run.train()

    plan = run.events("plan_chosen")[0]
    assert run.events("run_started")[0].device == "cuda"
    assert (plan.precision, plan.gradient_checkpointing) == ("bf16", False)


def test_running_out_of_memory_exits_77(make_run, make_rows, little_memory):
    rows = [(ids * 40, mask * 40) for ids, mask in make_rows(256)]
    run = make_run(rows=rows, batch_size=256, gradient_accumulation=1, gradient_checkpointing=False)

    with pytest.raises(JobFailure) as failure:
        run.train()

    assert failure.value.exit_code == ExitCode.GPU_OUT_OF_MEMORY


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"method": "lora", "quantization": "none"},
        {"method": "full", "quantization": "none", "learning_rate": 1e-3},
        {"use_dora": True, "quantization": "int8"},
    ],
    ids=["nf4", "lora", "full", "int8-dora"],
)
def test_fp16_learns_and_resumes_with_its_scale(make_run, same, settings):
    settings = {"precision": "fp16", "save_steps": 2, "max_steps": 6} | settings
    run = make_run(**settings)
    run.train()
    resumed = make_run(**settings, resume_from=run.checkpoint(2))
    resumed.train()

    assert run.events("plan_chosen")[0].precision == "fp16"
    assert run.events("warning_raised") == []
    assert run.losses[-1] < run.losses[0] - 0.1
    assert same(resumed.losses, run.losses[2:])


@pytest.mark.parametrize("name", ["adamw_8bit", "paged_adamw_32bit", "paged_adamw_8bit", "adafactor"])
def test_every_optimizer_resumes_on_the_gpu(make_run, same, name):
    settings = {"optimizer": name, "method": "full", "quantization": "none", "learning_rate": 1e-3}
    settings |= {"save_steps": 2, "max_steps": 5}
    run = make_run(**settings)
    run.train()
    resumed = make_run(**settings, resume_from=run.checkpoint(2))
    resumed.train()

    assert run.losses[-1] < run.losses[0] - 0.1
    assert same(resumed.losses, run.losses[2:])


def test_a_restored_paged_state_is_paged_still():
    """bitsandbytes pages tensors of 100,000 elements and more."""
    parameter = torch.nn.Parameter(torch.ones(400, 400, device="cuda"))
    settings = make_settings(optimizer="paged_adamw_32bit")
    first, second = (build_optimizer({"weight": parameter}, settings) for _ in range(2))
    parameter.grad = torch.ones_like(parameter)
    first.step()

    optimizer_state.restore(
        second, {"weight": parameter}, *optimizer_state.state_of(first, {"weight": parameter})
    )

    state = second.state[parameter]
    assert state["state1"].is_paged
    assert torch.equal(state["state1"], first.state[parameter]["state1"])
    assert state["step"] == 1
