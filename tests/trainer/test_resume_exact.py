"""A run that was killed at any step goes on as if nothing had happened: to the last bit on the CPU."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

ADAPTER = "adapter/adapter_model.safetensors"
# Everything that could come apart is on: dropout, a logging window and epochs across the stop, evaluations.
HARD = {
    "device": "cpu",
    "max_steps": 6,
    "dropout": 0.1,
    "logging_steps": 2,
    "eval_steps": 3,
    "validation_split": 0.25,
    "save_total_limit": 100,
    "lr_scheduler": "cosine",
    "warmup_steps": 2,
    "samples": {"count": 2, "max_new_tokens": 4},
    "early_stopping": {"patience": 100},
}
PACKED = HARD | {
    "packing": True,
    "max_seq_length": 96,
    "batch_size": 1,
    "are_steps_estimated": True,
    "n_epochs": 2,
}


def told(run):
    """What a user is shown of a run, times apart."""
    steps = [
        (event.step, event.train_loss, event.grad_norm, event.learning_rate, event.epoch)
        for event in run.events("step_logged")
    ]
    evals = [(event.step, event.eval_loss) for event in run.events("eval_logged")]
    answers = [(event.step, event.index, event.text) for event in run.events("sample_generated")]
    return {"steps": steps, "evals": evals, "answers": answers}


def after(step, story):
    return {name: [line for line in lines if line[0] > step] for name, lines in story.items()}


def adapters_agree(left, right, same):
    first, second = load_file(left.artifacts / ADAPTER), load_file(right.artifacts / ADAPTER)
    return first.keys() == second.keys() and all(same(first[name], second[name]) for name in first)


@pytest.fixture
def mixed(make_rows):
    return [(make_rows(10), 1.5), (make_rows(12, first=40), 0.5)]


@pytest.mark.parametrize(("settings", "pace"), [(HARD, 1), (PACKED, 3)], ids=["padded", "packed"])
def test_going_on_from_any_step_gives_the_same_run(make_run, mixed, same, settings, pace):
    unbroken = make_run(files=mixed, save_seconds=0.0, **settings)
    unbroken.train()
    story = told(unbroken)
    saved = [event.step for event in unbroken.events("checkpoint_saved")]

    assert len(saved) >= 5
    for step in saved[:-1:pace]:
        resumed = make_run(files=mixed, resume_from=unbroken.checkpoint(step), **settings)
        resumed.train()

        assert told(resumed) == after(step, story)
        assert adapters_agree(resumed, unbroken, same)


def test_a_stop_at_any_step_loses_nothing(make_run, mixed, same):
    unbroken = make_run(files=mixed, **HARD)
    unbroken.train()

    for step in (2, 3, 5):
        broken = make_run(files=mixed, **HARD)
        broken.train(broken.stop_after(step))
        stopped_at = max(event.step for event in broken.events("checkpoint_saved"))
        resumed = make_run(files=mixed, resume_from=broken.checkpoint(stopped_at), **HARD)
        resumed.train()

        both = {name: told(broken)[name] + lines for name, lines in told(resumed).items()}
        assert both == told(unbroken)
        assert adapters_agree(resumed, unbroken, same)


@pytest.mark.parametrize("step", [3, 6])
def test_an_evaluation_made_up_for_can_still_be_the_best(make_run, mixed, same, step):
    unbroken, broken = make_run(files=mixed, **HARD), make_run(files=mixed, **HARD)
    unbroken.train()

    def stops_in_the_evaluation() -> bool:
        phases = [event.phase for event in broken.events("phase_changed")]
        return phases[-1:] == ["evaluating"] and len(broken.events("step_logged")) == step // 2

    ended = broken.train(stops_in_the_evaluation)
    resumed = make_run(files=mixed, resume_from=broken.checkpoint(step), **HARD)
    resumed.train()

    assert (ended.outcome, ended.step) == ("stopped", step)
    assert adapters_agree(resumed, unbroken, same)


@pytest.mark.parametrize("heard_at", [1, 3])
def test_answers_that_a_stop_cut_short_are_made_up_for(make_run, mixed, same, heard_at):
    """The run is asked once more before the first token, and then at each."""
    unbroken, broken = make_run(files=mixed, **HARD), make_run(files=mixed, **HARD)
    unbroken.train()
    asked = iter(range(1, 100))

    def stops_among_the_answers() -> bool:
        return len(broken.events("eval_logged")) == 2 and next(asked) >= heard_at

    ended = broken.train(stops_among_the_answers)
    resumed = make_run(files=mixed, resume_from=broken.checkpoint(3), **HARD)
    resumed.train()

    assert (ended.outcome, ended.step) == ("stopped", 3)
    assert {step for step, *_ in told(broken)["answers"]} == {0}
    both = {name: told(broken)[name] + lines for name, lines in told(resumed).items()}
    assert both == told(unbroken)
    assert adapters_agree(resumed, unbroken, same)


@pytest.mark.parametrize("patience", [1, 100])
def test_a_run_that_was_killed_as_it_published_publishes_the_same(make_run, mixed, same, patience):
    """Its last checkpoint is all there is to go on from; patience 1 ends it before the last step."""
    settings = HARD | {"early_stopping": {"patience": patience, "min_delta": 100.0 / patience}}
    killed = make_run(files=mixed, **settings)
    ended = killed.train()
    resumed = make_run(files=mixed, resume_from=killed.checkpoint(ended.step), **settings)

    again = resumed.train()

    assert (again.outcome, again.step, ended.step) == ("done", ended.step, 3 if patience == 1 else 6)
    assert told(resumed) == after(ended.step, told(killed))
    assert again.result["published_step"] == ended.result["published_step"]
    assert adapters_agree(resumed, killed, same)


@pytest.mark.full
def test_a_run_killed_in_a_step_goes_on_from_its_last_checkpoint(make_run, mixed, same):
    unbroken = make_run(files=mixed, **PACKED)
    unbroken.train()
    killed = make_run(files=mixed, save_seconds=0.0, **PACKED)
    os.mkfifo(killed.folder / "events.jsonl")
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "trainer", str(killed.folder)], stdout=subprocess.DEVNULL
    )
    with (killed.folder / "events.jsonl").open() as pipe:
        for line in pipe:
            if json.loads(line)["type"] == "step_logged":
                process.send_signal(signal.SIGKILL)
    process.wait()
    newest = sorted(path for path in Path(killed.checkpoint(0)).parent.iterdir() if path.suffix != ".tmp")[-1]
    resumed = make_run(files=mixed, resume_from=newest, **PACKED)

    resumed.train()

    assert told(resumed) == after(int(newest.name[5:]), told(unbroken))
    assert adapters_agree(resumed, unbroken, same)


def test_estimated_steps_become_those_of_the_epochs(make_run, make_rows):
    run = make_run(rows=make_rows(30), **PACKED | {"validation_split": 0.0, "max_steps": 500})

    ended = run.train()

    plan = run.events("plan_chosen")[0]
    assert plan.total_steps == ended.step < 40
    assert run.events("step_logged")[-1].epoch == 2.0
    assert plan.packing_efficiency > 0.8


def test_weights_belong_to_the_order_that_a_checkpoint_goes_on_with(make_run, make_rows):
    run = make_run(files=[(make_rows(8), 1.0), (make_rows(8, first=50), 1.0)])
    run.train()
    other = make_run(
        files=[(make_rows(8), 1.0), (make_rows(8, first=50), 2.0)], resume_from=run.checkpoint(4)
    )

    with pytest.raises(Exception, match="weights was"):
        other.train()
