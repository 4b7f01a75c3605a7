"""The audit log: who changed what, written in the transaction of the change and by nobody who changes it.

A flush that adds, changes or removes a row which people care for adds a line, where somebody acts
(`acting_as`): a caller of the API, or a person on the server's command line. Workers and the dispatcher act
for nobody, and write none. As with `luthier.accounts`, statements that go around the session's objects are
not seen. Tables and columns are named by their names, so that nothing has to be imported.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, cast

from sqlalchemy import Table, event, func, insert, inspect
from sqlalchemy.orm import Session, sessionmaker

from luthier.ids import new_id
from luthier.inserting import insert_values
from luthier.status import DesiredState, Kind
from luthier.tables import AuditLog, Base


@dataclass(frozen=True)
class Actor:
    """Who acts, and by which request.

    Attributes:
        api_key_id: the key that was shown; None for who has none.
        name: of a person without a key.
        address: where the request came from.
    """

    organization_id: str
    api_key_id: str | None = None
    name: str | None = None
    request_id: str | None = None
    address: str | None = None


# What is watched: the noun of the log, and the columns of which a change counts, each with its verb.
_UPDATED = "updated"
_WATCHED: dict[str, tuple[str, dict[str, str]]] = {
    "jobs": (
        "job",
        {"deleted_at": "deleted", "model_deleted_at": "model_deleted"}
        | dict.fromkeys(("name", "user_metadata", "priority", "queue_key"), _UPDATED),
    ),
    "files": ("file", dict.fromkeys(("dataset_name", "dataset_entry"), _UPDATED)),
    "uploads": ("upload", {"status": _UPDATED}),
    "checkpoints": ("checkpoint", {}),
    "checkpoint_permissions": ("checkpoint.permission", {}),
    "projects": ("project", {"archived_at": "archived", "name": _UPDATED, "quotas": _UPDATED}),
    "api_keys": (
        "api_key",
        {"revoked_at": "deleted", "rotated_to": "rotated"}
        | dict.fromkeys(("name", "scopes", "expires_at", "requests_per_minute"), _UPDATED),
    ),
    "secrets": ("secret", {"sealed": _UPDATED}),
    "webhook_endpoints": (
        "webhook_endpoint",
        dict.fromkeys(("name", "url", "event_types", "secret", "disabled_at"), _UPDATED),
    ),
}
_WISHES = {
    DesiredState.CANCEL: "job.cancelled",
    DesiredState.PAUSE: "job.paused",
    DesiredState.RUN: "job.resumed",
}
# About the table, and made once: it goes with every change.
_INSERT = insert(cast(Table, AuditLog.__table__))
_INSERT_BY_CLOCK = _INSERT.values(created_at=func.clock_timestamp())
_SEEN = "audited"
_actor: ContextVar[Actor | None] = ContextVar("actor", default=None)


@contextmanager
def acting_as(actor: Actor) -> Iterator[None]:
    """Put what is changed within the block down to somebody, also in the threads that it waits for."""
    token = _actor.set(actor)
    try:
        yield
    finally:
        _actor.reset(token)


def keep_log(sessions: sessionmaker[Session]) -> None:
    """Have all sessions of a maker write the log."""
    event.listen(sessions, "after_flush", _log_changes)


def current_actor() -> Actor | None:
    """To whom changes are put down here and now."""
    return _actor.get()


def log_new(session: Session, rows: Iterable[tuple[Any, Actor | None]]) -> None:
    """Add the lines of new rows that no flush has brought, each with who made it."""
    made = [(row, actor) for row, actor in rows if actor is not None]
    _seen(session).update((row.id, _created(row)) for row, _ in made)
    _insert(session, [_line(actor, row, _created(row)) for row, actor in made])


def _seen(session: Session) -> set[tuple[str, str]]:
    """Of one transaction's changes to a thing each kind is told once, and none beside its creation."""
    seen: set[tuple[str, str]] = session.info.setdefault(_SEEN, set())
    return seen


def _log_changes(session: Session, _context: object) -> None:
    actor = _actor.get()
    if actor is None:
        return
    seen = _seen(session)
    for row, kind in _changes(session):
        if not seen & {(row.id, kind), (row.id, _created(row))}:
            seen.add((row.id, kind))
            _insert(session, [_line(actor, row, kind)])


def _changes(session: Session) -> Iterator[tuple[Any, str]]:
    """Rows that are watched, each with what became of it."""
    for row in session.new:
        if _is_watched(row):
            yield row, _created(row)
    for row in session.deleted:
        if _is_watched(row):
            yield row, f"{_noun(row)}.deleted"
    for row in session.dirty:
        if _is_watched(row) and (kind := _change(row)) is not None:
            yield row, kind


def _is_watched(row: Any) -> bool:
    return row.__tablename__ in _WATCHED and getattr(row, "kind", Kind.TRAIN) == Kind.TRAIN


def _change(row: Any) -> str | None:
    """What was done to a row, by the columns that have changed; the one that tells most goes first."""
    noun, verbs = _WATCHED[row.__tablename__]
    attributes = inspect(row).attrs
    if row.__tablename__ == "jobs" and attributes.desired_state.history.has_changes():
        return _WISHES[DesiredState(row.desired_state)]
    for column, verb in verbs.items():
        if column in attributes and attributes[column].history.has_changes():
            return f"{noun}.{verb}"
    return None


def _noun(row: Base) -> str:
    return _WATCHED[row.__tablename__][0]


def _created(row: Base) -> str:
    return f"{_noun(row)}.created"


def _insert(session: Session, lines: Sequence[dict[str, Any]]) -> None:
    """By the database's time, without asking for it first."""
    if session.get_bind().dialect.name == "sqlite":
        lines = [line | {"created_at": datetime.now(UTC)} for line in lines]
        insert_values(session, _INSERT, lines)
    else:
        insert_values(session, _INSERT_BY_CLOCK, lines)


def _line(actor: Actor, row: Any, kind: str) -> dict[str, Any]:
    is_project = row.__tablename__ == "projects"
    return {
        "id": new_id("audit_log"),
        "project_id": row.id if is_project else row.project_id,
        "type": kind,
        "resource_id": row.id,
        "organization_id": actor.organization_id,
        "api_key_id": actor.api_key_id,
        "actor_name": actor.name,
        "request_id": actor.request_id,
        "address": actor.address,
    }
