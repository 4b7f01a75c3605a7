"""`luthier workers`: who works, as the server tells it or its database, and the release of one set aside."""

from typing import Annotated

import typer

from luthier.cli.output import MOST_ROWS, Column, Format, Output, show_list
from luthier.cli.parts import needed
from luthier.cli.terminal import size_of, time_of
from luthier.client import Client, Worker

app = typer.Typer(no_args_is_help=True, help="List workers, and release one that was set aside.")

_LOCAL = "luthier.cli.local_workers"
_WORKERS = (
    Column[Worker]("ID", lambda worker: worker.id, is_whole=True),
    Column[Worker]("STATE", lambda worker: worker.state),
    Column[Worker]("DEVICE", lambda worker: worker.device_name or worker.device, is_cut=True),
    Column[Worker]("FREE", lambda worker: worker.free_memory_bytes, size_of),
    Column[Worker]("LAST SEEN", lambda worker: worker.heartbeat_at, time_of, is_cut=True),
    Column[Worker]("WHY", lambda worker: worker.reason),
)


@app.command("list")
def list_workers(
    local: Annotated[
        bool, typer.Option("--local", help="All of this machine's database, without a server.")
    ] = False,
    output: Output = Format.TABLE,
) -> None:
    """Show the workers of the last day with their state, and why one is set aside."""
    if local:
        needed(f"{_LOCAL}:show", "server")(output)
        return
    with Client() as client:
        show_list(client.workers.list(), _WORKERS, output, limit=MOST_ROWS)


@app.command()
def release(
    name: Annotated[str, typer.Argument(help="The worker's id, or its device: a UUID, or `cpu`.")],
) -> None:
    """Let a worker claim again that was set aside: after a fault of its GPU, or a process that did not end.

    It is done in the database of this machine. Look at the device first (`nvidia-smi -q -d ECC`, the kernel's
    log), and that nothing of a run lives: with the release, a job that was to be cancelled there counts as
    gone once its lease has run out. A machine that starts anew releases its workers by itself.
    """
    needed(f"{_LOCAL}:release", "server")(name)
