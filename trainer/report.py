"""What a finished run leaves for its user: what was trained, with its tokenizer, and the numbers.

`metrics.csv` has OpenAI's header and numeric columns of ours behind it; `trainer_log.jsonl` and
`all_results.json` are as LLaMA-Factory and transformers write them. All of it is written under a temporary
name and published at once, with a manifest.
"""

import csv
import json
import shutil
from datetime import timedelta
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from luthier import artifacts
from luthier.events import EvalLogged, StepLogged
from luthier.spec import Hyperparameters, TrainSpec
from trainer import methods, versions
from trainer.engines import Engine
from trainer.journal import Journal

CSV_HEADER = (
    "step",
    "train_loss",
    "train_accuracy",
    "valid_loss",
    "valid_mean_token_accuracy",
    "learning_rate",
    "grad_norm",
    "tokens",
    "elapsed_seconds",
)
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "chat_template.json",
)


_LOAD_ADAPTER = """from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

base = AutoModelForCausalLM.from_pretrained({base})
model = PeftModel.from_pretrained(base, "adapter")
tokenizer = AutoTokenizer.from_pretrained("adapter")"""
_LOAD_MODEL = """from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("model")
tokenizer = AutoTokenizer.from_pretrained("model")"""


def publish_artifacts(run_folder: Path, spec: TrainSpec, engine: Engine, journal: Journal) -> None:
    """Write `artifacts/` of a run folder, whole or not at all."""
    folder = run_folder / "artifacts.tmp"
    shutil.rmtree(folder, ignore_errors=True)
    trained = methods.publish(engine.model, folder, spec.model)
    for name in _TOKENIZER_FILES:
        if (Path(spec.model.path) / name).is_file():
            shutil.copyfile(Path(spec.model.path) / name, trained / name)
    _write_csv(folder / "metrics.csv", journal)
    _write_log(folder / "trainer_log.jsonl", journal)
    _draw_losses(folder / "training_loss.png", journal)
    _write_json(folder / "all_results.json", _all_results(journal))
    _write_json(folder / "run.json", _manifest(spec, engine, journal))
    (folder / "README.md").write_text(_model_card(spec, journal), encoding="utf-8")
    meta = {
        "kind": "artifacts",
        "job_id": spec.job_id,
        "run": spec.run,
        "step": spec.hyperparameters.max_steps,
    }
    artifacts.publish(folder, run_folder / "artifacts", meta)


def summary(journal: Journal) -> dict[str, Any]:
    """The metrics of a training run in one flat object; losses are None where none was measured."""
    first, last = journal.steps[0], journal.steps[-1]
    best = min(journal.evals, key=_eval_loss, default=None)
    return {
        "steps": last.step,
        "epochs": last.epoch,
        "train_loss_first": first.train_loss,
        "train_loss_last": last.train_loss,
        "eval_loss_first": journal.evals[0].eval_loss if journal.evals else None,
        "eval_loss_last": journal.evals[-1].eval_loss if journal.evals else None,
        "eval_loss_best": best.eval_loss if best else None,
        "eval_loss_best_step": best.step if best else None,
        "trained_token_count": journal.trained_token_count,
        "elapsed_seconds": last.elapsed_seconds,
        "peak_memory_bytes": max(event.peak_memory_bytes or 0 for event in journal.steps),
    }


def _eval_loss(event: EvalLogged) -> float:
    return float("inf") if event.eval_loss is None else event.eval_loss


def _write_csv(path: Path, journal: Journal) -> None:
    steps = {event.step: event for event in journal.steps}
    evals = {event.step: event for event in journal.evals}
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(CSV_HEADER)
        for step in sorted(steps.keys() | evals.keys()):
            writer.writerow([step, *_csv_cells(steps.get(step), evals.get(step))])


def _csv_cells(step: StepLogged | None, evaluation: EvalLogged | None) -> list[float | int | None]:
    """One row behind its step number; None becomes an empty cell."""
    measured = [evaluation.eval_loss, evaluation.eval_mean_token_accuracy] if evaluation else [None, None]
    if step is None:
        return [None, None, *measured, None, None, None, None]
    return [
        step.train_loss,
        step.train_mean_token_accuracy,
        *measured,
        step.learning_rate,
        step.grad_norm,
        step.trained_token_count,
        step.elapsed_seconds,
    ]


def _write_log(path: Path, journal: Journal) -> None:
    """LLaMA-Factory's names; at one step the line of training comes before that of evaluation."""
    events: list[StepLogged | EvalLogged] = [*journal.steps, *journal.evals]
    events.sort(key=lambda event: (event.step, isinstance(event, EvalLogged)))
    with path.open("w", encoding="utf-8") as file:
        for event in events:
            line: dict[str, Any] = {"current_steps": event.step, "total_steps": event.total_steps}
            line |= _eval_line(event) if isinstance(event, EvalLogged) else _step_line(event)
            file.write(json.dumps(line) + "\n")


