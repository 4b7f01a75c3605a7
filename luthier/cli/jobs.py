"""`luthier jobs`: fine-tuning jobs on a server, from the request to the files on this machine's disk."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from luthier.cli import job_control
from luthier.cli.foreign_job import submitted_body
from luthier.cli.job_control import JobId
from luthier.cli.job_file import JobFileError, apply_settings, local_files, read_job_file
from luthier.cli.progress import RunDisplay, RunState, TransferDisplay, state_of_job
from luthier.cli.reports import print_estimate, say_details
from luthier.cli.terminal import fail, misuse, print_json, print_table, say, time_of
from luthier.cli.uploading import uploaded
from luthier.client import ApiError, Artifact, Client, Event, Job
from luthier.errors import printable
from luthier.llamafactory import is_llamafactory

app = typer.Typer(
    no_args_is_help=True, help="Submit fine-tuning jobs, follow them, and take home the results."
)

app.add_typer(job_control.app)

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
AsJson = Annotated[bool, typer.Option("--json", help="Print the server's JSON.")]
Limit = Annotated[int, typer.Option(min=1, max=100, help="Newest entries to show.")]
After = Annotated[str | None, typer.Option(help="Go on after this id.")]
_LOG_LINES, _LOG_LINE_LENGTH = 20, 400
_METRIC_COLUMNS = ("train_loss", "eval_loss", "learning_rate", "grad_norm", "tokens_per_second")


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
    settings: SettingOptions = None,
    follow: Annotated[bool, typer.Option("--follow", help="Follow the job until it ends.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only tell what the job would be and cost.")
    ] = False,
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
    }
    body, paths = _read_body(file, options, settings or ())
    with Client() as client:
        body = _with_files(client, body, paths, file)
        if dry_run:
            _show_estimate(client, body, as_json=as_json)
            return
        job = client.jobs.create(body)
        if as_json:
            print_json(job)
        else:
            print(job.id)
        if follow:
            _follow(client, job.id)
        elif not as_json:
            say(f"{job.status}; follow it with: luthier jobs follow {job.id}")


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
    body, paths = _read_body(file, {"model": model, "training_file": training_file}, settings or ())
    with Client() as client:
        _show_estimate(client, _with_files(client, body, paths, file), as_json=as_json)


@app.command("list")
def list_jobs(limit: Limit = 20, after: After = None, as_json: AsJson = False) -> None:
    """List jobs, newest first."""
    with Client() as client:
        page = client.jobs.list(limit=limit, after=after)
    if as_json:
        print_json(page)
        return
    print_table(
        ("ID", "STATUS", "STEP", "LOSS", "MODEL", "CREATED"),
        [
            (job.id, job.status, _step(job), _loss(job), job.model, time_of(job.created_at))
            for job in page.data
        ],
    )
    if page.has_more:
        say(f"More: --after {page.data[-1].id}")


@app.command()
def get(job_id: JobId) -> None:
    """Show a job as JSON: status, progress, what `auto` became, and `error` with the setting to change."""
    with Client() as client:
        print_json(client.jobs.get(job_id))


@app.command()
def follow(job_id: JobId) -> None:
    """Show a job's progress until it ends; exit code 0 only if it succeeded.

    Ctrl-C stops the following, not the job.
    """
    with Client() as client:
        _follow(client, job_id)


@app.command()
def events(job_id: JobId, limit: Limit = 20, after: After = None, as_json: AsJson = False) -> None:
    """List what happened to a job, newest first."""
    with Client() as client:
        page = client.jobs.events(job_id, limit=limit, after=after)
    if as_json:
        print_json(page)
        return
    rows = [(time_of(event.created_at), event.level, event.message) for event in page.data]
    print_table(("TIME", "LEVEL", "MESSAGE"), rows)
    if page.has_more:
        say(f"More: --after {page.data[-1].id}")


@app.command()
def checkpoints(job_id: JobId, limit: Limit = 10, after: After = None) -> None:
    """List a job's checkpoints, newest first."""
    with Client() as client:
        page = client.jobs.checkpoints(job_id, limit=limit, after=after)
    rows = [
        (point.step_number, point.fine_tuned_model_checkpoint, time_of(point.created_at))
        for point in page.data
    ]
    print_table(("STEP", "MODEL", "CREATED"), rows)


@app.command()
def metrics(job_id: JobId, as_json: AsJson = False) -> None:
    """Show a job's numbers by step."""
    with Client() as client:
        measured = client.jobs.metrics(job_id)
    if as_json:
        print_json(measured)
        return
    columns = [name for name in _METRIC_COLUMNS if measured.series(name)]
    by_step: dict[int, dict[str, float]] = {}
    for name in columns:
        for step, value in measured.series(name):
            by_step.setdefault(step, {})[name] = value
    rows = [
        (step, *(f"{values[name]:.6g}" if name in values else None for name in columns))
        for step, values in sorted(by_step.items())
    ]
    print_table(("STEP", *(name.upper() for name in columns)), rows)


@app.command()
def artifacts(job_id: JobId, as_json: AsJson = False) -> None:
    """List the files that a succeeded job has left, with their SHA-256."""
    with Client() as client:
        found = client.jobs.artifacts(job_id)
    if as_json:
        print_json(found)
        return
    print_table(
        ("NAME", "KIND", "BYTES", "SHA256"),
        [(artifact.name, artifact.kind, artifact.bytes, artifact.sha256) for artifact in found],
    )


