"""What a finished run leaves for its user: what was trained, its tokenizer, and the numbers in common forms.

`metrics.csv` has OpenAI's header and numeric columns of ours behind it; `run.json` is the manifest by which
the run can be repeated; the rest is as LLaMA-Factory leaves it (`llamafactory.py`, `plots.py`). All of it
is written under a temporary name and published at once, with a manifest of its own.
"""

import csv
import json
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier import artifacts
from luthier.events import EvalLogged, StepLogged
from luthier.spec import Hyperparameters, PreparedSplit, RunManifest, TrainSpec
from luthier.spec.manifest import ManifestData, ManifestModel, ManifestSplit
from trainer import adapters, llamafactory, methods, provenance
from trainer.data.batches import TrainingData
from trainer.engines import Engine
from trainer.journal import Journal
from trainer.placement import Placement
from trainer.plots import draw_losses

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

{place}base = AutoModelForCausalLM.from_pretrained({base})
model = PeftModel.from_pretrained(base, "adapter")
tokenizer = AutoTokenizer.from_pretrained("adapter")"""
_LOAD_MODEL = """from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("model")
tokenizer = AutoTokenizer.from_pretrained("model")"""


@dataclass(frozen=True)
class Made:
    """A finished run, as far as its report tells of it."""

    spec: TrainSpec
    engine: Engine
    place: Placement
    data: TrainingData
    parameter_count: int


def publish_artifacts(run_folder: Path, made: Made, journal: Journal, result: dict[str, Any]) -> None:
    """Write `artifacts/` of a run folder, whole or not at all.

    Args:
        result: of `results.result_of`.
    """
    folder = run_folder / "artifacts.tmp"
    shutil.rmtree(folder, ignore_errors=True)
    spec = made.spec
    meta = {"kind": "artifacts", "job_id": spec.job_id, "run": spec.run, "step": result["published_step"]}
    try:
        _write(folder, made, journal, result)
        artifacts.publish(folder, run_folder / "artifacts", meta)
    except BaseException:
        # On a full disk, what is half written stands in the way of the next try.
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _write(folder: Path, made: Made, journal: Journal, result: dict[str, Any]) -> None:
    spec = made.spec
    _copy_tokenizer(spec, methods.publish(made.engine.model, folder, spec.model))
    _write_csv(folder / "metrics.csv", journal)
    llamafactory.write_files(folder, spec.hyperparameters, journal, made.data, made.parameter_count)
    _draw(folder, spec, journal)
    manifest = build_manifest(made, journal, result)
    (folder / "run.json").write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(_model_card(spec, journal, result), encoding="utf-8")


def build_manifest(made: Made, journal: Journal, result: dict[str, Any]) -> RunManifest:
    """The manifest of a finished run."""
    spec = made.spec
    exact = spec.hyperparameters.model_copy(update={"are_steps_estimated": False})
    return RunManifest(
        job_id=spec.job_id,
        run=spec.run,
        finished_at=time.time(),
        base_model=ManifestModel(
            id=spec.model.id, revision=spec.model.revision, adapter_sha256=_adapter_sha256(spec)
        ),
        data=ManifestData(
            files=spec.files,
            rules=spec.rules,
            train=tuple(_split(split) for split in spec.data.train),
            validation=_split(spec.data.validation) if spec.data.validation else None,
        ),
        seed=exact.seed,
        hyperparameters=exact,
        engine=made.engine.name,
        precision=made.place.precision,
        software=provenance.software(),
        hardware=provenance.hardware(made.place),
        seconds=journal.phase_seconds | {"elapsed": journal.elapsed_seconds},
        results=result,
    )


def _split(split: PreparedSplit) -> ManifestSplit:
    return ManifestSplit.model_validate(split.model_dump(exclude={"path"}))


def _adapter_sha256(spec: TrainSpec) -> str | None:
    path = Path(spec.adapter_from) / adapters.WEIGHTS if spec.adapter_from else None
    return artifacts.sha256_of(path) if path and path.is_file() else None


def _copy_tokenizer(spec: TrainSpec, folder: Path) -> None:
    """The base's own files; the template is the one that the rows were rendered with."""
    for name in _TOKENIZER_FILES:
        if (Path(spec.model.path) / name).is_file():
            shutil.copyfile(Path(spec.model.path) / name, folder / name)
    if spec.data.chat_template is not None:
        (folder / "chat_template.jinja").write_text(spec.data.chat_template, encoding="utf-8")


def _draw(folder: Path, spec: TrainSpec, journal: Journal) -> None:
    trained = [(event.step, event.train_loss) for event in journal.steps if event.train_loss is not None]
    evaluated = [(event.step, event.eval_loss) for event in journal.evals if event.eval_loss is not None]
    draw_losses(folder / "training_loss.png", trained, f"training loss of {spec.job_id}")
    draw_losses(folder / "training_eval_loss.png", evaluated, f"training eval_loss of {spec.job_id}")


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


def _lora_rows(settings: Hyperparameters) -> list[tuple[str, str]]:
    return [("LoRA", f"r {settings.r}, alpha {settings.alpha:g}, dropout {settings.dropout:g}")]


def _load_adapter(spec: TrainSpec) -> str:
    """The snippet that loads an adapter: on the hub's model by its id, on a local one by its folder."""
    if spec.model.revision is not None:
        return _LOAD_ADAPTER.format(place="", base=json.dumps(spec.model.id))
    place = "# The folder of the base model: `luthier models list --local` shows it where it was trained.\n"
    return _LOAD_ADAPTER.format(place=place, base=json.dumps(f"path/to/{Path(spec.model.path).name}"))


def _model_card(spec: TrainSpec, journal: Journal, results: dict[str, Any]) -> str:
    settings = spec.hyperparameters
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
{_load_adapter(spec) if is_adapter else _LOAD_MODEL}
```
"""
