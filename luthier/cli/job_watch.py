"""A job while it works: `watch` shows how far it is, `logs` what its process prints.

Ctrl-C ends the looking, never the job.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Annotated

import typer

from luthier.cli.job_control import JobId
from luthier.cli.progress import RunDisplay, RunState, state_of_job
from luthier.cli.reports import say_details
from luthier.cli.terminal import Ending, fail, say
from luthier.client import ApiError, Client, Event, Job
from luthier.errors import printable

app = typer.Typer()

_LOG_LINES, _LOG_LINE_LENGTH = 20, 400
# Of a job that has more behind it, the last ones are shown.
_EVENTS_BEFORE, _POINTS_BEFORE = 100, 200


@app.command()
def watch(job_id: JobId) -> None:
    """Show a job's progress, loss and events until it ends; the exit code is its result.

    0 succeeded, 1 failed, 5 cancelled. Ctrl-C stops the watching, not the job.
    """
    with Client() as client:
        watch_to_the_end(client, job_id)


app.command("follow", help="The same as watch.", hidden=True)(watch)


@app.command()
def logs(
    job_id: JobId,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job has ended.")] = False,
    tail: Annotated[int | None, typer.Option(min=1, help="Only so many lines from the end.")] = None,
) -> None:
    """Print the output of a job's training process."""
    with Client() as client, detached(lambda: say_detached(f"luthier jobs logs {job_id} -f")):
        if follow:
            chunks = client.jobs.follow_logs(job_id, tail=tail, on_outage=lambda error: say(_outage(error)))
        elif tail is not None:
            print(client.jobs.log_tail(job_id, tail), end="")
            return
        else:
            chunks = client.jobs.logs(job_id)
        for chunk in chunks:
            sys.stdout.buffer.write(chunk)
            sys.stdout.buffer.flush()


def watch_to_the_end(client: Client, job_id: str) -> None:
    """Watch to the end, and end the command as the job ended."""
    with detached(lambda: say_detached(f"luthier jobs watch {job_id}")):
        job = follow_job(client, job_id)
    if job.status == "succeeded":
        say(f"succeeded: {job.fine_tuned_model}; fetch it with: luthier jobs download {job.id}")
    elif job.status == "cancelled":
        fail("the job was cancelled", Ending.CANCELLED)
    elif job.error is not None and job.error.message:
        say_details(job.error.details)
        fail(f"{job.error.message} ({job.error.code})")
    else:
        fail(f"the job was {job.status}")


def follow_job(client: Client, job_id: str) -> Job:
    """Show a job until it has ended, and return it as it is then.

    Where a fault of ours ended it, only the log tells more, so its end is shown too.
    """
    before = client.jobs.events(job_id, limit=_EVENTS_BEFORE).page()
    measured = client.jobs.metrics(job_id, max_points=_POINTS_BEFORE).series("train_loss")
    state, after = RunState(), before.data[0].id if before.has_more else None
    with RunDisplay([value for _, value in measured]) as display:
        for event in reversed(before.data) if before.has_more else ():
            _show_event(display, event)
        updates = client.jobs.follow(
            job_id, after=after, on_outage=lambda error: display.note(_outage(error))
        )
        for update in updates:
            for event in update.events:
                _show_event(display, event)
                state = _with_evaluation(display, state, event)
            state = state_of_job(update.job, state)
            display.show(state)
    if update.job.error is not None and update.job.error.code == "server_error":
        _say_log_end(client, job_id)
    return update.job


@contextmanager
def detached(say_how_to_go_on: Callable[[], None]) -> Iterator[None]:
    """Ctrl-C ends what is done here with words of its own, and the exit code of an interrupted command."""
    try:
        yield
    except KeyboardInterrupt:
        say_how_to_go_on()
        raise typer.Exit(Ending.INTERRUPTED) from None


def say_detached(command: str) -> None:
    say(f"Detached; the job goes on. Attach again with: {command}")


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


def _outage(error: ApiError) -> str:
    return f"{error.message}. Trying on for some minutes"


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
