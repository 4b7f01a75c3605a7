"""Output files of LLaMA-Factory: its names, its formats, our numbers."""

import json

import pytest

from trainer.plots import smooth


@pytest.fixture
def run(make_run):
    run = make_run(validation_split=0.25, eval_steps=2, logging_steps=1, max_steps=4)
    run.train()
    return run


def read(run, name):
    return json.loads((run.artifacts / name).read_text())


def test_the_log_has_its_keys_and_its_order(run):
    lines = [json.loads(line) for line in (run.artifacts / "trainer_log.jsonl").read_text().splitlines()]

    times = ["epoch", "percentage", "elapsed_time", "remaining_time"]
    step = ["current_steps", "total_steps", "loss", "lr", *times, "throughput", "total_tokens"]
    evaluation = ["current_steps", "total_steps", "eval_loss", *times]
    assert [list(line) for line in lines[:4]] == [evaluation, step, step, evaluation]
    assert [line["percentage"] for line in lines] == [0.0, 25.0, 50.0, 50.0, 75.0, 100.0, 100.0, 100.0]
    assert list(lines[-1]) == ["current_steps", "total_steps", *times]


def test_times_are_clocks_and_the_last_line_has_nothing_left(run):
    lines = [json.loads(line) for line in (run.artifacts / "trainer_log.jsonl").read_text().splitlines()]

    assert all(len(line["elapsed_time"].split(":")) == 3 for line in lines)
    assert lines[-1]["remaining_time"] == "0:00:00"
    assert [line["epoch"] for line in lines if "loss" in line] == [0.3333, 0.6667, 1.0, 1.3333]


def test_the_results_files_have_transformers_keys(run):
    trained, evaluated = read(run, "train_results.json"), read(run, "eval_results.json")

    rates = {"train_samples_per_second", "train_steps_per_second"}
    expected = {"epoch", "num_input_tokens_seen", "total_flos", "train_loss", "train_runtime", *rates}
    assert set(trained) == expected
    rates = {"eval_samples_per_second", "eval_steps_per_second"}
    assert set(evaluated) == {"epoch", "eval_loss", "eval_accuracy", "eval_runtime", *rates}
    assert read(run, "all_results.json") == trained | evaluated


def test_the_mean_loss_and_the_tokens_are_those_of_all_steps(run):
    trained = read(run, "train_results.json")

    assert trained["train_loss"] == pytest.approx(sum(run.losses) / 4)
    assert trained["num_input_tokens_seen"] == run.events("step_logged")[-1].token_count
    parameters = run.events("plan_chosen")[0].parameter_count
    assert trained["total_flos"] == 6 * parameters * trained["num_input_tokens_seen"]


def test_the_state_has_the_history(run):
    state = read(run, "trainer_state.json")

    assert [line["step"] for line in state["log_history"]] == [0, 1, 2, 2, 3, 4, 4, 4]
    assert set(state["log_history"][1]) == {"epoch", "grad_norm", "learning_rate", "loss", "step"}
    assert (state["global_step"], state["max_steps"]) == (4, 4)


@pytest.mark.parametrize(("count", "weight"), [(10, 0.220), (50, 0.763), (100, 0.888)])
def test_smoothing_has_the_known_weights(count, weight):
    """The weights are those that LLaMA-Factory's formula gives, to three places."""
    smoothed = smooth([0.0, 1.0, *[1.0] * (count - 2)])

    assert smoothed[0] == 0.0
    assert 1 - smoothed[1] == pytest.approx(weight, abs=5e-4)
