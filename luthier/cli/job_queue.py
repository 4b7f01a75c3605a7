"""What waits, the next job first: `luthier queue`, and `luthier jobs queue`."""

import typer

from luthier.cli.output import After, All, AsJson, Column, Format, Limit, Output, format_of, show_list
from luthier.client import Client, Job

app = typer.Typer()


@app.command()
def queue(
    *,
    limit: Limit = 20,
    after: After = None,
    is_all: All = False,
    output: Output = Format.TABLE,
    as_json: AsJson = False,
) -> None:
    """List the jobs that wait, the next one first, with the expected wait."""
    with Client() as client:
        rows = client.jobs.queue(limit=limit, after=after)
        show_list(rows, _QUEUE, format_of(output, as_json), limit=limit, is_all=is_all)


def wait_of(job: Job) -> str:
    """The expected wait; empty where nobody can tell."""
    seconds = job.queue.wait_seconds if job.queue else None
    return "" if seconds is None else _hours_and_minutes(seconds)


def _hours_and_minutes(seconds: float) -> str:
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


_QUEUE = (
    Column[Job]("ID", lambda job: job.id, is_whole=True),
    Column[Job]("PLACE", lambda job: job.queue and job.queue.position),
    Column[Job]("PRIORITY", lambda job: job.priority),
    Column[Job]("NAME", lambda job: job.name, is_cut=True),
    Column[Job]("MODEL", lambda job: job.model, is_cut=True),
    Column[Job]("WAIT", lambda job: job.queue and job.queue.wait_seconds, _hours_and_minutes),
)
