"""Workers in the database that the settings name: shown, and released, where no server has to run."""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import select

from luthier.cli.database import answering
from luthier.cli.output import Column, Format, show_rows
from luthier.cli.terminal import say, time_of
from luthier.database import Database
from luthier.service import workers
from luthier.settings import Settings
from luthier.tables import Worker

_WORKERS = (
    Column[Mapping[str, Any]]("ID", lambda row: row["id"], is_whole=True),
    Column[Mapping[str, Any]]("STATE", lambda row: row["state"]),
    Column[Mapping[str, Any]]("LAST SEEN", lambda row: row["heartbeat_at"], time_of, is_cut=True),
    Column[Mapping[str, Any]]("WHY", lambda row: row["reason"]),
)


def show(output: Format) -> None:
    """Print each worker with its state, and why it is set aside where it is."""
    with answering(Database(Settings().database)) as database, database.reading() as session:
        found = session.scalars(select(Worker).order_by(Worker.id)).all()
    rows = [
        {
            "id": worker.id,
            "state": worker.state,
            "heartbeat_at": int(worker.heartbeat_at.timestamp()),
            "reason": worker.reason,
        }
        for worker in found
    ]
    show_rows(rows, _WORKERS, output)


def release(name: str) -> None:
    """Let a worker claim again that was set aside."""
    with answering(Database(Settings().database)) as database, database.transaction() as session:
        released = workers.release(session, name)
    say(f"Released: {', '.join(released)}")
