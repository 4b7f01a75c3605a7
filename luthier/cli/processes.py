"""`luthier api`, `worker`, `dispatcher`: the server's processes one by one, for many machines.

Each command becomes the process that it names, so that a supervisor such as systemd sees the process itself.
"""

import os
import sys
from typing import Annotated

import typer

from luthier.cli.database import answering, check_file
from luthier.database import Database
from luthier.processes import module_command
from luthier.settings import Settings
from luthier.status import Queue

app = typer.Typer()


@app.command()
def api() -> None:
    """Run the HTTP server, one process of any number.

    It listens on LUTHIER_HOST and LUTHIER_PORT. All processes of an installation share the database
    (LUTHIER_DATABASE_URL), the storage folder (LUTHIER_STORAGE_DIR) and LUTHIER_SECRET_KEY.
    """
    settings = Settings()
    with answering(Database(settings.database, reserve_bytes=settings.reserve_bytes)) as database:
        check_file(database, settings)
        if database.file is not None and database.file.exists():
            database.restore_reserve()
    _become("api")


@app.command()
def worker(
    queue: Annotated[
        list[Queue] | None,
        typer.Option(help="Serve this queue only; give it twice for both. Default: all queues."),
    ] = None,
) -> None:
    """Run this host's agents: training on each device, data checks on the CPU.

    Devices are those of LUTHIER_GPUS. With LUTHIER_REDIS_URL they are woken at once, else they look into the
    database every LUTHIER_POLL_SECONDS. On SIGTERM runs save a checkpoint and go back to the queue.
    """
    _become("worker", *(part for name in queue or () for part in ("--queue", str(name))))


@app.command()
def dispatcher() -> None:
    """Run the process that takes back lost jobs and rings doorbells; any number may run, one is active."""
    _become("worker.dispatcher")


def _become(module: str, *arguments: str) -> None:
    """Replace this process with one of our modules."""
    sys.stdout.flush()
    sys.stderr.flush()
    command = module_command(module, *arguments)
    os.execv(command[0], command)  # noqa: S606, becoming the process is the point
