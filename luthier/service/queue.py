"""Views of the training queue: who stands where, how long it will take, what waits.

A position counts the jobs that would be claimed before, if nothing ended, nothing came and all jobs fitted
all devices: those before it in its own project and, since projects take turns, as many of each other
project's as its turns allow. The wait is what it takes the present workers to come to that position, where
each job before it takes as long as the mean of the first ones of its project. Both are estimates, and are
told up to position 1,000 only, which then means "at least", so that they cost no more in a long queue. What
runs may be a second old.
"""

import heapq
import math
import time
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from weakref import WeakKeyDictionary

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Integer,
    String,
    bindparam,
    func,
    literal,
    select,
    tuple_,
)
from sqlalchemy.orm import Session

from luthier import repository
from luthier.errors import invalid, printable
from luthier.repository import JobRow, Page
from luthier.service.estimates import PRESENT_SECONDS
from luthier.service.quotas import count_leased
from luthier.status import Kind, Queue, State
from luthier.tables import Job, Project, is_leased, is_queued

_FARTHEST = 1000
_SAMPLED = 100
_FRESH_SECONDS = 1.0
_LONG_AGO = datetime(1970, 1, 1, tzinfo=UTC)
_END_OF_QUEUE = ((1 << 63) - 1, "")


def _queued(project_id: Any) -> tuple[ColumnElement[bool], ...]:
    return (is_queued(Kind.TRAIN), Job.project_id == project_id)


def _order() -> Any:
    return tuple_(Job.queue_key, Job.id)


def _key_of(side: str) -> Any:
    return tuple_(bindparam(f"{side}_key", type_=BigInteger), bindparam(f"{side}_id", type_=String))


def _count(*conditions: ColumnElement[bool], limit: Any) -> Any:
    """How many jobs there are, up to a limit, as a column."""
    found = select(literal(1)).where(*conditions).correlate(Project).limit(limit).subquery()
    return select(func.count()).select_from(found).scalar_subquery()


# Built once: to build them costs several times what it takes to run them.
_OWN = _queued(bindparam("project"))
_COUNT_BEFORE = select(_count(*_OWN, _order() < _key_of("low"), limit=_FARTHEST))
_BETWEEN = (
    select(Job.queue_key, Job.id)
    .where(*_OWN, _order() >= _key_of("low"), _order() < _key_of("high"))
    .order_by(Job.queue_key, Job.id)
    .limit(_FARTHEST)
)
_LINES = select(
    Project.id,
    Project.train_turn_at,
    _count(*_queued(Project.id), limit=bindparam("most", type_=Integer)),
    select(Job.queue_key)
    .where(*_queued(Project.id))
    .correlate(Project)
    .order_by(Job.queue_key)
    .limit(1)
    .scalar_subquery(),
)
_FIRST_SECONDS = select(Job.estimated_seconds).where(*_OWN).order_by(Job.queue_key, Job.id).limit(_SAMPLED)
_AT_WORK = select(Job.progress["seconds_remaining"].as_float(), Job.estimated_seconds, Job.started_at).where(
    is_leased(), Job.queue == str(Queue.TRAIN)
)


@dataclass(frozen=True)
class Place:
    """Where a job stands: 1 is the next one. `wait_seconds` is None where nobody can tell."""

    position: int
    wait_seconds: float | None


def places(session: Session, jobs: Iterable[Job | JobRow], *, now: datetime) -> dict[str, Place]:
    """The places of those training jobs of one project that are queued, by id."""
    waiting = [job for job in jobs if job.state == State.QUEUED]
    if not waiting:
        return {}
    project_id = waiting[0].project_id
    queued = sorted((job.queue_key, job.id) for job in waiting)
    positions = _positions(session, project_id, queued)
    waits = _waits(session, project_id, max(positions), now)
    return {
        job_id: Place(position, waits[position - 1])
        for (_, job_id), position in zip(queued, positions, strict=True)
    }


def next_position(session: Session, project_id: str) -> int:
    """Where a job that is submitted now would stand."""
    return _positions(session, project_id, [_END_OF_QUEUE])[0]


def list_queue(session: Session, project_id: str, *, after: str | None, limit: int) -> Page[Job]:
    """Training jobs of a project that are queued, the next one first.

    A page may go on from a job that was claimed meanwhile: it keeps its key.

    Raises:
        LuthierError: `invalid_value`, where `after` is no training job of the project.
    """
    query = select(Job).where(*_queued(project_id))
    if after is not None:
        cursor = repository.find_job(session, after)
        if cursor is None or cursor.project_id != project_id or cursor.kind != Kind.TRAIN:
            raise invalid(f"'after' names no job of this list: {printable(after)}", "after")
        query = query.where(_order() > tuple_(literal(cursor.queue_key), literal(cursor.id)))
    rows = session.scalars(query.order_by(Job.queue_key, Job.id).limit(limit + 1)).all()
    return Page(rows[:limit], len(rows) > limit)


