"""When a LLaMA-Factory job logs, evaluates, saves and stops early, in steps.

Entered by `rhythm`. That system's strategies (`steps`, `epoch`, `no`, `best`) become numbers of steps, or
`epoch`, which planning resolves.
"""

from typing import Any

from luthier.llamafactory.values import Reading, Values

# Larger than any run: nothing happens at such a step but at the end.
NEVER = 10_000_000
_KEPT_CHECKPOINTS = 3
# Evaluations without a gain, more than a run has: the best weights are published, and nothing stops early.
_ENDLESS_PATIENCE = 1000


def rhythm(reading: Reading, *, has_validation: bool) -> dict[str, Any]:
    """When numbers are logged, the validation rows evaluated, and checkpoints saved."""
    kept = reading.values.integer("save_total_limit") or 0
    settings = {
        "logging_steps": _logs(reading.values),
        "eval_steps": _evaluations(reading, has_validation=has_validation),
        "save_total_limit": kept if kept > 0 else _KEPT_CHECKPOINTS,
    }
    settings["save_steps"] = _saves(reading, settings["eval_steps"])
    if kept <= 0:
        reading.note("save_total_limit", f"the last {_KEPT_CHECKPOINTS} checkpoints are kept, not all")
    is_evaluated = has_validation and settings["eval_steps"] != NEVER
    return settings | _stopping(reading, has_validation=has_validation, is_evaluated=is_evaluated)


def _logs(values: Values) -> float | str:
    strategy = values.choice("logging_strategy", {"steps": "steps", "epoch": "epoch", "no": "no"})
    return _at(strategy, values, "logging_steps")


def _at(strategy: str, values: Values, name: str) -> float | str:
    """The steps between two of a kind; `epoch` for one an epoch."""
    if strategy == "epoch":
        return "epoch"
    return NEVER if strategy == "no" else _steps(values, name)


def _steps(values: Values, name: str) -> float:
    """A number of steps, or below 1 a share of the run."""
    steps = values.number(name) or 0
    if steps == int(steps):
        return int(steps)
    if 0 < steps < 1:
        return steps
    values.wrong(name, f"takes a whole number of steps, or below 1 a share of the run, not {steps}")
    return 1


def _evaluations(reading: Reading, *, has_validation: bool) -> float | str:
    values = reading.values
    strategy = "eval_strategy" if "eval_strategy" in values else "evaluation_strategy"
    if (wanted := values.choice(strategy, {"steps": "steps", "epoch": "epoch", "no": "no"})) == "no":
        if has_validation:
            text = "validation rows are evaluated once before and once after training"
            reading.note("eval_strategy", text)
        return NEVER
    if not has_validation:
        values.wrong(strategy, "needs rows to evaluate: give val_size or eval_dataset", "missing")
    return _at(wanted, values, "eval_steps" if values.number("eval_steps") else "logging_steps")


def _saves(reading: Reading, eval_steps: float | str) -> float | str:
    strategies = {"steps": "steps", "epoch": "epoch", "no": "no", "best": "best"}
    strategy = reading.values.choice("save_strategy", strategies)
    if strategy == "no":
        reading.note("save_strategy", "a checkpoint is still kept now and then, so that a lost run goes on")
    if strategy == "best":
        reading.note("save_strategy", "a checkpoint at every evaluation; the best one is kept")
        return eval_steps
    return _at(strategy, reading.values, "save_steps")


def _stopping(reading: Reading, *, has_validation: bool, is_evaluated: bool) -> dict[str, Any]:
    values = reading.values
    wants_best = values.flag("load_best_model_at_end")
    if wants_best:
        text = (
            "the weights with the lowest validation loss are published, by early stopping that never stops"
            if is_evaluated
            else "needs an eval_strategy; without one, the weights of the last step are published"
        )
        reading.note("load_best_model_at_end", text)
    patience = values.integer("early_stopping_steps")
    if patience is None:
        return {"early_stopping": {"patience": _ENDLESS_PATIENCE}} if wants_best and is_evaluated else {}
    if not has_validation:
        values.wrong(
            "early_stopping_steps", "needs rows to evaluate: give val_size or eval_dataset", "missing"
        )
    elif not is_evaluated:
        text = "needs an eval_strategy; without one, nothing is evaluated that could stop the run"
        reading.note("early_stopping_steps", text)
    return {"early_stopping": {"patience": patience}}
