"""Warnings: told once, at the moment they apply, with what to change; and not told of healthy runs."""

import pytest
import torch

from luthier.errors import ExitCode, JobFailure
from luthier.events import EvalLogged, EventWriter
from luthier.spec import EarlyStopping
from trainer import placement
from trainer.data.batches import open_data
from trainer.engines import NotFiniteError, Score, StepResult
from trainer.engines.trl import TrlEngine
from trainer.journal import Journal
from trainer.movement import Movement
from trainer.stopping import is_exhausted
from trainer.watch import Watch


def test_a_healthy_run_has_no_warnings(make_run):
    run = make_run(max_steps=8, validation_split=0.25, eval_steps=2)

    run.train()

    assert run.warnings() == {}


def test_rows_without_a_token_to_learn_are_counted(make_run, make_rows):
    rows = make_rows(14) + [(ids, [0] * len(ids)) for ids, _ in make_rows(2, first=50)]
    run = make_run(rows=rows, batch_size=1, gradient_accumulation=1, max_steps=16)

    run.train()

    assert run.warnings()["untrained_rows"].data["row_count"] == 2
    assert all(loss >= 0 for loss in run.losses)


def test_training_rows_that_are_evaluated_on_are_counted(make_run, make_rows):
    run = make_run(rows=make_rows(1) * 16, validation_rows=2, max_steps=1)

    run.train()

    assert run.warnings()["split_leakage"].data["row_count"] == 14


def test_a_tiny_share_of_trained_tokens_is_told(make_run, make_rows):
    rows = [([1] * 120 + ids[-1:], [0] * 120 + [1]) for ids, _ in make_rows(16)]
    run = make_run(rows=rows, max_steps=1)

    run.train()

    assert "0.83%" in run.warnings()["few_trained_tokens"].message


def test_fewer_rows_than_a_step_takes_is_told(make_run, make_rows):
    run = make_run(rows=make_rows(3), max_steps=2)

    run.train()

    assert run.warnings()["few_rows"].data["row_count"] == 3


@pytest.mark.parametrize(
    ("rate", "is_told"),
    [
        pytest.param(1e-8, True, marks=pytest.mark.full),
        (1e-7, True),
        (2e-4, False),
        pytest.param(5e-3, False, marks=pytest.mark.full),
    ],
)
def test_a_learning_rate_that_does_nothing_is_told(make_run, rate, is_told):
    run = make_run(learning_rate=rate, max_steps=20)

    run.train()

    assert ("learning_rate_too_low" in run.warnings()) is is_told


def test_a_learning_rate_is_judged_once_in_the_life_of_a_job(make_run):
    """Of the steps behind a resume alone, at the end of the schedule, every rate would look too low."""
    settings = {"max_steps": 40, "save_steps": 39, "learning_rate": 6e-6}
    first = make_run(**settings)
    first.train()
    resumed = make_run(**settings, resume_from=first.checkpoint(39))
    resumed.train()

    assert first.warnings() == resumed.warnings() == {}


@pytest.fixture
def watched(make_run, tmp_path):
    """`watched(losses=..., norms=..., evals=...)`: the warnings of a run that logged these.

    The tiny model's losses cannot be made to rise, so they are given.
    """

    def watch(losses=(), norms=(), evals=(), **settings):
        run = make_run(max_steps=1000, **settings)
        data, events = open_data(run.spec, tmp_path), EventWriter(run.folder / "events.jsonl")
        journal = Journal(events, run.spec.hyperparameters, data.order, placement.choose("cpu", "fp32"))
        watch = Watch(run.spec.hyperparameters, data, journal, Movement(torch.nn.Linear(2, 2)))
        norms = [*norms, *[1.0] * (len(losses) - len(norms))]
        for step, (loss, norm) in enumerate(zip(losses, norms, strict=True), start=1):
            journal.record_step(step, StepResult(loss, 0.5, norm, 1e-3), data.micro_batches(step), 0.1)
            watch.after_step(step)
        for step, loss in enumerate(evals):
            journal.record_eval(step, Score(loss, 0.5), 0.1)
            watch.after_eval()
        events.close()
        return run.warnings()

    return watch


@pytest.mark.parametrize(
    ("losses", "is_told"),
    [
        ([2.0, 2.5, 3.1, 3.2, 3.3], True),
        ([2.0, 9.0, 1.9, 1.8, 1.7], False),
        ([0.01, 0.05, 0.06, 0.07], False),
    ],
)
def test_a_loss_that_rises_over_its_first_value_is_told_with_what_calms_it(watched, losses, is_told):
    warning = watched(losses=losses, learning_rate=0.5, max_grad_norm=0.0).get("learning_rate_too_high")

    assert (warning is not None) is is_told
    for text in ("1e-5 (now 0.5)", "warmup_ratio to 0.1", "max_grad_norm to 1.0 (now 0)"):
        assert warning is None or text in warning.message


