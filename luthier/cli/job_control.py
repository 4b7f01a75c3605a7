"""What owners wish of jobs: cancel, pause, resume, retry, move, rename, annotate, delete."""

import sys
from enum import StrEnum
from typing import Annotated

import typer

from luthier.cli.job_queue import wait_of
from luthier.cli.terminal import Ending, fail, misuse, say
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
def rename(
    job_id: JobId,
    name: Annotated[str, typer.Argument(help="Letters, digits, `_`, `.` and `-`.")],
) -> None:
    """Give a job another name, in any state."""
    with Client() as client:
        job = client.jobs.update(job_id, name=name)
    say(f"{job.id} is {job.name}")


@app.command()
def annotate(
    job_id: JobId,
    pairs: Annotated[
        list[str], typer.Argument(metavar="KEY=VALUE...", help="KEY= without a value takes it away.")
    ],
) -> None:
    """Set metadata of a job, in any state; keys that are not named stay as they are."""
    given = [pair.partition("=") for pair in pairs]
    if any(not (key and equals) for key, equals, _ in given):
        misuse("write KEY=VALUE")
    with Client() as client:
        job = client.jobs.annotate(job_id, {key: value or None for key, _, value in given})
    for key, value in (job.metadata or {}).items():
        print(f"{key}={value}")


@app.command()
def delete(
    job_ids: Annotated[list[str], typer.Argument(metavar="JOB_ID...", help="Such as ftjob-9aB...")],
    is_sure: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Delete jobs that have ended, with checkpoints, artifacts, logs and tuned models; files stay."""
    if not is_sure:
        if not sys.stdin.isatty():
            misuse("there is nobody to ask: give --yes")
        told = job_ids[0] if len(job_ids) == 1 else f"{len(job_ids)} jobs"
        if not typer.confirm(f"Delete {told} and what came of it?", err=True):
            fail("nothing was deleted", Ending.INTERRUPTED)
    with Client() as client:
        for job_id in job_ids:
            client.jobs.delete(job_id)
            say(f"Deleted {job_id}")


def _say_place(job: Job) -> None:
    place = f", place {job.queue.position}" if job.queue else ""
    wait = wait_of(job)
    say(f"{job.id}: {job.status}{place}{f', in about {wait}' if wait else ''}")
