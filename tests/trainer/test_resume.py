"""Checkpoints: whole, free of pickles, and enough to go on as if nothing had happened."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from luthier import artifacts
from luthier.errors import ExitCode, JobFailure
from trainer.placement import Placement

UNQUANTISED = {"method": "lora", "quantization": "none"}


def _tensors(folder):
    """All tensors under a folder, by file and name."""
    return {
        f"{path.relative_to(folder)}:{name}": tensor
        for path in folder.rglob("*.safetensors")
        for name, tensor in load_file(path).items()
    }


def test_a_resumed_run_equals_an_unbroken_one(make_run, same):
    """Dropout is on, and the stop falls inside a logging window and inside an epoch."""
    settings = {"max_steps": 9, "dropout": 0.05, "logging_steps": 2, "validation_split": 0.25}
    settings |= {"eval_steps": 3, "precision": "bf16"}
    unbroken, broken = make_run(**settings), make_run(**settings)
    unbroken.train()
    stopped = broken.train(broken.stop_after(4))
    resumed = make_run(**settings, resume_from=broken.checkpoint(4))
    resumed.train()

    assert (stopped.outcome, stopped.step) == ("stopped", 4)
    assert same(broken.losses + resumed.losses, unbroken.losses)
    files = [run.artifacts / "adapter/adapter_model.safetensors" for run in (unbroken, resumed)]
    left, right = map(load_file, files)
    assert left.keys() == right.keys()
    assert all(same(left[name], right[name]) for name in left)


def _long(settings):
    return pytest.param(settings, marks=pytest.mark.full)


@pytest.mark.parametrize(
    "settings",
    [
        {"optimizer": "adamw_8bit", "r": 32},
        _long({"optimizer": "paged_adamw_32bit"}),
        _long({"optimizer": "paged_adamw_8bit", "r": 32}),
        {"optimizer": "adafactor", "weight_decay": 0.1},
        _long({"use_dora": True}),
        _long({"use_rslora": True, "bias": "all"}),
        _long({"loraplus_lr_ratio": 16.0}),
        {"neftune_alpha": 5.0},
        {"lr_scheduler": "cosine", "lr_restarts": 1, "min_lr_ratio": 0.1, "warmup_steps": 1},
        _long({**UNQUANTISED, "init_lora_weights": "pissa"}),
        {**UNQUANTISED, "method": "full", "learning_rate": 1e-3},
        _long({**UNQUANTISED, "method": "full", "learning_rate": 1e-3, "optimizer": "adamw_8bit"}),
        _long({**UNQUANTISED, "method": "full", "trainable_layers": 1, "precision": "bf16"}),
    ],
    ids=lambda settings: "-".join(str(value) for value in settings.values()),
)
def test_a_resume_is_exact_with_every_setting(make_run, same, settings):
    """Stopped in the middle of a logging window, with dropout on."""
    settings = {"max_steps": 5, "dropout": 0.05, "save_steps": 2, "logging_steps": 3} | settings
    unbroken = make_run(**settings)
    unbroken.train()
    resumed = make_run(**settings, resume_from=unbroken.checkpoint(2))
    resumed.train()

    norms = [[event.grad_norm for event in run.events("step_logged")] for run in (unbroken, resumed)]
    assert same(resumed.losses, unbroken.losses)
    assert same(*norms)
    left, right = (_tensors(run.checkpoint(5)) | _tensors(run.artifacts) for run in (unbroken, resumed))
    assert left.keys() == right.keys()
    assert all(same(left[name], right[name]) for name in left)


def test_a_resume_in_fp16_keeps_the_loss_scale(make_run, same, monkeypatch):
    """torch computes in fp16 on a CPU too, if slowly, so one stands in where there is no GPU."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    place = Placement(torch.device(device), torch.float16)
    monkeypatch.setattr("trainer.placement.choose", lambda *_: place)
    settings = {**UNQUANTISED, "precision": "fp16", "save_steps": 2, "learning_rate": 1e-2}
    unbroken = make_run(**settings)
    unbroken.train()
    resumed = make_run(**settings, resume_from=unbroken.checkpoint(2))
    resumed.train()

    scaler = json.loads((resumed.checkpoint(4) / "state.json").read_text())["scaler"]
    assert scaler["_growth_tracker"] > 2
    assert same(resumed.losses, unbroken.losses[2:])
    assert unbroken.losses[-1] < unbroken.losses[0] - 0.1


def test_a_resume_from_an_8_bit_state_of_other_sizes_is_refused(make_run):
    run = make_run(optimizer="adamw_8bit", max_steps=1)
    run.train()
    folder = run.checkpoint(1)
    tensors = load_file(folder / "optimizer.safetensors")
    name = next(name for name in tensors if name.endswith(":state1"))
    save_file(tensors | {name: tensors[name][:1].contiguous()}, folder / "optimizer.safetensors")
    (folder / "MANIFEST.json").unlink()
    artifacts.publish(folder, folder.with_name("step-000002"), {"step": 1})

    with pytest.raises(JobFailure, match="tensors do not fit the model"):
        make_run(optimizer="adamw_8bit", max_steps=1, resume_from=folder.with_name("step-000002")).train()


def test_a_stop_between_two_logged_steps_loses_nothing(make_run, same):
    settings = {"max_steps": 6, "logging_steps": 3, "save_seconds": 0.0}
    unbroken = make_run(**settings)
    unbroken.train()
    resumed = make_run(**settings, resume_from=unbroken.checkpoint(4))

    resumed.train()

    assert same(resumed.losses, unbroken.losses[1:])