def test_a_large_gradient_is_told_once(watched):
    warning = watched(losses=[2.0] * 4, norms=[1.0, 250.0, 300.0, 1.0])["large_gradient"]

    assert warning.data["grad_norm"] == 250.0


@pytest.mark.parametrize(
    ("losses", "is_told"), [([3, 2, 2.1, 2.2, 2.3], True), ([3, 2, 2.1, 2.0, 2.1, 2.2], False)]
)
def test_a_validation_loss_that_rises_three_times_in_a_row_is_told(watched, losses, is_told):
    assert ("overfitting" in watched(evals=losses)) is is_told


def test_weights_that_did_not_move_are_told(make_run):
    run = make_run(learning_rate=1e-30, max_steps=2)

    ended = run.train()

    assert "adapter_unchanged" in run.warnings()
    assert ended.result["proof"]["has_effect"] is False


def test_little_gain_names_what_makes_results_better(make_run):
    settings = {"validation_split": 0.25, "eval_steps": 2, "max_steps": 6, "target_modules": ["q_proj"]}
    run = make_run(learning_rate=1e-9, **settings)

    run.train()

    message = run.warnings()["little_learned"].message
    for text in (
        "more data",
        "r to 32",
        "all seven target modules",
        "5 epochs (now 2; where max_steps is set, raise that, now 6)",
    ):
        assert text in message


def test_a_run_that_its_steps_end_is_advised_to_take_more_of_them(make_run):
    run = make_run(learning_rate=1e-9, validation_split=0.25, eval_steps=1, max_steps=2)

    run.train()

    message = run.warnings()["little_learned"].message
    assert "raise max_steps (now 2, which are 0." in message
    assert "5 epochs" not in message


def test_a_bad_step_leaves_the_weights_and_saves_what_was_before(make_run, monkeypatch):
    settings = {"dropout": 0.1, "max_steps": 4, "device": "cpu"}
    unbroken = make_run(**settings)
    unbroken.train()
    step = TrlEngine.step

    def third_is_bad(self, batches):
        if self.scheduler.last_epoch == 2:
            self.probe(batches[0])
            raise NotFiniteError("The gradient", 1e-3)
        return step(self, batches)

    monkeypatch.setattr(TrlEngine, "step", third_is_bad)
    run = make_run(**settings)
    with pytest.raises(JobFailure, match=r"not finite at step 3.*checkpoint of step 2 is kept") as failure:
        run.train()
    monkeypatch.undo()
    resumed = make_run(resume_from=run.checkpoint(2), **settings)
    resumed.train()

    assert (failure.value.code, failure.value.exit_code) == ("nan_loss", ExitCode.LOSS_NOT_FINITE)
    assert run.losses + resumed.losses == unbroken.losses


def test_a_bad_step_costs_no_older_checkpoint(make_run, monkeypatch):
    step = TrlEngine.step

    def fourth_is_bad(self, batches):
        if self.scheduler.last_epoch == 3:
            raise NotFiniteError("The loss", 1e-3)
        return step(self, batches)

    monkeypatch.setattr(TrlEngine, "step", fourth_is_bad)
    run = make_run(max_steps=6, save_steps=2, save_total_limit=1)
    with pytest.raises(JobFailure, match=r"not finite at step 4"):
        run.train()

    assert sorted(path.name for path in (run.folder / "checkpoints").iterdir()) == [
        "step-000002",
        "step-000003",
    ]


def evals(*losses):
    return [EvalLogged(step=step, total_steps=9, eval_loss=loss) for step, loss in enumerate(losses)]


@pytest.mark.parametrize(
    ("losses", "rule", "is_over"),
    [
        ([3.0, 2.0, 2.1, 2.2], EarlyStopping(patience=2), True),
        ([3.0, 2.0, 2.1, 1.9, 2.0], EarlyStopping(patience=2), False),
        ([3.0, 2.95, 2.94], EarlyStopping(patience=2, min_delta=0.1), True),
        ([3.0], EarlyStopping(patience=1), False),
        ([3.0, 4.0, 5.0], None, False),
    ],
)
def test_a_run_stops_after_evaluations_without_gain(losses, rule, is_over):
    assert is_exhausted(evals(*losses), rule) is is_over


def test_an_early_stop_ends_the_run_done_and_logs_the_last_window(make_run):
    settings = {"learning_rate": 1e-12, "max_steps": 40, "eval_steps": 2, "logging_steps": 7}
    run = make_run(validation_split=0.25, early_stopping={"patience": 3}, **settings)

    ended = run.train()

    assert (ended.outcome, ended.step, ended.result["stopped_early"]) == ("done", 6, True)
    assert [event.step for event in run.events("step_logged")] == [6]
    assert run.events("checkpoint_saved")[-1].step == 6
