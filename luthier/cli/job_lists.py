"""What jobs there are, and what is known of each: list, get, events, checkpoints."""

from collections.abc import Callable
from typing import Annotated

import typer

from luthier.cli.job_control import JobId
from luthier.cli.job_watch import detached, say_detached
from luthier.cli.output import (
    After,
    All,
    AsJson,
    Column,
    Format,
    Limit,
    Output,
    format_of,
    show_list,
    show_one,
    show_rows,
)
from luthier.cli.terminal import misuse, time_of
from luthier.client import Checkpoint, Client, Event, Job

app = typer.Typer()


def _step(job: Job) -> str | None:
    progress = job.progress
    if progress is None or progress.step is None or progress.total_steps is None:
        return None
    return f"{progress.step}/{progress.total_steps}"


_JOBS = (
    Column[Job]("ID", lambda job: job.id, is_whole=True),
    Column[Job]("STATUS", lambda job: job.status, is_whole=True),
    Column[Job]("STEP", _step, is_whole=True),
    Column[Job]("LOSS", lambda job: job.progress and job.progress.train_loss, "{:.4f}".format, is_whole=True),
    Column[Job]("NAME", lambda job: job.name, is_cut=True),
    Column[Job]("MODEL", lambda job: job.model, is_cut=True),
    Column[Job]("CREATED", lambda job: job.created_at, time_of, is_cut=True),
)
_EVENTS = (
    Column[Event]("ID", lambda event: event.id),
    Column[Event]("TIME", lambda event: event.created_at, time_of, is_whole=True),
    Column[Event]("LEVEL", lambda event: event.level),
    Column[Event]("MESSAGE", lambda event: event.message),
)
_CHECKPOINTS = (
    Column[Checkpoint]("MODEL", lambda point: point.fine_tuned_model_checkpoint),
    Column[Checkpoint]("STEP", lambda point: point.step_number),
    Column[Checkpoint]("CREATED", lambda point: point.created_at, time_of, is_cut=True),
)


@app.command("list")
def list_jobs(
    *,
    status: Annotated[
        list[str] | None, typer.Option(help="Only those in this status, such as running; may be repeated.")
    ] = None,
    metadata: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="Only those with it; may be repeated.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Only those whose name has this in it.")] = None,
    limit: Limit = 20,
    after: After = None,
    is_all: All = False,
    output: Output = Format.TABLE,
    as_json: AsJson = False,
) -> None:
    """List jobs, newest first."""
    pairs = [pair.partition("=") for pair in metadata or ()]
    if any(not (key and equals) for key, equals, _ in pairs):
        misuse("--metadata needs the form key=value")
    keep = _filter(status, name)
    with Client() as client:
        # Where some are picked here, pages are as long as the server gives them.
        size = limit if keep is None and not is_all else 100
        rows = client.jobs.list(limit=size, after=after, metadata={key: value for key, _, value in pairs})
        show_list(rows, _JOBS, format_of(output, as_json), limit=limit, is_all=is_all, keep=keep)


@app.command()
def get(job_id: JobId, output: Output = Format.JSON) -> None:
    """Show a job: status, progress, what `auto` became, and `error` with the setting to change."""
    with Client() as client:
        show_one(client.jobs.get(job_id), output)


@app.command()
def events(
    *,
    job_id: JobId,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Oldest first, and go on until the job has ended.")
    ] = False,
    limit: Limit = 20,
    after: After = None,
    is_all: All = False,
    output: Output = Format.TABLE,
    as_json: AsJson = False,
) -> None:
    """List what happened to a job, newest first."""
    chosen = format_of(output, as_json)
    if follow and chosen in (Format.JSON, Format.CSV):
        misuse("--follow prints as it goes on: use -o table, jsonl or id")
    with Client() as client:
        if follow:
            _follow_events(client, job_id, limit, chosen)
            return
        rows = client.jobs.events(job_id, limit=limit, after=after)
        columns = _EVENTS[1:] if chosen is Format.TABLE else _EVENTS
        show_list(rows, columns, chosen, limit=limit, is_all=is_all)


@app.command()
def checkpoints(
    job_id: JobId,
    limit: Limit = 10,
    after: After = None,
    is_all: All = False,
    output: Output = Format.TABLE,
) -> None:
    """List a job's checkpoints, newest first."""
    with Client() as client:
        rows = client.jobs.checkpoints(job_id, limit=limit, after=after)
        show_list(rows, _CHECKPOINTS, output, limit=limit, is_all=is_all)


def _follow_events(client: Client, job_id: str, limit: int, output: Format) -> None:
    """The newest events, oldest first, then those to come."""
    known = client.jobs.events(job_id, limit=limit).page().data
    with detached(lambda: say_detached(f"luthier jobs events {job_id} -f")):
        for event in reversed(known):
            _print_event(event, output)
        for event in client.jobs.stream(job_id, after=known[0].id if known else None):
            _print_event(event, output)


def _print_event(event: Event, output: Format) -> None:
    if output is Format.TABLE:
        print(f"{time_of(event.created_at)} {event.level:5} {event.message}", flush=True)
    else:
        show_rows([event], _EVENTS, output)


def _filter(status: list[str] | None, name: str | None) -> Callable[[Job], bool] | None:
    """What picks jobs by what the server does not look for; None where all are wanted."""
    if not status and name is None:
        return None

    def keep(job: Job) -> bool:
        return (not status or job.status in status) and (name is None or name in (job.name or ""))

    return keep