def test_metrics_tell_of_the_steps_before_a_resume(make_run):
    settings = {"max_steps": 4, "save_steps": 2, "validation_split": 0.25, "eval_steps": 2}
    first = make_run(**settings)
    first.train()
    resumed = make_run(**settings, resume_from=first.checkpoint(2))

    ended = resumed.train()

    rows = (resumed.artifacts / "metrics.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows[1:]] == ["0", "1", "2", "3", "4"]
    assert [event.step for event in resumed.events("eval_logged")] == [4]
    assert resumed.events("run_started")[0].resumed_from_step == 2
    assert ended.trained_token_count == first.events("step_logged")[-1].trained_token_count


def test_an_evaluation_that_a_stop_cut_short_is_made_up_for(make_run):
    settings = {"max_steps": 4, "validation_split": 0.25, "eval_steps": 2}
    first = make_run(**settings)

    def stops_in_the_evaluation_after_step_2() -> bool:
        return len(first.losses) == 2 and first.events("phase_changed")[-1].phase == "evaluating"

    ended = first.train(stops_in_the_evaluation_after_step_2)
    resumed = make_run(**settings, resume_from=first.checkpoint(2))
    resumed.train()

    assert (ended.outcome, ended.step) == ("stopped", 2)
    assert [event.step for event in first.events("eval_logged")] == [0]
    assert [event.step for event in resumed.events("eval_logged")] == [2, 4]


def test_a_checkpoint_holds_no_pickles_and_its_manifest_is_true(make_run):
    run = make_run(save_steps=2)
    run.train()

    folder = run.checkpoint(2)
    manifest = artifacts.verify(folder)

    suffixes = {path.suffix for path in folder.rglob("*") if path.is_file()}
    assert suffixes == {".safetensors", ".json"}
    assert manifest.meta["step"] == 2
    assert [event.path for event in run.events("checkpoint_saved")] == [
        "checkpoints/step-000002",
        "checkpoints/step-000004",
    ]


def test_only_the_newest_checkpoints_are_kept(make_run):
    run = make_run(save_seconds=0.0, save_total_limit=2)

    run.train()

    assert [event.step for event in run.events("checkpoint_saved")] == [1, 2, 3, 4]
    assert sorted(path.name for path in run.checkpoint(0).parent.iterdir()) == ["step-000003", "step-000004"]


def test_what_another_attempt_left_does_not_push_out_a_new_checkpoint(make_run):
    """The newest checkpoint was not good, so that an older one is gone on from; a half one lies there too."""
    settings = {"save_steps": 1, "save_total_limit": 1, "max_steps": 6}
    run = make_run(**settings | {"save_total_limit": 9})
    run.train(run.stop_after(4))
    (run.checkpoint(4) / "state.json").unlink()
    run.checkpoint(4).rename(run.checkpoint(9))
    run.checkpoint(1).rename(run.checkpoint(1).with_suffix(".tmp"))
    spec = make_run(**settings, resume_from=run.checkpoint(3)).spec

    replace(run, spec=spec).train(
        lambda: any(event.step == 4 for event in run.events("checkpoint_saved")[4:])
    )

    assert sorted(path.name for path in run.checkpoint(0).parent.iterdir()) == ["step-000004", "step-000009"]


@pytest.mark.parametrize(
    ("kind", "phases"), [("run_started", []), ("phase_changed", ["loading_model"])], ids=["data", "model"]
)
def test_a_stop_while_it_loads_ends_a_run_where_it_would_have_gone_on(make_run, kind, phases):
    first = make_run(save_steps=2)
    first.train()
    resumed = make_run(save_steps=2, resume_from=first.checkpoint(2))

    ended = resumed.train(lambda: bool(resumed.events(kind)), probes=True)

    trained = first.events("step_logged")[1].trained_token_count
    assert (ended.outcome, ended.step, ended.trained_token_count) == ("stopped", 2, trained)
    assert resumed.events("step_logged") == resumed.events("checkpoint_saved") == []
    assert [event.phase for event in resumed.events("phase_changed")] == phases


def test_a_stop_before_the_first_step_leaves_no_checkpoint(make_run):
    run = make_run()

    ended = run.train(lambda: True)

    assert (ended.outcome, ended.step) == ("stopped", 0)
    assert run.events("checkpoint_saved") == []


def test_a_damaged_checkpoint_is_refused(make_run):
    run = make_run()
    run.train()
    weights = run.checkpoint(4) / "optimizer.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")

    with pytest.raises(JobFailure, match="another SHA-256") as failure:
        make_run(resume_from=run.checkpoint(4)).train()

    assert (failure.value.exit_code, failure.value.param) == (ExitCode.BAD_SPEC, "resume_from")


def test_a_checkpoint_of_another_rank_is_refused_by_name(make_run):
    run = make_run(r=8)
    run.train()

    with pytest.raises(JobFailure, match="r was 8 and is 4"):
        make_run(r=4, resume_from=run.checkpoint(4)).train()


def test_the_optimizer_state_is_named_by_parameter(make_run):
    run = make_run()
    run.train()

    tensors = load_file(run.checkpoint(4) / "optimizer.safetensors")
    state = json.loads((run.checkpoint(4) / "state.json").read_text())

    keys = {name.rpartition(":")[2] for name in tensors}
    assert keys == {"exp_avg", "exp_avg_sq", "step"}
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    assert state["step"] == 4
