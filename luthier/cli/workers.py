"""`luthier workers`: the agents of all hosts, and the release of one that was set aside."""

import typer
from sqlalchemy import select

from luthier.cli.database import answering
from luthier.cli.terminal import print_table, say, time_of
from luthier.database import Database
from luthier.service import workers
from luthier.settings import Settings
from luthier.tables import Worker

app = typer.Typer(no_args_is_help=True, help="List workers, and release one that was set aside.")


@app.command("list")
def list_workers() -> None:
    """Show each worker with its state, and why it is set aside where it is."""
    with answering(Database(Settings().database)) as database, database.reading() as session:
        found = session.scalars(select(Worker).order_by(Worker.id)).all()
    rows = [
        [worker.id, worker.state, time_of(worker.heartbeat_at.timestamp()), worker.reason or ""]
        for worker in found
    ]
    print_table(["worker", "state", "last seen", "why"], rows)


@app.command()
def release(name: str = typer.Argument(help="The worker's id, or its device: a UUID, or `cpu`.")) -> None:
    """Let a worker claim again that was set aside: after a fault of its GPU, or a process that did not end.

    Look at the device first (`nvidia-smi -q -d ECC`, the kernel's log), and that nothing of a run lives: with
    the release, a job that was to be cancelled there counts as gone once its lease has run out. A machine
    that starts anew releases its workers by itself.
    """
    with answering(Database(Settings().database)) as database, database.transaction() as session:
        released = workers.release(session, name)
    say(f"Released: {', '.join(released)}")
