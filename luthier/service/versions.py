"""Which version of a job somebody has seen: what `ETag`, `If-None-Match` and `If-Match` are made of.

It is taken from a few columns, without building what is shown. Its first part changes with what an owner
can change, so that a write based on an old look is noticed also while the job trains on; the second with all
else.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, cast

from sqlalchemy import Connection, Row, Table, Text, bindparam, select
from sqlalchemy import cast as sql_cast
from sqlalchemy.orm import Session

from luthier import __version__
from luthier.errors import LuthierError, not_found
from luthier.repository import JobRow
from luthier.status import Kind
from luthier.tables import Job

_TABLE = cast(Table, Job.__table__)
_OF_OWNER = ("name", "user_metadata_text", "priority", "queue_key")
# Whatever has no column here changes only together with one that has: an event takes a number.
_OF_RUN = (
    "state",
    "phase",
    "next_number",
    "step",
    "total_steps",
    "run_count",
    "not_before",
    "blocked_on",
    "finished_at",
    "progress_text",
)
_COLUMNS = {column.name: column for column in _TABLE.c} | {
    f"{name}_text": sql_cast(_TABLE.c[name], Text).label(f"{name}_text")
    for name in ("user_metadata", "progress")
}
_IS_SHOWN = (_TABLE.c.kind == str(Kind.TRAIN), _TABLE.c.deleted_at.is_(None))
_OF_ONE = (_TABLE.c.id == bindparam("job_id"), _TABLE.c.project_id == bindparam("project_id"), *_IS_SHOWN)
_OF_MANY = (_TABLE.c.id.in_(bindparam("job_ids", expanding=True)), *_IS_SHOWN)
# Built once: to build a statement costs more than to run this one. And about the table: to make an object of
# the row costs several times as much again.
_VERSION = select(*(_COLUMNS[name] for name in ("id", "project_id", *_OF_OWNER, *_OF_RUN)))
_ALL = select(*_COLUMNS.values())
_VERSION_OF_ONE, _VERSIONS_OF_MANY = _VERSION.where(*_OF_ONE), _VERSION.where(*_OF_MANY)
_ALL_OF_ONE, _ALL_OF_MANY = _ALL.where(*_OF_ONE), _ALL.where(*_OF_MANY)

Asked = tuple[str, str]
"""A project, and a job of it."""


@dataclass(frozen=True)
class Version:
    """Two hashes, and the state that the job is in."""

    of_owner: str
    of_run: str
    state: str


def get_version(session: Session, project_id: str, job_id: str) -> Version:
    """The version of a training job.

    Raises:
        LuthierError: `fine_tune_not_found`, also for a job of somebody else.
    """
    return _version_of(_get(session, _VERSION_OF_ONE, project_id, job_id))


def get_versioned(session: Session, project_id: str, job_id: str) -> tuple[JobRow, Version]:
    """A training job as a row, to be shown and not to be changed, and the version that it is.

    Raises:
        LuthierError: `fine_tune_not_found`, also for a job of somebody else.
    """
    row = _get(session, _ALL_OF_ONE, project_id, job_id)
    return row, _version_of(row)


def find_versions(connection: Connection, asked: Iterable[Asked]) -> dict[Asked, Version]:
    """The versions of those training jobs that there are."""
    return {key: _version_of(row) for key, row in _find(connection, _VERSIONS_OF_MANY, asked)}


def find_versioned(connection: Connection, asked: Iterable[Asked]) -> dict[Asked, tuple[JobRow, Version]]:
    """The same, with their rows."""
    return {key: (row, _version_of(row)) for key, row in _find(connection, _ALL_OF_MANY, asked)}


def unknown(job_id: str) -> LuthierError:
    """That there is no such job, or that it is somebody else's."""
    return not_found("fine-tuning job", job_id, "fine_tune_not_found", "fine_tune_id")


def _get(session: Session, query: Any, project_id: str, job_id: str) -> Row[Any]:
    row = session.execute(query, {"job_id": job_id, "project_id": project_id}).one_or_none()
    if row is None:
        raise unknown(job_id)
    return row


def _find(connection: Connection, query: Any, asked: Iterable[Asked]) -> Iterator[tuple[Asked, Row[Any]]]:
    """One job may be asked for in the name of several projects: it is one's."""
    wanted = set(asked)
    for row in connection.execute(query, {"job_ids": list({job_id for _, job_id in wanted})}):
        if (key := (row.project_id, row.id)) in wanted:
            yield key, row


def _version_of(row: Row[Any]) -> Version:
    run = _values(row, _OF_RUN)
    return Version(_hash(_values(row, _OF_OWNER)), _hash((__version__, *run)), run[0])


def _values(row: Row[Any], names: Sequence[str]) -> tuple[Any, ...]:
    return tuple(getattr(row, name) for name in names)


def _hash(values: Any) -> str:
    return blake2b(repr(values).encode(), digest_size=8).hexdigest()
