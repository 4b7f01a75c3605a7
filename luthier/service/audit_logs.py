"""The audit log as it is read, and how its oldest lines go; `luthier.audit` writes it."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from sqlalchemy import ColumnElement, select
from sqlalchemy.orm import Session

from luthier.errors import invalid, printable
from luthier.repository import Page, list_owned
from luthier.tables import AuditLog

_NAME = re.compile(r"(effective_at)\[(gte?|lte?)\]|(event_types|actor_ids|project_ids|resource_ids)(?:\[\])?")
_LATEST_SECONDS = 253_402_300_799
_COLUMNS = {
    "event_types": AuditLog.type,
    "actor_ids": AuditLog.api_key_id,
    "project_ids": AuditLog.project_id,
    "resource_ids": AuditLog.resource_id,
}


@dataclass(frozen=True)
class AuditFilter:
    """Conditions that lines of the log have to fulfil."""

    conditions: tuple[ColumnElement[bool], ...] = ()

    @classmethod
    def of(cls, pairs: Iterable[tuple[str, str]]) -> "AuditFilter":
        """What a query of OpenAI's form asks for; other names are passed over.

        Raises:
            LuthierError: `invalid_value`, for a time that is no number.
        """
        wanted: dict[str, list[str]] = {}
        conditions = []
        for name, value in pairs:
            match = _NAME.fullmatch(name)
            if match is None:
                continue
            if match[1]:
                conditions.append(_compared(match[2], _time(value, name)))
            else:
                wanted.setdefault(match[3], []).append(value)
        conditions += [_COLUMNS[name].in_(values) for name, values in wanted.items()]
        return cls(tuple(conditions))


def list_logs(
    session: Session,
    organization_id: str,
    wanted: AuditFilter,
    *,
    after: str | None,
    before: str | None,
    limit: int,
) -> Page[AuditLog]:
    """Lines of an organisation's log, newest first."""
    conditions = (AuditLog.organization_id == organization_id, *wanted.conditions)
    return list_owned(session, AuditLog, *conditions, after=after, before=before, limit=limit)


def forget_old(session: Session, *, older_than: timedelta, limit: int, now: datetime) -> int:
    """Forget lines that nobody has to keep any more; returns how many."""
    query = select(AuditLog).where(AuditLog.created_at < now - older_than).order_by(AuditLog.created_at)
    found = session.scalars(query.limit(limit).with_for_update(skip_locked=True)).all()
    for line in found:
        session.delete(line)
    return len(found)


def _compared(operator: str, at: datetime) -> ColumnElement[bool]:
    # Times are shown in whole seconds, and meant so.
    until = at + timedelta(seconds=1)
    return {
        "gt": AuditLog.created_at >= until,
        "gte": AuditLog.created_at >= at,
        "lt": AuditLog.created_at < at,
        "lte": AuditLog.created_at < until,
    }[operator]


def _time(text: str, name: str) -> datetime:
    if not text.isdecimal() or len(text) > 12 or int(text) >= _LATEST_SECONDS:
        raise invalid(f"Invalid value for {name!r}: {printable(text)}. Give Unix seconds", name)
    return datetime.fromtimestamp(int(text), UTC)