def _eval_line(event: EvalLogged) -> dict[str, Any]:
    return {"eval_loss": event.eval_loss, "eval_accuracy": event.eval_mean_token_accuracy}


def _step_line(event: StepLogged) -> dict[str, Any]:
    return {
        "loss": event.train_loss,
        "lr": event.learning_rate,
        "epoch": round(event.epoch, 4),
        "percentage": round(100 * event.step / event.total_steps, 2),
        "elapsed_time": str(timedelta(seconds=round(event.elapsed_seconds or 0))),
        "remaining_time": str(timedelta(seconds=round(event.seconds_remaining or 0))),
        "throughput": event.tokens_per_second,
        "total_tokens": event.trained_token_count,
    }


def _draw_losses(path: Path, journal: Journal) -> None:
    figure = Figure(figsize=(8, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    trained = [(event.step, event.train_loss) for event in journal.steps if event.train_loss is not None]
    evaluated = [(event.step, event.eval_loss) for event in journal.evals if event.eval_loss is not None]
    for points, label, style in ((trained, "training", "-"), (evaluated, "validation", "o--")):
        if points:
            axes.plot(*zip(*points, strict=True), style, label=label)
    axes.set(xlabel="step", ylabel="loss (nats per token)", title="Loss")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)


def _all_results(journal: Journal) -> dict[str, Any]:
    """The keys of transformers' file of this name, where we have the number."""
    last = journal.steps[-1]
    losses = [event.train_loss for event in journal.steps if event.train_loss is not None]
    results: dict[str, Any] = {
        "epoch": last.epoch,
        "train_loss": sum(losses) / len(losses),
        "train_runtime": last.elapsed_seconds,
        "train_steps_per_second": last.step / last.elapsed_seconds if last.elapsed_seconds else None,
        "trained_token_count": journal.trained_token_count,
    }
    if journal.evals:
        results["eval_loss"] = journal.evals[-1].eval_loss
        results["eval_mean_token_accuracy"] = journal.evals[-1].eval_mean_token_accuracy
    return results


def _manifest(spec: TrainSpec, engine: Engine, journal: Journal) -> dict[str, Any]:
    """All that is needed to run this again; no path of this machine is in it."""
    data = {
        name: [split.model_dump(mode="json", exclude={"path"}) for split in splits if split is not None]
        for name, splits in (("train", spec.data.train), ("validation", (spec.data.validation,)))
    }
    return {
        "job_id": spec.job_id,
        "run": spec.run,
        "base_model": {"id": spec.model.id, "revision": spec.model.revision},
        "data": data,
        "seed": spec.hyperparameters.seed,
        "hyperparameters": spec.hyperparameters.model_dump(mode="json"),
        "engine": engine.name,
        "versions": versions.library_versions(),
        "results": summary(journal),
    }


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def _lora_rows(settings: Hyperparameters) -> list[tuple[str, str]]:
    return [("LoRA", f"r {settings.r}, alpha {settings.alpha:g}, dropout {settings.dropout:g}")]


def _model_card(spec: TrainSpec, journal: Journal) -> str:
    settings, results = spec.hyperparameters, summary(journal)
    rows = [
        (
            "Base model",
            f"`{spec.model.id}`" + (f" at `{spec.model.revision}`" if spec.model.revision else ""),
        ),
        ("Method", f"{settings.method}: {methods.describe(settings)}"),
        ("Steps", f"{results['steps']} of {settings.batch_size} x {settings.gradient_accumulation} examples"),
        *(_lora_rows(settings) if settings.method != "full" else ()),
        ("Learning rate", f"{settings.learning_rate:g}, {settings.lr_scheduler}"),
        ("Trained tokens", f"{results['trained_token_count']:,}"),
        ("Training loss", f"{results['train_loss_first']:.4f} to {results['train_loss_last']:.4f}"),
    ]
    if journal.evals:
        rows.append(
            ("Validation loss", f"{results['eval_loss_first']:.4f} to {results['eval_loss_last']:.4f}")
        )
    table = "\n".join(f"| {name} | {value} |" for name, value in rows)
    is_adapter = settings.method != "full"
    kind, folder = ("LoRA adapter for", "adapter") if is_adapter else ("Fine-tuned", "model")
    return f"""---
library_name: {"peft" if is_adapter else "transformers"}
base_model: {json.dumps(spec.model.id)}
tags: [{"lora, " if is_adapter else ""}luthier]
---
# {kind} {spec.model.id}

Made by Luthier, job `{spec.job_id}`. What was trained is in `{folder}/`, the loss by step in `metrics.csv`
and `training_loss.png`, all settings and versions in `run.json`.

| | |
|---|---|
{table}

```python
{_LOAD_ADAPTER.format(base=json.dumps(spec.model.id)) if is_adapter else _LOAD_MODEL}
```
"""
