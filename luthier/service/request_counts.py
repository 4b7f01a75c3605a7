"""Requests of keys that have a limit, summed over all processes of the API; one row a key."""

from typing import Any

from sqlalchemy import case
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from luthier.service.jobs import Caller
from luthier.tables import RequestCount


def add(session: Session, caller: Caller, *, minute: int, count: int) -> int:
    """Add to a key's requests of a minute; returns all of them. Those of another minute are forgotten."""
    new = {"api_key_id": caller.api_key_id, "project_id": caller.project_id, "minute": minute, "count": count}
    is_same = RequestCount.minute == minute
    query = (
        _insert(session)
        .values(**new)
        .on_conflict_do_update(
            index_elements=["api_key_id"],
            set_={"minute": minute, "count": case((is_same, RequestCount.count + count), else_=count)},
        )
        .returning(RequestCount.count)
    )
    total: int = session.execute(query).scalar_one()
    return total


def find(session: Session, api_key_id: str, *, minute: int) -> int:
    """A key's requests of a minute."""
    row = session.get(RequestCount, api_key_id)
    return row.count if row is not None and row.minute == minute else 0


def _insert(session: Session) -> Any:
    is_sqlite = session.get_bind().dialect.name == "sqlite"
    return (sqlite if is_sqlite else postgresql).insert(RequestCount)
