"""A job on its way to the server: a body of file and options, files that are uploaded, then it is sent."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from luthier.cli.foreign_job import submitted_body
from luthier.cli.job_file import JobFileError, apply_settings, local_files, read_job_file
from luthier.cli.job_watch import watch_to_the_end
from luthier.cli.output import print_json
from luthier.cli.reports import print_estimate
from luthier.cli.terminal import Ending, misuse, say
from luthier.cli.uploading import uploaded
from luthier.client import Client
from luthier.llamafactory import is_llamafactory

JobFile = Annotated[
    Path | None,
    typer.Option(
        "--file",
        "-f",
        exists=True,
        dir_okay=False,
        help="Job file: the body of the call as YAML, or a LLaMA-Factory YAML.",
    ),
]
SettingOptions = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="Any field, such as qlora.r=8; may be repeated."),
]
Watch = Annotated[bool, typer.Option("--watch", "--follow", help="Watch the job until it ends.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only tell what the job would be and cost.")]


def read_body(
    given: Mapping[str, Any], options: Mapping[str, str | None], settings: Sequence[str]
) -> tuple[dict[str, Any], dict[str, Path]]:
    """A body with options and settings over it, and the files in it that are to be uploaded."""
    body = {**given, **{name: value for name, value in options.items() if value is not None}}
    try:
        apply_settings(body, settings)
        is_foreign = is_llamafactory(body)
        paths = {} if is_foreign else local_files(body)
    except JobFileError as error:
        misuse(str(error))
    if not is_foreign and not (body.get("model") and body.get("training_file")):
        misuse("a job needs a model and a training file: give -f FILE, or --model and --training-file")
    return body, paths


def read_file(file: Path | None) -> dict[str, Any]:
    """The body in a job file; without one an empty one."""
    try:
        return read_job_file(file) if file is not None else {}
    except JobFileError as error:
        misuse(str(error))


def with_files(
    client: Client, body: dict[str, Any], paths: Mapping[str, Path], file: Path | None = None
) -> dict[str, Any]:
    """The body to send, with ids in the place of files of this machine, which are uploaded."""
    if is_llamafactory(body):
        return submitted_body(client, body, file.parent if file is not None else Path())
    dataset = body.get("dataset")
    on_bad_row = dataset.get("on_bad_row") if isinstance(dataset, dict) else None
    return body | {field: uploaded(client, path, on_bad_row) for field, path in paths.items()}


def submit(client: Client, body: Mapping[str, Any], *, watch: bool, as_json: bool) -> None:
    """Make a job and print its id, or all of it; then perhaps watch it to its end."""
    job = client.jobs.create(body)
    if as_json:
        print_json(job)
    else:
        print(job.id, flush=True)
    if watch:
        watch_to_the_end(client, job.id)
    elif not as_json:
        say(f"{job.status}; watch it with: luthier jobs watch {job.id}")


def show_estimate(client: Client, body: Mapping[str, Any], *, as_json: bool) -> None:
    """An estimate; one that says that the job would fail ends the command with exit code 1."""
    told = client.jobs.estimate(body)
    if as_json:
        print_json(told)
    else:
        print_estimate(told)
    if not told.valid:
        raise typer.Exit(Ending.FAILED)
