"""Prepared rows that the jobs of a project share: noted when they are made and whenever they are used.

A row of `prepared_data` makes a sealed folder in storage findable under its cache key; the folder is there
before the row. The bytes are the supervisor's: `worker.cache`.
"""

from datetime import datetime
from typing import Any

from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from luthier import repository
from luthier.errors import LuthierError
from luthier.spec import SourceFile
from luthier.tables import PreparedRows


def use(session: Session, project_id: str, source: SourceFile, *, now: datetime) -> dict[str, Any]:
    """The facts of rows that a job uses, and a note that it does.

    Raises:
        LuthierError: they were deleted since they were found.
    """
    rows = repository.find_prepared(session, project_id, source.cache_key or "")
    if rows is None:
        raise LuthierError(f"The prepared rows of {source.filename} are gone", "server_error")
    rows.last_used_at = now
    return rows.facts


def record_rows(
    session: Session,
    project_id: str,
    *,
    key: str,
    file_sha256: str,
    storage_key: str,
    facts: dict[str, Any],
    size_bytes: int,
    now: datetime,
) -> bool:
    """Make rows whose folder lies in storage findable.

    Returns:
        False where no file of the project has their content any more, so that the folder may go.
    """
    if not repository.has_content(session, project_id, file_sha256):
        return False
    rows = PreparedRows(
        project_id=project_id,
        key=key,
        file_sha256=file_sha256,
        storage_key=storage_key,
        facts=facts,
        size_bytes=size_bytes,
        created_at=now,
        last_used_at=now,
    )
    if session.get(PreparedRows, (project_id, key), with_for_update=True) is not None:
        session.merge(rows)
        return True
    try:
        with session.begin_nested():
            session.add(rows)
    except IntegrityError:
        # Another job prepared the same at the same time; its row says the same.
        pass
    return True
