"""The note of the last backup, in the database, so that every host of an installation can tell its age."""

from datetime import datetime

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from luthier.tables import BackupNote


def record(session: Session, *, made_at: datetime, folder: str) -> None:
    """Note a backup that is whole; it takes the place of the one before."""
    session.execute(delete(BackupNote))
    session.add(BackupNote(made_at=made_at, folder=folder))


def find_last(session: Session) -> BackupNote | None:
    """The last backup that was noted."""
    return session.scalars(select(BackupNote)).one_or_none()
