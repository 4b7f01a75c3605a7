"""Workers in the database that the settings name: shown, and released, where no server has to run."""

from sqlalchemy import select

from luthier.cli.database import answering
from luthier.cli.terminal import print_table, say, time_of
from luthier.database import Database
from luthier.service import workers
from luthier.settings import Settings
from luthier.tables import Worker


def show() -> None:
    """Print each worker with its state, and why it is set aside where it is."""
    with answering(Database(Settings().database)) as database, database.reading() as session:
        found = session.scalars(select(Worker).order_by(Worker.id)).all()
    rows = [
        [worker.id, worker.state, time_of(worker.heartbeat_at.timestamp()), worker.reason or ""]
        for worker in found
    ]
    print_table(["ID", "STATE", "LAST SEEN", "WHY"], rows)


def release(name: str) -> None:
    """Let a worker claim again that was set aside."""
    with answering(Database(Settings().database)) as database, database.transaction() as session:
        released = workers.release(session, name)
    say(f"Released: {', '.join(released)}")
