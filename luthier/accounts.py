"""What the rows of a project take up in storage: `projects.storage_bytes`, exact at every commit.

A flush that adds, changes or removes rows with bytes moves the sum in the same transaction, so that whoever
writes such rows need not think of it. Statements that go around the session's objects (bulk deletes) would
not be seen: rows of these tables are deleted one by one. `recount` tells what the sum should be.
"""

from collections import Counter
from collections.abc import Iterable

from sqlalchemy import event, func, select, update
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.orm.attributes import get_history

from luthier.tables import Artifact, Checkpoint, File, PreparedRows, Project, UploadPart

_Stored = File | PreparedRows | Checkpoint | Artifact | UploadPart
STORED = (File, PreparedRows, Checkpoint, Artifact, UploadPart)


def keep_accounts(sessions: sessionmaker[Session]) -> None:
    """Have all sessions of a maker keep the sums."""
    event.listen(sessions, "after_flush", _move_sums)


def recount(session: Session, project_id: str) -> int:
    """The bytes of a project by its rows, against which the sum can be checked."""
    sums = [select(func.sum(table.size_bytes)).where(table.project_id == project_id) for table in STORED]
    return sum(int(session.scalar(query) or 0) for query in sums)


def _move_sums(session: Session, _context: object) -> None:
    changes: Counter[str] = Counter()
    for row in _stored(session.new):
        changes[row.project_id] += row.size_bytes
    for row in _stored(session.deleted):
        changes[row.project_id] -= _size_before(row)
    for row in _stored(session.dirty):
        changes[row.project_id] += row.size_bytes - _size_before(row)
    # In one order, so that two transactions never wait for each other.
    for project_id, change in sorted(changes.items()):
        if change:
            _move(session, project_id, change)


def _stored(rows: Iterable[object]) -> Iterable[_Stored]:
    return (row for row in rows if isinstance(row, STORED))


def _size_before(row: _Stored) -> int:
    """What the database has for the row until this flush."""
    deleted = get_history(row, "size_bytes").deleted
    return int(deleted[0]) if deleted else row.size_bytes


def _move(session: Session, project_id: str, change: int) -> None:
    query = (
        update(Project)
        .where(Project.id == project_id)
        .values(storage_bytes=Project.storage_bytes + change)
        .execution_options(synchronize_session=False)
    )
    session.execute(query)
