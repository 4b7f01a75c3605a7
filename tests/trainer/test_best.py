"""The best checkpoint: kept, told of, carried to the runs that resume, published with early stopping."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from luthier import artifacts

WEIGHTS = "adapter/adapter_model.safetensors"


@pytest.fixture
def make_worsening(make_run, make_rows):
    """A run whose validation loss soon rises: its answers are of a token that training unlearns."""
    rows = make_rows(4)
    start = rows[0][0][0]
    validation = [
        ([start if target else token for token, target in zip(ids, mask, strict=True)], mask)
        for ids, mask in rows
    ]

    def make(**settings):
        fixed = {"lr_scheduler": "constant", "max_steps": 6, "eval_steps": 1}
        return make_run(validation=validation, **fixed | settings)

    return make


def _eval_losses(run):
    """By step, of the weights that were trained."""
    return {event.step: event.eval_loss for event in run.events("eval_logged") if event.step > 0}


def _steps(run):
    return sorted(int(path.name.removeprefix("step-")) for path in run.checkpoint(0).parent.iterdir())


def _same(left, right):
    first, second = load_file(left), load_file(right)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("limit", [1, 2])
def test_the_best_is_kept_beside_the_newest(make_worsening, limit):
    run = make_worsening(save_steps=1, save_total_limit=limit)
    run.train()

    losses = _eval_losses(run)
    best = min(losses, key=losses.get)
    metas = {step: artifacts.verify(run.checkpoint(step)).meta for step in _steps(run)}

    assert best < 5
    assert _steps(run) == [best, *range(7 - limit, 7)]
    assert metas[best]["eval_loss"] == losses[best]
    assert {step: meta["is_best"] for step, meta in metas.items()} == {step: step == best for step in metas}


def test_where_the_last_is_the_best_one_is_enough(make_run, make_rows):
    run = make_run(validation=make_rows(8), save_steps=1, eval_steps=1, save_total_limit=1)
    run.train()

    assert _steps(run) == [4]


def test_a_checkpoint_without_an_evaluation_of_its_own_has_no_loss(make_worsening):
    run = make_worsening(save_steps=2, eval_steps=3)
    run.train()

    metas = {step: artifacts.verify(run.checkpoint(step)).meta for step in _steps(run)}

    assert {step: meta["eval_loss"] is None for step, meta in metas.items()} == {2: True, 4: True, 6: False}
    assert [meta["is_best"] for meta in metas.values()] == [False, False, True]


def test_the_last_weights_are_published_without_early_stopping(make_worsening):
    run = make_worsening(save_steps=1)
    run.train()

    assert _same(run.artifacts / WEIGHTS, run.checkpoint(6) / WEIGHTS)


def test_with_early_stopping_the_best_is_saved_when_it_comes_and_published(make_worsening):
    run = make_worsening(early_stopping={"patience": 100}, save_steps=100)
    run.train()

    losses = _eval_losses(run)
    best = min(losses, key=losses.get)

    assert best in _steps(run)
    assert best < 6
    assert _same(run.artifacts / WEIGHTS, run.checkpoint(best) / WEIGHTS)


@pytest.mark.parametrize("method", ["qlora", "full"])
def test_a_resumed_run_ends_with_the_best_of_an_earlier_one(make_worsening, method):
    settings = {"early_stopping": {"patience": 100}, "save_steps": 5}
    if method == "full":
        settings |= {"method": "full", "quantization": "none", "learning_rate": 2e-2}
    first = make_worsening(**settings)
    first.train()
    losses = _eval_losses(first)
    best = min(losses, key=losses.get)
    # The folder of the best itself is not there: a run gets no more than the checkpoint that it resumes from.
    carried = first.folder / "elsewhere" / "step-000005"
    carried.parent.mkdir()
    first.checkpoint(5).rename(carried)
    resumed = make_worsening(**settings, resume_from=carried)

    resumed.train()

    state = json.loads((resumed.checkpoint(6) / "state.json").read_text())
    assert best < 5
    assert state["best"] == {"step": best, "eval_loss": losses[best]}
    name = WEIGHTS if method == "qlora" else "model/model.safetensors"
    assert _same(resumed.artifacts / name, first.artifacts / name)


def test_a_run_that_resumes_where_it_stood_outlives_the_checkpoint_that_it_came_from(make_worsening):
    """The best weights of before lie in that checkpoint, which newer ones push out."""
    settings = {"early_stopping": {"patience": 100}, "save_steps": 1, "save_total_limit": 1, "max_steps": 8}
    unbroken, run = make_worsening(**settings), make_worsening(**settings)
    unbroken.train()
    run.train(run.stop_after(5))
    again = replace(run, spec=run.spec.model_copy(update={"resume_from": str(run.checkpoint(5))}))

    ended = again.train()

    assert ended.result["published_step"] < 5
    assert not run.checkpoint(5).exists()
    assert _same(again.artifacts / WEIGHTS, unbroken.artifacts / WEIGHTS)
