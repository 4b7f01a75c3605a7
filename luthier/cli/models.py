"""`luthier models`: what a server can tune, and base models put into this machine's model folder."""

import os
import tempfile
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer

from luthier.cli import local_run
from luthier.cli.output import (
    MOST_ROWS,
    AsJson,
    Column,
    Format,
    Output,
    format_of,
    show_list,
    show_one,
    show_rows,
)
from luthier.cli.progress import TransferDisplay
from luthier.cli.terminal import fail, misuse, say, size_of, time_of
from luthier.client import Client, Model
from luthier.errors import ExitCode
from luthier.events import AnyEvent, ProgressMade
from luthier.models import check_model_id, find_model, is_allowed, list_models
from luthier.processes import module_command
from luthier.samples import SAMPLES, add_sample, cached_models
from luthier.settings import Settings

app = typer.Typer(no_args_is_help=True, help="See which models can be tuned, and bring base models here.")

ModelId = Annotated[str, typer.Argument(metavar="ID", help="A base model, or one that a job has made.")]
_MODELS = (
    Column[Model]("ID", lambda model: model.id, is_whole=True),
    Column[Model]("OWNER", lambda model: model.owned_by, is_cut=True),
    Column[Model]("CREATED", lambda model: model.created, time_of, is_cut=True),
)
_LOCAL_MODELS = (
    Column[Mapping[str, Any]]("ID", lambda row: row["id"], is_whole=True),
    Column[Mapping[str, Any]]("ARCHITECTURE", lambda row: row["architecture"]),
    Column[Mapping[str, Any]]("SIZE", lambda row: row["size_bytes"], size_of),
    Column[Mapping[str, Any]]("FOLDER", lambda row: row["folder"]),
)


@app.command("list")
def show(
    local: Annotated[
        bool, typer.Option("--local", help="Those in this machine's model folder, without a server.")
    ] = False,
    output: Output = Format.TABLE,
    as_json: AsJson = False,
) -> None:
    """List the server's models: bases, and what jobs have made of them."""
    if local:
        found = [
            {
                "id": model.id,
                "architecture": model.architecture,
                "size_bytes": model.size_bytes,
                "folder": str(model.path),
            }
            for model in list_models(Settings().models)
        ]
        show_rows(found, _LOCAL_MODELS, format_of(output, as_json))
        return
    with Client() as client:
        show_list(client.models.list(), _MODELS, format_of(output, as_json), limit=MOST_ROWS)


@app.command()
def get(model_id: ModelId, output: Output = Format.JSON) -> None:
    """Show one model of the server."""
    with Client() as client:
        show_one(client.models.get(model_id), output)


@app.command()
def delete(model_id: ModelId) -> None:
    """Delete a model that a job has made; its adapter goes, the job's record stays."""
    with Client() as client:
        client.models.delete(model_id)
    say(f"Deleted {model_id}")


@app.command()
def pull(
    model_id: Annotated[str, typer.Argument(metavar="ID", help="organisation/name on the hub.")],
) -> None:
    """Bring a base model from the hub into LUTHIER_MODEL_DIR; a broken download goes on where it broke.

    The commit is pinned, and only safetensors, JSON, tokenizer and template files are taken. HF_ENDPOINT,
    HTTPS_PROXY and LUTHIER_HUB_TOKEN (for gated models) are honoured. Jobs pull what they need by themselves.
    """
    settings = Settings()
    check_model_id(model_id)
    if not is_allowed(model_id, settings.allowed_models):
        misuse(f"{model_id} is not among the models of LUTHIER_MODEL_ALLOW: {settings.model_allow}")
    if find_spec("huggingface_hub") is None:
        fail("`luthier models pull` needs packages that are not installed: pip install 'luthier[server]'")
    hub = os.environ.get("HF_ENDPOINT") or "the hub"
    say(f"Asking {hub} for {model_id}; one that cannot be reached is tried for about a minute")
    with tempfile.TemporaryDirectory() as scratch, TransferDisplay(model_id, None) as display:
        child = _fetch(model_id, settings.models, Path(scratch), display)
    if child.exit_code != ExitCode.DONE:
        fail(child.ended.message if child.ended and child.ended.message else "the download was broken off")
    say(f"{model_id} lies in {settings.models}")


@app.command("add-sample")
def add(
    name: Annotated[str, typer.Argument(help=f"One of: {', '.join(SAMPLES)}.")],
) -> None:
    """Make a sample model in LUTHIER_MODEL_DIR, without a hub.

    `tiny` has two layers and random weights, and is there in seconds: for first tries.
    `smollm2-135m-instruct` is a real small chat model, built from a package.
    """
    if name not in SAMPLES:
        misuse(f"there is no sample {name!r}: choose one of {', '.join(SAMPLES)}")
    folder = Settings().models
    if find_model(folder, name) is None:
        say(f"Making {name} in {folder}")
    print(add_sample(name, folder, cached_models()))


def _fetch(model_id: str, models: Path, scratch: Path, display: TransferDisplay) -> local_run.Child:
    """Run the fetcher, the one process with a network, and show how far it has come."""

    def show_progress(event: AnyEvent) -> None:
        if isinstance(event, ProgressMade):
            display(event.done, event.total)

    arguments = [model_id, "--model-dir", str(models), "--events", str(scratch / "events.jsonl")]
    return local_run.run_child(module_command("luthier.fetcher", *arguments), scratch, {}, show_progress)
