"""Views of the training queue: who stands where, how long it will take, what waits.

A position counts the jobs that would be claimed before, if nothing ended, nothing came and all jobs fitted
all devices: those before it in its own project and, since projects take turns, as many of each other
project's as its turns allow. The wait is what it takes the present workers to come to that position, where
each job before it takes as long as the mean of the first ones of its project. Both are estimates, and are
told up to position 1,000 only, which then means "at least", so that they cost no more in a long queue. The
jobs of other projects, and that a job stands behind that position, may be a second old.
"""

import heapq
import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

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
from luthier.service.recent import Recent
from luthier.status import Kind, Queue, State
from luthier.tables import Job, Project, is_leased, is_queued

_FARTHEST = 1000
_SAMPLED = 100
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
_AT_FARTHEST = (
    select(Job.queue_key, Job.id).where(*_OWN).order_by(Job.queue_key, Job.id).offset(_FARTHEST - 1).limit(1)
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
    overview = _OVERVIEW.get(session, lambda: _read_overview(session, now))
    positions = _positions(session, project_id, queued, overview)
    waits = overview.waits(overview.mean_seconds(session, project_id), max(positions), now)
    return {
        job_id: Place(position, waits[position - 1])
        for (_, job_id), position in zip(queued, positions, strict=True)
    }


def next_position(session: Session, project_id: str, *, now: datetime) -> int:
    """Where a job that is submitted now would stand."""
    return _positions(session, project_id, [_END_OF_QUEUE], _read_overview(session, now))[0]


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


def _positions(
    session: Session, project_id: str, keys: Sequence[tuple[int, str]], overview: "_Overview"
) -> list[int]:
    """Positions for ascending keys of a project."""
    own = _counts_before(session, project_id, keys)
    others = overview.lines_beside(project_id) if own[0] + 1 < _FARTHEST else []
    return [min(_FARTHEST, count + 1 + sum(line.ahead(count + 1) for line in others)) for count in own]


def _counts_before(session: Session, project_id: str, keys: Sequence[tuple[int, str]]) -> list[int]:
    """How many jobs of the project stand before each key, counted up to the farthest position."""
    farthest = _FARTHEST_KEYS.get(session, lambda: _farthest_key(session, project_id), about=project_id)
    if farthest is not None and keys[0] > farthest:
        return [_FARTHEST] * len(keys)
    first = _bounds("low", keys[0]) | {"project": project_id}
    count: int = session.execute(_COUNT_BEFORE, first).scalar_one()
    if keys[0] == keys[-1] or count >= _FARTHEST:
        return [count] * len(keys)
    rows = session.execute(_BETWEEN, first | _bounds("high", keys[-1]))
    between = [tuple(row) for row in rows]
    return [count + bisect_left(between, key) for key in keys]


def _farthest_key(session: Session, project_id: str) -> tuple[int, str] | None:
    """The key of the last job of a project that is counted."""
    row = session.execute(_AT_FARTHEST, {"project": project_id}).one_or_none()
    return None if row is None else (row.queue_key, row.id)


_FARTHEST_KEYS: Recent[tuple[int, str] | None] = Recent()


@dataclass(frozen=True)
class _Line:
    """Another project's queue: its length, and how many turns it has before ours gets its first one."""

    length: int
    turns_first: int

    def ahead(self, turn: int) -> int:
        """Its jobs that go before our job number `turn`."""
        return max(0, min(self.length, self.turns_first + turn - 1))


def _bounds(side: str, key: tuple[int, str]) -> dict[str, Any]:
    return {f"{side}_key": key[0], f"{side}_id": key[1]}


@dataclass(frozen=True)
class _Overview:
    """The queue and those who serve it, of all projects.

    Attributes:
        leased: jobs at work, by project.
        lengths: queued jobs by project, counted up to the farthest position; only projects that have some.
        turns: whose turn is earlier among projects with as many jobs at work, by project.
        devices: workers that train.
        told: of the jobs at work, seconds that some say they have before them.
        untold: of the others, the estimate and the start.
        means: mean seconds of the first jobs of those projects that were asked for.
    """

    leased: Counter[str]
    lengths: dict[str, int]
    turns: dict[str, tuple[datetime, float, str]]
    devices: int
    told: list[float]
    untold: list[tuple[float | None, datetime | None]]
    means: dict[str, float | None] = field(default_factory=dict)

    def lines_beside(self, project_id: str) -> list[_Line]:
        """The queues of other projects, as the given one meets them."""
        own = self._rank(project_id)
        # Where another one has fewer jobs at work, it is served before it is level with ours, and so after
        # ours from then on; where it has more, the other way round; else the older turn decides.
        return [
            _Line(count, self.leased[project_id] - self.leased[id_] + (self._rank(id_) < own))
            for id_, count in self.lengths.items()
            if id_ != project_id
        ]

    def mean_seconds(self, session: Session, project_id: str) -> float | None:
        """What a job of the project is expected to take."""
        if project_id not in self.means:
            self.means[project_id] = _mean_seconds(session, project_id)
        return self.means[project_id]

    def waits(self, mean: float | None, farthest: int, now: datetime) -> list[float | None]:
        """Seconds until each position from 1 on is reached."""
        untold = [_remaining(*times, now=now, mean=mean) for times in self.untold]
        known = [*self.told, *(seconds for seconds in untold if seconds is not None)]
        at_work_count = len(self.told) + len(self.untold)
        idle = max(0, self.devices - at_work_count)
        if not self.devices or mean is None or len(known) < at_work_count:
            return [0.0 if position <= idle else None for position in range(1, farthest + 1)]
        free = [0.0] * idle + known
        heapq.heapify(free)
        return [round(_take(free, mean), 1) for _ in range(farthest)]

    def _rank(self, project_id: str) -> tuple[int, datetime, float, str]:
        turn = self.turns.get(project_id, (_LONG_AGO, math.inf, project_id))
        return (-self.leased[project_id], *turn)


def _read_overview(session: Session, now: datetime) -> _Overview:
    lines = session.execute(_LINES, {"most": _FARTHEST}).all()
    at_work = session.execute(_AT_WORK).all()
    return _Overview(
        leased=count_leased(session, Queue.TRAIN),
        lengths={id_: count for id_, _, count, _ in lines if count},
        turns={
            id_: (turn_at or _LONG_AGO, math.inf if head_key is None else head_key, id_)
            for id_, turn_at, _, head_key in lines
        },
        devices=repository.count_training_workers(session, since=now - timedelta(seconds=PRESENT_SECONDS)),
        told=[told for told, _, _ in at_work if told is not None],
        untold=[(estimated, started_at) for told, estimated, started_at in at_work if told is None],
    )


# It may be thousands of jobs.
_OVERVIEW: Recent[_Overview] = Recent()


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
