"""What owners wish of jobs, as commands of `luthier jobs`: cancel, pause, resume, retry, move."""

from enum import StrEnum
from typing import Annotated

import typer

from luthier.cli.terminal import misuse, print_json, print_table, say
from luthier.client import Client, Job

app = typer.Typer()

JobId = Annotated[str, typer.Argument(metavar="JOB_ID", help="Such as ftjob-9aB...")]


class _Origin(StrEnum):
    """Where another try starts."""

    CHECKPOINT = "checkpoint"
    START = "start"


@app.command()
def cancel(job_id: JobId) -> None:
    """Cancel a job: at once while it waits, after its current step while it runs; checkpoints stay."""
    with Client() as client:
        job = client.jobs.cancel(job_id)
    say(f"{job.id}: {job.status}" if job.is_final else f"{job.id}: ends after its current step")


@app.command()
def pause(job_id: JobId) -> None:
    """Pause a job: at once while it waits, after its current step while it runs; its device becomes free."""
    with Client() as client:
        job = client.jobs.pause(job_id)
    say(f"{job.id}: {job.status if job.status == 'paused' else 'pauses as soon as it can'}")


@app.command()
def resume(job_id: JobId) -> None:
    """Let a paused job go on where it was, before the others of its priority."""
    with Client() as client:
        _say_place(client.jobs.resume(job_id))


@app.command()
def retry(
    job_id: JobId,
    origin: Annotated[
        _Origin, typer.Option("--from", help="The newest checkpoint, or the start of training.")
    ] = _Origin.CHECKPOINT,
) -> None:
    """Try a job again that failed or was cancelled; prints the id of the new job."""
    with Client() as client:
        job = client.jobs.retry(job_id, origin.value)
    print(job.id)
    _say_place(job)


@app.command()
def prioritise(
    job_id: JobId,
    priority: Annotated[int, typer.Argument(min=-100, max=100, help="A higher one goes first; usual is 0.")],
) -> None:
    """Give a job that waits another priority; for one below 0, put -- before it."""
    with Client() as client:
        _say_place(client.jobs.update(job_id, priority=priority))


@app.command()
def move(
    job_id: JobId,
    place: Annotated[str | None, typer.Argument(help="front or back.")] = None,
    before: Annotated[str | None, typer.Option(metavar="JOB_ID", help="The job to stand before.")] = None,
) -> None:
    """Move a job that waits to another place among those of its priority."""
    if (place is None) == (before is None) or place not in (None, "front", "back"):
        misuse("give a place, front or back, or --before JOB_ID")
    with Client() as client:
        _say_place(client.jobs.update(job_id, place=place or before))


@app.command()
def queue(
    limit: Annotated[int, typer.Option(min=1, max=100, help="Jobs to show.")] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="Print the server's JSON.")] = False,
) -> None:
    """List the jobs that wait, the next one first, with the expected wait."""
    with Client() as client:
        page = client.jobs.queue(limit=limit)
    if as_json:
        print_json(page)
        return
    print_table(
        ("PLACE", "ID", "PRIORITY", "NAME", "MODEL", "WAIT"),
        [
            (job.queue.position if job.queue else None, job.id, job.priority, job.name, job.model, _wait(job))
            for job in page.data
        ],
    )


def _say_place(job: Job) -> None:
    place = f", place {job.queue.position}" if job.queue else ""
    wait = f", in about {_wait(job)}" if _wait(job) else ""
    say(f"{job.id}: {job.status}{place}{wait}")


def _wait(job: Job) -> str:
    """The expected wait in hours and minutes; empty where nobody can tell."""
    if job.queue is None or job.queue.wait_seconds is None:
        return ""
    hours, minutes = divmod(round(job.queue.wait_seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
