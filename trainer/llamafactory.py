"""The numbers of a run as LLaMA-Factory leaves them, for scripts and eyes that know its output folder.

Names and formats are its own: `trainer_log.jsonl` of its log callback, `*_results.json` and
`trainer_state.json` of transformers' Trainer. What was not measured is left out.
"""

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

from luthier.events import EvalLogged, StepLogged
from luthier.spec import Hyperparameters
from trainer.data.batches import TrainingData
from trainer.journal import Journal

# Floating-point operations of training for each parameter and token: 2 forward, 4 backward. Kaplan et al.
# 2020, arXiv 2001.08361, section 2.1; transformers counts so too.
_FLOS_PER_PARAMETER_AND_TOKEN = 6


def write_files(
    folder: Path, settings: Hyperparameters, journal: Journal, data: TrainingData, parameter_count: int
) -> None:
    """Write `trainer_log.jsonl`, the results files and `trainer_state.json`."""
    flos = _FLOS_PER_PARAMETER_AND_TOKEN * parameter_count * journal.token_count
    trained = _train_results(settings, journal, flos)
    evaluated = _eval_results(journal, data, settings)
    _write_log(folder / "trainer_log.jsonl", journal)
    _write_json(folder / "train_results.json", trained)
    if evaluated:
        _write_json(folder / "eval_results.json", evaluated)
    _write_json(folder / "all_results.json", trained | evaluated)
    _write_json(folder / "trainer_state.json", _state(settings, journal, trained))


def history(journal: Journal) -> list[StepLogged | EvalLogged]:
    """Everything logged in order; at one step training comes before evaluation."""
    events: list[StepLogged | EvalLogged] = [*journal.steps, *journal.evals]
    return sorted(events, key=lambda event: (event.step, isinstance(event, EvalLogged)))


def _write_log(path: Path, journal: Journal) -> None:
    events = history(journal)
    lines = [_log_line(event) for event in events]
    last = journal.steps[-1]
    end = last.model_copy(update={"train_loss": None, "learning_rate": None, "tokens_per_second": None})
    lines.append(_log_line(end.model_copy(update={"seconds_remaining": 0.0})))
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def _log_line(event: StepLogged | EvalLogged) -> dict[str, Any]:
    is_step = isinstance(event, StepLogged)
    line = {
        "current_steps": event.step,
        "total_steps": event.total_steps,
        "loss": event.train_loss if is_step else None,
        "eval_loss": None if is_step else event.eval_loss,
        "lr": event.learning_rate if is_step else None,
        "epoch": None if event.epoch is None else round(event.epoch, 4),
        "percentage": round(100 * event.step / event.total_steps, 2) if event.total_steps else 100,
        "elapsed_time": _clock(event.elapsed_seconds),
        "remaining_time": _clock(event.seconds_remaining),
        "throughput": round(event.tokens_per_second, 2) if is_step and event.tokens_per_second else None,
        "total_tokens": event.token_count if is_step and event.train_loss is not None else None,
    }
    return _without_none(line)


def _clock(seconds: float | None) -> str:
    """`0:01:03`, or `1 day, 1:55:25`."""
    return str(timedelta(seconds=int(seconds or 0)))


def _train_results(settings: Hyperparameters, journal: Journal, flos: int) -> dict[str, Any]:
    last = journal.steps[-1]
    seconds = max(last.elapsed_seconds or 0.0, 1e-9)
    rows = last.step * settings.batch_size * settings.gradient_accumulation
    return {
        "epoch": last.epoch,
        "num_input_tokens_seen": journal.token_count,
        "total_flos": float(flos),
        "train_loss": _mean_loss(journal),
        "train_runtime": round(seconds, 4),
        "train_samples_per_second": round(rows / seconds, 3),
        "train_steps_per_second": round(last.step / seconds, 3),
    }


def _mean_loss(journal: Journal) -> float:
    """Over all steps; a logged loss is the mean of the steps since the one before."""
    total, before = 0.0, 0
    for event in journal.steps:
        total += (event.train_loss or 0.0) * (event.step - before)
        before = event.step
    return total / before


def _eval_results(journal: Journal, data: TrainingData, settings: Hyperparameters) -> dict[str, Any]:
    if not journal.evals:
        return {}
    last = journal.evals[-1]
    seconds, rows = max(last.eval_seconds or 0.0, 1e-9), len(data.validation_numbers)
    return _without_none(
        {
            "epoch": last.epoch,
            "eval_loss": last.eval_loss,
            "eval_accuracy": last.eval_mean_token_accuracy,
            "eval_runtime": round(seconds, 4),
            "eval_samples_per_second": round(rows / seconds, 3),
            "eval_steps_per_second": round(-(-rows // settings.batch_size) / seconds, 3),
        }
    )


def _state(settings: Hyperparameters, journal: Journal, trained: dict[str, Any]) -> dict[str, Any]:
    last = journal.steps[-1]
    evals = [event for event in journal.evals if event.eval_loss is not None]
    best = min(evals, key=lambda event: event.eval_loss or 0.0, default=None)
    summary = {name: value for name, value in trained.items() if name != "num_input_tokens_seen"}
    return {
        "best_metric": best.eval_loss if best else None,
        "best_global_step": best.step if best else None,
        "epoch": last.epoch,
        "eval_steps": settings.eval_steps,
        "global_step": last.step,
        "is_local_process_zero": True,
        "is_world_process_zero": True,
        "log_history": [*map(_history_line, history(journal)), summary | {"step": last.step}],
        "logging_steps": settings.logging_steps,
        "max_steps": settings.max_steps,
        "num_input_tokens_seen": journal.token_count,
        "num_train_epochs": settings.n_epochs,
        "save_steps": settings.save_steps,
        "total_flos": trained["total_flos"],
        "train_batch_size": settings.batch_size,
    }


def _history_line(event: StepLogged | EvalLogged) -> dict[str, Any]:
    if isinstance(event, EvalLogged):
        line = {
            "epoch": event.epoch,
            "eval_loss": event.eval_loss,
            "eval_accuracy": event.eval_mean_token_accuracy,
            "eval_runtime": event.eval_seconds,
        }
    else:
        line = {
            "epoch": event.epoch,
            "grad_norm": event.grad_norm,
            "learning_rate": event.learning_rate,
            "loss": event.train_loss,
        }
    return _without_none(line | {"step": event.step})


def _without_none(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=4, sort_keys=True, allow_nan=False) + "\n", encoding="utf-8")
