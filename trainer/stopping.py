"""When a run ends before its last step: a function of the evaluations so far, so the same after a resume.

Nothing is remembered between evaluations: the journal, which a checkpoint holds, is all that is looked at.
"""

from collections.abc import Sequence

from luthier.events import EvalLogged
from luthier.spec import EarlyStopping


def is_exhausted(evals: Sequence[EvalLogged], rule: EarlyStopping | None) -> bool:
    """Whether the newest `patience` evaluations have not lowered the best loss by more than `min_delta`.

    The evaluation of the base model, at step 0, is the first best.
    """
    return rule is not None and evaluations_without_gain(evals, rule.min_delta) >= rule.patience


def evaluations_without_gain(evals: Sequence[EvalLogged], min_delta: float) -> int:
    """Evaluations since the one that last lowered the best loss by more than `min_delta`."""
    best, count = float("inf"), 0
    for event in evals:
        loss = float("inf") if event.eval_loss is None else event.eval_loss
        if loss < best - min_delta:
            best, count = loss, 0
        else:
            count += 1
    return count
