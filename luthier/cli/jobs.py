"""`luthier jobs`: fine-tuning jobs on a server, from the request to the files on this machine's disk.

Here are the commands that make a job; the others stand in `job_*.py`, by subject.
"""

from typing import Annotated

import typer

from luthier.cli import job_comparison, job_control, job_lists, job_metrics, job_queue, job_results, job_watch
from luthier.cli.job_control import JobId
from luthier.cli.output import AsJson
from luthier.cli.submitting import (
    DryRun,
    JobFile,
    SettingOptions,
    Watch,
    read_body,
    read_file,
    show_estimate,
    submit,
    with_files,
)
from luthier.client import Client

app = typer.Typer(
    no_args_is_help=True, help="Submit fine-tuning jobs, watch them, and take home the results."
)


@app.command()
def create(
    *,
    file: JobFile = None,
    model: Annotated[str | None, typer.Option(help="Base model, such as smollm2-135m-instruct.")] = None,
    training_file: Annotated[
        str | None, typer.Option(help="Id of an uploaded file, or a path, which is uploaded first.")
    ] = None,
    validation_file: Annotated[str | None, typer.Option(help="The same, for validation.")] = None,
    suffix: Annotated[str | None, typer.Option(help="Becomes part of the tuned model's name.")] = None,
    name: Annotated[str | None, typer.Option(help="Shown in lists.")] = None,
    settings: SettingOptions = None,
    watch: Watch = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Submit a job; prints its id.

    Everything is in a job file, or in options, or in a file whose values the options replace:

    luthier jobs create -f examples/qlora-smollm2.yaml --set qlora.r=8

    luthier jobs create --model smollm2-135m-instruct --training-file chats.jsonl

    Paths in a job file are relative to it. What is left out, the server decides, and shows on the job.
    --dry-run uploads files that are paths, and submits nothing. What the server has is not sent again.

    A LLaMA-Factory YAML does as well: its datasets are uploaded from dataset_dir and registered.
    """
    options = {
        "model": model,
        "training_file": training_file,
        "validation_file": validation_file,
        "suffix": suffix,
        "name": name,
    }
    body, paths = read_body(read_file(file), options, settings or ())
    with Client() as client:
        body = with_files(client, body, paths, file)
        if dry_run:
            show_estimate(client, body, as_json=as_json)
        else:
            submit(client, body, watch=watch, as_json=as_json)


@app.command()
def estimate(
    *,
    file: JobFile = None,
    model: Annotated[str | None, typer.Option(help="Base model, or one of ours.")] = None,
    training_file: Annotated[str | None, typer.Option(help="Id of an uploaded file, or a path.")] = None,
    settings: SettingOptions = None,
    as_json: AsJson = False,
) -> None:
    """Tell what a job would be and cost: steps, memory, time, disk; exit code 1 where it would fail.

    The same as `luthier jobs create --dry-run`: nothing is submitted.
    """
    options = {"model": model, "training_file": training_file}
    body, paths = read_body(read_file(file), options, settings or ())
    with Client() as client:
        show_estimate(client, with_files(client, body, paths, file), as_json=as_json)


@app.command()
def clone(
    *,
    job_id: JobId,
    model: Annotated[str | None, typer.Option(help="Another base model.")] = None,
    training_file: Annotated[str | None, typer.Option(help="Another file, by id or path.")] = None,
    validation_file: Annotated[str | None, typer.Option(help="The same, for validation.")] = None,
    suffix: Annotated[str | None, typer.Option(help="Another suffix of the model's name.")] = None,
    name: Annotated[str | None, typer.Option(help="Another name.")] = None,
    settings: SettingOptions = None,
    watch: Watch = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Submit a new job with the request of an old one, and what is given here over it; prints its id.

    luthier jobs clone ftjob-9aB... --set qlora.r=32 --set hyperparameters.n_epochs=2

    What the old request left to the server, it decides anew, the seed too.
    """
    options = {
        "model": model,
        "training_file": training_file,
        "validation_file": validation_file,
        "suffix": suffix,
        "name": name,
    }
    with Client() as client:
        body, paths = read_body(client.jobs.request(job_id), options, settings or ())
        body = with_files(client, body, paths)
        if dry_run:
            show_estimate(client, body, as_json=as_json)
        else:
            submit(client, body, watch=watch, as_json=as_json)


for part in (job_lists, job_watch, job_metrics, job_comparison, job_results, job_control, job_queue):
    app.add_typer(part.app)
