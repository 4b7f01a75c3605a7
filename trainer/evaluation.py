"""One pass over the validation split, weighted by tokens, leaving the training as it was.

Nothing here draws random numbers and dropout is off, so a run with evaluations takes the same steps as one
without.
"""

from collections.abc import Callable, Iterable

from trainer.data.batches import Batch
from trainer.engines import Engine, Score


def evaluate(engine: Engine, batches: Iterable[Batch], should_stop: Callable[[], bool]) -> Score | None:
    """Loss and accuracy over all target tokens of the batches, or None when asked to stop on the way."""
    loss = right = 0.0
    targets = 0
    engine.model.eval()
    try:
        for batch in batches:
            if should_stop():
                return None
            score = engine.score(batch)
            loss += score.loss * batch.target_count
            right += score.accuracy * batch.target_count
            targets += batch.target_count
    finally:
        engine.model.train()
    return Score(loss / max(1, targets), right / max(1, targets))
