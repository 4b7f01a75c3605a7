"""The numbers that a finished run is judged by: losses, tokens, times, and the proof of an effect.

Entered by `result_of` when a run has ended well. The numbers are those that the journal has logged; nothing
is measured here.
"""

from collections.abc import Sequence
from typing import Any

from luthier.events import EvalLogged, SampleGenerated
from trainer.journal import Journal
from trainer.movement import Movement


def result_of(
    journal: Journal, movement: Movement, planned_steps: int, *, published_step: int
) -> dict[str, Any]:
    """The result of a training run; losses are None where none was measured.

    `proof` holds what speaks for the training having done something: the norm of all B matrices (None without
    adapters), the norm of the change of the trained weights, the validation loss before and after, and the
    answers before and after.

    Args:
        published_step: the step whose weights the user gets.
    """
    first, last = journal.steps[0], journal.steps[-1]
    losses = [event.eval_loss for event in journal.evals]
    best = min(journal.evals, key=_eval_loss, default=None)
    return {
        "steps": last.step,
        "stopped_early": last.step < planned_steps,
        "published_step": published_step,
        "epochs": last.epoch,
        "train_loss_first": first.train_loss,
        "train_loss_last": last.train_loss,
        "eval_loss_first": losses[0] if losses else None,
        "eval_loss_last": losses[-1] if losses else None,
        "eval_loss_best": best.eval_loss if best else None,
        "eval_loss_best_step": best.step if best else None,
        "trained_token_count": journal.trained_token_count,
        "elapsed_seconds": last.elapsed_seconds,
        "peak_memory_bytes": max(event.peak_memory_bytes or 0 for event in journal.steps),
        "proof": {
            "has_effect": movement.has_effect(),
            "b_norm": movement.b_norm(),
            "weight_change_norm": movement.norm(),
            "weight_change_ratio": movement.ratio(),
            "eval_loss_before": losses[0] if losses else None,
            "eval_loss_after": next((e.eval_loss for e in journal.evals if e.step == published_step), None),
            "samples": _before_and_after(journal.samples),
        },
    }


def _before_and_after(samples: Sequence[SampleGenerated]) -> list[dict[str, Any]]:
    """Each prompt with its first and its newest answer."""
    first = {sample.index: sample for sample in reversed(samples)}
    newest = {sample.index: sample for sample in samples}
    return [
        {
            "prompt": sample.prompt,
            "reference": sample.reference,
            "before": first[index].text,
            "after": sample.text,
        }
        for index, sample in sorted(newest.items())
    ]


def _eval_loss(event: EvalLogged) -> float:
    return float("inf") if event.eval_loss is None else event.eval_loss
