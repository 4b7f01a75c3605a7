"""Memory that runs out: told with facts and advice, or got by with half the micro-batch.

The engine is the real one, made to run out of memory where a batch has more than so many rows.
"""

import pytest
import torch
from safetensors.torch import load_file

from luthier.errors import ExitCode, JobFailure
from trainer.engines.trl import TrlEngine

ADAPTER = "adapter/adapter_model.safetensors"


@pytest.fixture
def fits(monkeypatch):
    """`fits(2)`: from now on, a batch of more than 2 rows runs out of memory, having drawn at random."""
    step, probe, score = TrlEngine.step, TrlEngine.probe, TrlEngine.score

    def set_limit(rows: int, *, in_steps: bool = True) -> None:
        def check(batch):
            if len(batch.inputs["input_ids"]) > rows:
                torch.nn.functional.dropout(torch.ones(3))
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

        def limited_step(self, batches):
            for batch in batches if in_steps else ():
                check(batch)
            return step(self, batches)

        monkeypatch.setattr(TrlEngine, "step", limited_step)
        monkeypatch.setattr(TrlEngine, "probe", lambda self, batch: check(batch) or probe(self, batch))
        monkeypatch.setattr(TrlEngine, "score", lambda self, batch: check(batch) or score(self, batch))

    return set_limit


def test_running_out_tells_where_and_what_to_change(make_run, fits):
    fits(1)

    with pytest.raises(JobFailure) as failure:
        make_run().train()

    facts, *advice = failure.value.details
    assert (failure.value.code, failure.value.exit_code) == ("out_of_memory", ExitCode.GPU_OUT_OF_MEMORY)
    assert (facts["step"], facts["micro_batch_rows"]) == (1, 2)
    assert facts["peak_memory_bytes"] > 0
    assert 20 < facts["longest_row_tokens"] <= 128
    assert advice[0]["loc"] == "method.supervised.hyperparameters.batch_size"
    assert "at step 1" in failure.value.message


def test_auto_fit_halves_once_and_goes_on_with_the_same_rows(make_run, fits):
    settings = {"quantization": "none", "precision": "fp32", "batch_size": 4, "gradient_accumulation": 1}
    settings |= {"validation_split": 0.25, "eval_steps": 2}
    whole = make_run(**settings)
    whole.train()
    fits(2)
    halved = make_run(auto_fit=True, **settings)

    halved.train()

    warning = halved.warnings()["micro_batch_halved"]
    assert (warning.data["batch_size"], warning.data["gradient_accumulation"]) == (2, 2)
    assert halved.losses == pytest.approx(whole.losses, abs=1e-5)
    evals = [[event.eval_loss for event in run.events("eval_logged")] for run in (whole, halved)]
    assert evals[1] == pytest.approx(evals[0], abs=1e-5)


def test_a_run_that_resumes_stays_halved_and_exact(make_run, fits):
    settings = {"auto_fit": True, "dropout": 0.1, "save_steps": 2, "device": "cpu"}
    fits(1)
    first = make_run(**settings)
    first.train()
    resumed = make_run(resume_from=first.checkpoint(2), **settings)

    resumed.train()

    assert "micro_batch_halved" not in resumed.warnings()
    assert resumed.losses == first.losses[2:]
    left, right = (load_file(run.artifacts / ADAPTER) for run in (first, resumed))
    assert all(torch.equal(left[name], right[name]) for name in left)


def test_a_step_done_again_draws_the_same_random_numbers(make_run, fits):
    """Dropout of a run that was cut to single rows from the start, and of one that had to be."""
    settings = {"dropout": 0.1, "gradient_accumulation": 2, "device": "cpu"}
    small = make_run(**settings | {"batch_size": 1, "gradient_accumulation": 4})
    small.train()
    fits(1)
    halved = make_run(auto_fit=True, batch_size=2, **settings)

    halved.train()

    assert halved.losses == small.losses


@pytest.mark.parametrize("batch_size", [1, 8])
def test_what_cannot_be_halved_again_fails(make_run, fits, batch_size):
    fits(0 if batch_size == 1 else 3)
    run = make_run(auto_fit=True, batch_size=batch_size, gradient_accumulation=1)

    with pytest.raises(JobFailure) as failure:
        run.train()

    assert failure.value.code == "out_of_memory"
    assert len(run.warnings()) == (0 if batch_size == 1 else 1)


def test_the_probe_fails_before_the_first_step(make_run, make_rows, fits):
    fits(3, in_steps=False)
    rows = make_rows(8)
    run = make_run(rows=rows, batch_size=4, eval_steps=100)

    with pytest.raises(JobFailure) as failure:
        run.train(probes=True)

    assert failure.value.details[0]["step"] == 1
    assert run.losses == []


def test_the_probe_changes_nothing(make_run):
    settings = {"dropout": 0.1, "device": "cpu"}
    without, with_probe = make_run(**settings), make_run(**settings)

    without.train(probes=False)
    with_probe.train(probes=True)

    assert with_probe.losses == without.losses
