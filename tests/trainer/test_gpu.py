"""What only a GPU can show."""

import pytest
import torch

from luthier.errors import ExitCode, JobFailure

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
