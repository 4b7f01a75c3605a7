"""What a user should know while there is time to act: signs of bad data, bad settings and bad turns.

Each sign is looked for at the moment it can first be seen, by a rule that is stated here, and told once in
the life of a job with what to change. Nothing here changes the training.
"""

from itertools import pairwise
from statistics import median

import numpy as np

from luthier.spec import LINEAR_MODULES, Hyperparameters
from trainer.data.batches import TrainingData
from trainer.journal import Journal
from trainer.movement import Movement
from trainer.stopping import evaluations_without_gain

# Data: below this share of the tokens, a run pays for reading and hardly learns.
_FEW_TRAINED_RATIO = 0.01
# A learning rate does nothing when the whole run, at the pace of its first steps, would change the trained
# weights by less than this share of their norm at the start. Adapters begin with half of them at zero and are
# scaled up by alpha / r; a healthy run moves them by a fifth and more, one at 1e-7 by a thousandth.
_STILL_RATIO = {"qlora": 3e-3, "lora": 3e-3, "full": 1e-5}
_STEPS_BEFORE_A_JUDGEMENT = 10
# It is too high when the median of three logged losses stands so far over the first one.
_RISEN_RATIO, _RISEN_NATS = 1.5, 0.1
_LARGE_GRADIENT = 100.0
_RISING_EVALS = 3
# The validation loss of a run that learnt something useful is lower by at least this share.
_LITTLE_GAIN_RATIO = 0.01
_ENOUGH_EPOCHS = 5


