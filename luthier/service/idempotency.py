"""POSTs that may come twice and shall make one thing: the first one's key leads the others to what it made.

A key is taken in the transaction that makes the thing. Who brings the same key meanwhile waits in the
database for the end of that transaction, so that of any number at once one makes it.
"""

import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from luthier.errors import LuthierError, invalid
from luthier.tables import IdempotencyKey

KEPT_SECONDS = 24 * 3600
# A client that sends a request again by itself does so within its own time limits, twice at most.
RESENT_SECONDS = 20 * 60
_FORM = re.compile(r"[\x21-\x7e]{1,255}")


@dataclass(frozen=True)
class Mark:
    """What tells a request apart.

    Attributes:
        key: of the client's choice or, with a blank in it, made of the request.
        request_sha256: of method, path and body.
        is_first: the client says that it sends this for the first time, whatever was sent before.
    """

    key: str
    request_sha256: str
    kept_seconds: int = KEPT_SECONDS
    is_first: bool = False


def check_key(key: str) -> str:
    """The key itself, when it has the form of one.

    Raises:
        LuthierError: `invalid_value`.
    """
    if not _FORM.fullmatch(key):
        text = "Invalid Idempotency-Key: send 1 to 255 visible ASCII characters, such as a UUID"
        raise invalid(text, "Idempotency-Key")
    return key


def find(session: Session, project_id: str, mark: Mark, *, now: datetime) -> str | None:
    """Id of what was made under the key; None where nothing was, or too long ago.

    Raises:
        LuthierError: `idempotency_key_reused`, where the request was another one.
    """
    row = session.get(IdempotencyKey, (project_id, mark.key), populate_existing=True)
    if row is None or row.expires_at <= now or mark.is_first:
        return None
    if row.request_sha256 != mark.request_sha256:
        raise LuthierError(
            "This Idempotency-Key came before with another request: use a new key for a new request",
            "idempotency_key_reused",
            "Idempotency-Key",
        )
    return row.object_id


def take(session: Session, project_id: str, mark: Mark, *, object_id: str, now: datetime) -> str | None:
    """Note what is about to be made under a key, unless there is something: then its id.

    Raises:
        LuthierError: as `find`.
    """
    values = {
        "request_sha256": mark.request_sha256,
        "object_id": object_id,
        "created_at": now,
        "expires_at": now + timedelta(seconds=mark.kept_seconds),
    }
    # The update's condition is false while the key stands, so that it then changes nothing.
    may_replace = None if mark.is_first else IdempotencyKey.expires_at <= now
    query = (
        _insert(session)
        .values(project_id=project_id, key=mark.key, **values)
        .on_conflict_do_update(index_elements=["project_id", "key"], set_=values, where=may_replace)
        .returning(IdempotencyKey.object_id)
    )
    if session.execute(query).scalar_one_or_none() is not None:
        return None
    return find(session, project_id, mark, now=now)


def forget_old(session: Session, *, limit: int, now: datetime) -> int:
    """Forget keys of requests that nobody repeats any more; returns how many."""
    query = select(IdempotencyKey).where(IdempotencyKey.expires_at <= now)
    query = query.order_by(IdempotencyKey.expires_at).limit(limit)
    found = session.scalars(query.with_for_update(skip_locked=True)).all()
    for key in found:
        session.delete(key)
    return len(found)


def _insert(session: Session) -> Any:
    is_sqlite = session.get_bind().dialect.name == "sqlite"
    return (sqlite if is_sqlite else postgresql).insert(IdempotencyKey)