def _positions(session: Session, project_id: str, keys: Sequence[tuple[int, str]]) -> list[int]:
    """Positions for ascending keys of a project."""
    own = _counts_before(session, project_id, keys)
    near = [count + 1 for count in own if count + 1 < _FARTHEST]
    others = _other_lines(session, project_id, near[-1]) if near else []
    return [min(_FARTHEST, count + 1 + sum(line.ahead(count + 1) for line in others)) for count in own]


def _counts_before(session: Session, project_id: str, keys: Sequence[tuple[int, str]]) -> list[int]:
    """How many jobs of the project stand before each key, counted up to the farthest position."""
    first = _bounds("low", keys[0]) | {"project": project_id}
    count: int = session.execute(_COUNT_BEFORE, first).scalar_one()
    if keys[0] == keys[-1] or count >= _FARTHEST:
        return [count] * len(keys)
    rows = session.execute(_BETWEEN, first | _bounds("high", keys[-1]))
    between = [tuple(row) for row in rows]
    return [count + bisect_left(between, key) for key in keys]


@dataclass(frozen=True)
class _Line:
    """Another project's queue: its length, and how many turns it has before ours gets its first one."""

    length: int
    turns_first: int

    def ahead(self, turn: int) -> int:
        """Its jobs that go before our job number `turn`."""
        return max(0, min(self.length, self.turns_first + turn - 1))


def _other_lines(session: Session, project_id: str, farthest: int) -> list[_Line]:
    leased = count_leased(session, Queue.TRAIN)
    most = min(_FARTHEST, leased[project_id] + farthest)
    lengths: dict[str, int] = {}
    turns: dict[str, tuple[int, datetime, float, str]] = {}
    for id_, turn_at, count, head_key in session.execute(_LINES, {"most": most}):
        lengths[id_] = count
        head_or_last = math.inf if head_key is None else head_key
        turns[id_] = (-leased[id_], turn_at or _LONG_AGO, head_or_last, id_)
    # Where another one has fewer jobs at work, it is served before it is level with ours, and so after ours
    # from then on; where it has more, the other way round; else the older turn decides.
    return [
        _Line(count, leased[project_id] - leased[id_] + (turns[id_] < turns[project_id]))
        for id_, count in lengths.items()
        if id_ != project_id and count
    ]


def _bounds(side: str, key: tuple[int, str]) -> dict[str, Any]:
    return {f"{side}_key": key[0], f"{side}_id": key[1]}


def _waits(session: Session, project_id: str, farthest: int, now: datetime) -> list[float | None]:
    """Seconds until each position from 1 on is reached."""
    since = now - timedelta(seconds=PRESENT_SECONDS)
    devices = repository.count_training_workers(session, since=since)
    mean = _mean_seconds(session, project_id)
    at_work = _at_work(session)
    untold = [_remaining(*times, now=now, mean=mean) for times in at_work.untold]
    known = [*at_work.told, *(seconds for seconds in untold if seconds is not None)]
    idle = max(0, devices - at_work.count)
    if not devices or mean is None or len(known) < at_work.count:
        return [0.0 if position <= idle else None for position in range(1, farthest + 1)]
    free = [0.0] * idle + known
    heapq.heapify(free)
    return [round(_take(free, mean), 1) for _ in range(farthest)]


@dataclass(frozen=True)
class _AtWork:
    """The training jobs that run, as they were read at a monotonic time.

    Attributes:
        told: seconds that some say they have before them.
        untold: of the others, the estimate and the start.
    """

    read_at: float
    told: list[float]
    untold: list[tuple[float | None, datetime | None]]

    @property
    def count(self) -> int:
        return len(self.told) + len(self.untold)


_last_at_work: WeakKeyDictionary[object, _AtWork] = WeakKeyDictionary()


def _at_work(session: Session) -> _AtWork:
    """What runs, of all projects; read once a second and process, since there may be thousands."""
    engine, now = session.get_bind(), time.monotonic()
    known = _last_at_work.get(engine)
    if known is not None and now - known.read_at < _FRESH_SECONDS:
        return known
    rows = session.execute(_AT_WORK).all()
    told = [told for told, _, _ in rows if told is not None]
    untold = [(estimated, started_at) for told, estimated, started_at in rows if told is None]
    found = _last_at_work[engine] = _AtWork(now, told, untold)
    return found


def _take(free: list[float], seconds: float) -> float:
    """When a device is free next; it is then busy for some seconds."""
    at = free[0]
    heapq.heapreplace(free, at + seconds)
    return at


def _mean_seconds(session: Session, project_id: str) -> float | None:
    found = session.scalars(_FIRST_SECONDS, {"project": project_id})
    times = [seconds for seconds in found if seconds is not None]
    return sum(times) / len(times) if times else None


def _remaining(
    estimated: float | None,
    started_at: datetime | None,
    *,
    now: datetime,
    mean: float | None,
) -> float | None:
    """Seconds that a running job has before it, as was estimated."""
    whole = mean if estimated is None else estimated
    return None if whole is None else max(0.0, whole - (now - (started_at or now)).total_seconds())
