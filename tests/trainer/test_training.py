"""What a run learns, and what must not change it."""

import math
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from luthier.errors import ExitCode, JobFailure
from trainer.engines.trl import TrlEngine

ADAPTER = "adapter/adapter_model.safetensors"


def test_the_loss_falls_on_both_splits(make_run):
    run = make_run(max_steps=10, eval_steps=5, validation_split=0.25)

    ended = run.train()

    assert ended.outcome == "done"
    assert [event.step for event in run.events("eval_logged")] == [0, 5, 10]
    assert run.losses[-1] < run.losses[0] - 0.2
    assert ended.result["eval_loss_last"] < ended.result["eval_loss_first"] - 0.2


@pytest.mark.parametrize("quantization", ["fp4", "int8", "none"])
def test_every_kind_of_base_can_be_trained_on(make_run, quantization):
    run = make_run(quantization=quantization, method="lora" if quantization == "none" else "qlora")

    run.train()

    assert run.losses[-1] < run.losses[0] - 0.1


def test_a_run_tells_its_story_in_order(make_run):
    run = make_run(validation_split=0.25, eval_steps=2, save_steps=2)

    run.train()

    phases = [event.phase for event in run.events("phase_changed")]
    one_cycle = ["training", "evaluating", "saving"]
    assert phases == ["loading_model", "evaluating", *one_cycle, *one_cycle]
    plan = run.events("plan_chosen")[0]
    assert (plan.total_steps, plan.train_row_count, plan.eval_row_count) == (4, 12, 4)
    assert plan.engine_reason
    assert plan.memory_bytes > 1 << 28
    last = run.events("step_logged")[-1]
    assert (last.step, last.total_steps, last.seconds_remaining) == (4, 4, 0)
    assert last.tokens_per_second > 0
    assert last.peak_memory_bytes > 0


def test_the_loss_is_the_mean_over_all_tokens_of_a_step(make_run):
    """Rows differ in length, so a mean of means over micro-batches would give another number."""
    shapes = [(4, 1), (2, 2), (1, 4)]
    runs = [
        make_run(batch_size=size, gradient_accumulation=count, precision="fp32", quantization="none")
        for size, count in shapes
    ]

    for run in runs:
        run.train()

    for other in runs[1:]:
        assert other.losses == pytest.approx(runs[0].losses, abs=1e-3)


def test_the_loss_does_not_depend_on_how_a_step_is_split(make_run):
    """With a small learning rate, so that rounding in one step is not what the next one starts from."""
    settings = {"precision": "fp32", "quantization": "none", "method": "lora", "learning_rate": 1e-5}
    whole = make_run(batch_size=8, gradient_accumulation=1, **settings)
    split = make_run(batch_size=2, gradient_accumulation=4, **settings)

    whole.train()
    split.train()

    norms = [[event.grad_norm for event in run.events("step_logged")] for run in (whole, split)]
    assert split.losses == pytest.approx(whole.losses, abs=1e-5)
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)


def test_tokens_behind_the_mask_change_nothing(make_run, make_rows, same):
    rows = make_rows(16)
    tails = ([11, 12, 13], [211, 212, 213])
    runs = [make_run(rows=[(ids + tail, [*mask, 0, 0, 0]) for ids, mask in rows]) for tail in tails]

    for run in runs:
        run.train()

    assert same(runs[0].losses, runs[1].losses)


def test_padding_changes_nothing(make_run, make_rows):
    """One long row in a micro-batch pads the others; alone in theirs they are not padded."""
    rows = make_rows(3)
    rows.append((rows[0][0] * 3, [0] * len(rows[0][0]) * 3))
    settings = {"max_steps": 1, "precision": "fp32", "quantization": "none"}
    padded = make_run(rows=rows, batch_size=4, gradient_accumulation=1, **settings)
    alone = make_run(rows=rows, batch_size=1, gradient_accumulation=4, **settings)

    padded.train()
    alone.train()

    assert padded.losses == pytest.approx(alone.losses, abs=1e-4)


def test_evaluation_in_the_middle_does_not_change_the_training(make_run, make_rows, same, monkeypatch):
    """On a CPU with AVX512-BF16, as every CPU claims to be here, bitsandbytes would repack the weights."""
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: True)
    held_out = make_rows(4, first=100)
    without = make_run(max_steps=6, dropout=0.05)
    with_evaluations = make_run(max_steps=6, dropout=0.05, validation=held_out, eval_steps=2)

    without.train()
    with_evaluations.train()

    norms = [[event.grad_norm for event in run.events("step_logged")] for run in (without, with_evaluations)]
    assert same(without.losses, with_evaluations.losses)
    assert same(*norms)


def test_adapters_are_trained_in_fp32(make_run):
    run = make_run()

    run.train()

    tensors = load_file(run.artifacts / ADAPTER).values()
    assert {tensor.dtype for tensor in tensors} == {torch.float32}
    assert any(not torch.equal(tensor, tensor.bfloat16().float()) for tensor in tensors)


def test_recomputed_activations_change_nothing(make_run, same):
    kept = make_run(gradient_checkpointing=False, dropout=0.05)
    recomputed = make_run(gradient_checkpointing=True, dropout=0.05)

    kept.train()
    recomputed.train()

    assert same(kept.losses, recomputed.losses)


def test_the_seed_decides(make_run, same):
    runs = [make_run(seed=seed, dropout=0.05) for seed in (1, 1, 2)]

    for run in runs:
        run.train()

    assert same(runs[0].losses, runs[1].losses)
    assert runs[0].losses != runs[2].losses


def test_a_loss_that_is_not_finite_ends_the_run(make_run):
    run = make_run(learning_rate=1e30, lr_scheduler="constant", max_grad_norm=0.0)

    with pytest.raises(JobFailure) as failure:
        run.train()

    assert failure.value.exit_code == ExitCode.LOSS_NOT_FINITE
    assert failure.value.code == "nan_loss"
    assert "step 2" in failure.value.message
    assert "1e+30" in failure.value.message
    assert "The checkpoint of step 1 is kept" in failure.value.message
    assert [event.step for event in run.events("checkpoint_saved")] == [1]
    assert all(math.isfinite(loss) for loss in run.losses)


def test_weights_whose_validation_loss_is_not_finite_are_not_saved(make_run, monkeypatch):
    score = TrlEngine.score

    def breaks_at_step_4(self, batch):
        good = score(self, batch)
        return replace(good, loss=math.nan) if self.scheduler.last_epoch == 4 else good

    monkeypatch.setattr(TrlEngine, "score", breaks_at_step_4)
    run = make_run(validation_split=0.25, eval_steps=2, save_steps=2)

    with pytest.raises(JobFailure, match=r"validation split is not finite at step 4.*of step 2 is kept"):
        run.train()

    assert [event.step for event in run.events("checkpoint_saved")] == [2]