class Watch:
    """Looks at a run from outside and warns through its journal.

    Args:
        movement: of the trained weights since step 0.
    """

    def __init__(
        self, settings: Hyperparameters, data: TrainingData, journal: Journal, movement: Movement
    ) -> None:
        self._settings, self._data, self._journal, self._movement = settings, data, journal, movement

    def before_training(self) -> None:
        """What the data alone shows."""
        numbers = np.unique(np.concatenate(self._data.order.epoch_rows(0)))
        targets, tokens = self._data.train.target_counts[numbers], self._data.train.lengths[numbers]
        empty, ratio = int((targets == 0).sum()), float(targets.sum() / tokens.sum())
        if empty:
            self._journal.warn(
                "untrained_rows",
                f"{empty} of {len(numbers)} training rows have no token to learn and only cost time: their "
                "answers are masked or were cut off. Look at the file's preview, or raise max_seq_length",
                row_count=empty,
            )
        if ratio < _FEW_TRAINED_RATIO:
            self._journal.warn(
                "few_trained_tokens",
                f"Only {ratio:.2%} of the training tokens are learnt, the rest is prompt: shorten the "
                "prompts, or train on more of each row with dataset.train_on",
                trained_ratio=ratio,
            )
        # Preparation has told of rows that a validation file shares with the training files.
        is_split_here = self._data.validation is self._data.train
        leaked = _leaked_row_count(self._data, numbers) if is_split_here else 0
        if leaked:
            self._journal.warn(
                "split_leakage",
                f"{leaked} of {len(numbers)} training rows are in the validation split too, so that its loss "
                "will look too good: remove the duplicates from the data",
                row_count=leaked,
            )
        per_step, rows = self._data.order.rows_per_step, len(self._data.order.epoch_rows(0))
        if rows < per_step:
            self._journal.warn(
                "few_rows",
                f"A step takes {per_step} rows and an epoch has {rows}, so every epoch is one small step: "
                "lower batch_size or gradient_accumulation, or give more data",
                row_count=rows,
            )

    def after_step(self, step: int) -> None:
        """What the logged steps show."""
        logged = self._journal.steps
        if not logged or logged[-1].step != step:
            return
        norm = logged[-1].grad_norm
        if norm is not None and norm > _LARGE_GRADIENT:
            self._journal.warn(
                "large_gradient",
                f"The gradient has norm {norm:.3g} at step {step}, over {_LARGE_GRADIENT:g}: "
                f"{unstable_advice(self._settings)}",
                grad_norm=norm,
            )
        self._watch_loss(step)
        before = logged[-2].step if len(logged) > 1 else 0
        # Once in the life of a job, also where it was resumed behind that step.
        if before < self._judgement_step <= step:
            self._watch_movement(step)

    def after_eval(self) -> None:
        """What the evaluations show."""
        losses = [event.eval_loss for event in self._journal.evals if event.eval_loss is not None]
        newest = losses[-_RISING_EVALS - 1 :]
        if len(newest) > _RISING_EVALS and all(left < right for left, right in pairwise(newest)):
            self._journal.warn(
                "overfitting",
                f"The validation loss has risen {_RISING_EVALS} times in a row, to {newest[-1]:.4f}: the "
                "model learns the training rows by heart. Train fewer epochs, set early_stopping, give more "
                f"data, or raise dropout (now {self._settings.dropout:g})",
                eval_losses=newest,
            )

    def after_training(self) -> None:
        """Whether the run was worth it."""
        if not self._movement.has_effect():
            self._journal.warn(
                "adapter_unchanged",
                "Training has not changed a single weight, so the result answers as the base model does: "
                f"raise learning_rate (now {self._settings.learning_rate:.3g}) and look at which tokens are "
                "trained",
            )
        evals = self._journal.evals
        first, last = (evals[0].eval_loss, evals[-1].eval_loss) if evals else (None, None)
        if len(evals) > 1 and first and last and last > first * (1 - _LITTLE_GAIN_RATIO):
            self._journal.warn(
                "little_learned",
                f"The validation loss went from {first:.4f} to {last:.4f}: {self._poor_advice()}",
                eval_loss_first=first,
                eval_loss_last=last,
                evaluations_without_gain=evaluations_without_gain(evals, 0.0),
            )

    @property
    def _judgement_step(self) -> int:
        """After the warmup and some steps more; the last step of a run that is shorter."""
        settings = self._settings
        return min(settings.max_steps, settings.warmup_steps + _STEPS_BEFORE_A_JUDGEMENT)

    def _watch_loss(self, step: int) -> None:
        steps = self._journal.steps
        losses = [event.train_loss for event in (*steps[:1], *steps[-3:]) if event.train_loss is not None]
        if len(steps) < 4 or len(losses) < 4:
            return
        first, now = losses[0], median(losses[1:])
        if now > max(first * _RISEN_RATIO, first + _RISEN_NATS):
            self._journal.warn(
                "learning_rate_too_high",
                f"The training loss has risen from {first:.4f} to {now:.4f} at step {step}, more than "
                f"{_RISEN_RATIO:g} times: {unstable_advice(self._settings)}",
                train_loss_first=first,
                train_loss=now,
            )

    def _poor_advice(self) -> str:
        return ", ".join(["give more data", *_adapter_advice(self._settings), *self._length_advice()])

    def _length_advice(self) -> list[str]:
        """What makes the run longer, where it is short: the setting that ends it."""
        steps = self._settings.max_steps
        epochs = self._data.order.epoch_at(steps)
        if epochs >= _ENOUGH_EPOCHS:
            return []
        told = self._settings.epochs or self._settings.n_epochs
        if steps < self._data.order.steps_of_epochs(told):
            return [f"raise max_steps (now {steps}, which are {epochs:.2g} epochs)"]
        return [
            f"train {_ENOUGH_EPOCHS} epochs (now {told:g}; where max_steps is set, raise that, now {steps})"
        ]

    def _watch_movement(self, step: int) -> None:
        settings = self._settings
        expected = self._movement.ratio() * settings.max_steps / step
        usual = 2e-5 if settings.method == "full" else 2e-4
        if expected < _STILL_RATIO[settings.method]:
            self._journal.warn(
                "learning_rate_too_low",
                f"At the pace of the first {step} steps the whole run will change the trained weights by "
                f"{expected:.1e} of their size, which does nothing: raise learning_rate (now "
                f"{settings.learning_rate:.3g}), for example to {usual:g}",
                expected_change_ratio=expected,
            )


def _leaked_row_count(data: TrainingData, numbers: np.ndarray) -> int:
    """Those of some training rows whose tokens are also those of a row that is evaluated on."""
    held_out = {hash(data.validation[int(number)][0].tobytes()) for number in data.validation_numbers}
    if not held_out:
        return 0
    return sum(hash(data.train[int(number)][0].tobytes()) in held_out for number in numbers)


def unstable_advice(settings: Hyperparameters) -> str:
    """What calms a run, in the order of effect; each with what is set now."""
    return (
        f"lower learning_rate to 1e-5 (now {settings.learning_rate:.3g}), set warmup_ratio to 0.1 (now "
        f"{settings.warmup_steps} of {settings.max_steps} steps) and max_grad_norm to 1.0 (now "
        f"{settings.max_grad_norm:g})"
    )


def _adapter_advice(settings: Hyperparameters) -> list[str]:
    if settings.method == "full":
        return []
    targets = settings.target_modules
    has_all = targets == "all-linear" or set(LINEAR_MODULES) <= set(targets)
    return [
        *([] if settings.r >= 32 else [f"raise r to 32 or more (now {settings.r})"]),
        *([] if has_all else ["adapt all seven target modules"]),
    ]