@app.command()
def download(
    job_id: JobId,
    name: Annotated[
        str | None, typer.Option(help="One artifact, or a folder of them such as adapter; default: all.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder to fill; default: the job's id.")
    ] = None,
    tar: Annotated[bool, typer.Option("--tar", help="One .tar file in the place of a folder.")] = False,
) -> None:
    """Download what a job has left; every file's SHA-256 is checked, and a broken download goes on."""
    with Client() as client:
        if tar:
            target = output or Path(f"{job_id}.tar")
            with TransferDisplay(target.name, None) as display:
                client.jobs.download_tar(job_id, target, display)
        else:
            target = output or Path(job_id)
            download_artifacts(client, job_id, _chosen(client, job_id, name), target)
    print(target)


@app.command()
def logs(job_id: JobId) -> None:
    """Print the output of a job's training process."""
    with Client() as client:
        for chunk in client.jobs.logs(job_id):
            sys.stdout.buffer.write(chunk)
        sys.stdout.flush()


def follow_job(client: Client, job_id: str) -> Job:
    """Show a job until it has ended, and return it as it is then.

    Where a fault of ours ended it, only the log tells more, so its end is shown too.
    """
    state = RunState()
    with RunDisplay() as display:
        for update in client.jobs.follow(job_id):
            for event in update.events:
                _show_event(display, event)
                state = _with_evaluation(display, state, event)
            state = state_of_job(update.job, state)
            display.show(state)
    if update.job.error is not None and update.job.error.code == "server_error":
        _say_log_end(client, job_id)
    return update.job


def download_artifacts(client: Client, job_id: str, artifacts: Sequence[Artifact], folder: Path) -> None:
    """Put artifacts under their names into a folder, with a bar for each."""
    for artifact in artifacts:
        with TransferDisplay(artifact.name, artifact.bytes) as display:
            client.jobs.download(job_id, artifact, folder, display)


def _read_body(
    file: Path | None, options: Mapping[str, str | None], settings: Sequence[str]
) -> tuple[dict[str, Any], dict[str, Path]]:
    """The body of a job from its file and the options, and the files in it that are to be uploaded."""
    try:
        body = read_job_file(file) if file is not None else {}
        body |= {name: value for name, value in options.items() if value is not None}
        apply_settings(body, settings)
        is_foreign = is_llamafactory(body)
        paths = {} if is_foreign else local_files(body)
    except JobFileError as error:
        misuse(str(error))
    if not is_foreign and not (body.get("model") and body.get("training_file")):
        misuse("a job needs a model and a training file: give -f FILE, or --model and --training-file")
    return body, paths


def _with_files(
    client: Client, body: dict[str, Any], paths: dict[str, Path], file: Path | None
) -> dict[str, Any]:
    """The body to send, with ids in the place of files of this machine, which are uploaded."""
    if is_llamafactory(body):
        return submitted_body(client, body, file.parent if file is not None else Path())
    return body | _upload(client, paths, body)


def _show_estimate(client: Client, body: Mapping[str, Any], *, as_json: bool) -> None:
    """An estimate; one that says that the job would fail ends the command with exit code 1."""
    told = client.jobs.estimate(body)
    if as_json:
        print_json(told)
    else:
        print_estimate(told)
    if not told.valid:
        raise typer.Exit(1)


def _upload(client: Client, paths: dict[str, Path], body: Mapping[str, Any]) -> dict[str, Any]:
    """The ids of uploaded files that take the place of their paths."""
    dataset = body.get("dataset")
    on_bad_row = dataset.get("on_bad_row") if isinstance(dataset, dict) else None
    return {field: uploaded(client, path, on_bad_row) for field, path in paths.items()}


def _follow(client: Client, job_id: str) -> None:
    """Follow to the end, and end the command as the job ended."""
    job = follow_job(client, job_id)
    if job.status == "succeeded":
        say(f"succeeded: {job.fine_tuned_model}; fetch it with: luthier jobs download {job.id}")
    elif job.error is not None and job.error.message:
        say_details(job.error.details)
        fail(f"{job.error.message} ({job.error.code})")
    else:
        fail(f"the job was {job.status}")


def _say_log_end(client: Client, job_id: str) -> None:
    try:
        lines = client.jobs.log_tail(job_id, _LOG_LINES).splitlines()
    except ApiError as error:
        say(f"The job's log cannot be read: {error.message}")
        return
    if lines:
        say("The end of the job's log:")
    for line in lines:
        say(f"  {printable(line.rstrip(), _LOG_LINE_LENGTH)}")


def _chosen(client: Client, job_id: str, name: str | None) -> Sequence[Artifact]:
    found = client.jobs.artifacts(job_id)
    if name is not None:
        found = [each for each in found if each.name == name or each.name.startswith(f"{name.rstrip('/')}/")]
    if not found:
        which = f"has no artifact {name}" if name is not None else "has left nothing yet"
        fail(f"job {job_id} {which}: see `luthier jobs artifacts {job_id}`")
    return found


def _show_event(display: RunDisplay, event: Event) -> None:
    if event.type == "message":
        mark = "" if event.level == "info" else f"{event.level}: "
        display.note(f"{mark}{event.message}")


def _with_evaluation(display: RunDisplay, state: RunState, event: Event) -> RunState:
    """The state with the loss that an event tells of the validation split; each one is a line of its own."""
    data = (event.data or {}) if event.type == "metrics" else {}
    loss = data.get("full_valid_loss")
    if loss is None:
        return state
    display.evaluated(data.get("step"), data.get("total_steps"), loss)
    return replace(state, eval_loss=loss)


def _step(job: Job) -> str:
    progress = job.progress
    if progress is None or progress.step is None or progress.total_steps is None:
        return ""
    return f"{progress.step}/{progress.total_steps}"


def _loss(job: Job) -> str:
    progress = job.progress
    return f"{progress.train_loss:.4f}" if progress and progress.train_loss is not None else ""
