"""Sums over all jobs, for `/metrics`, that cost the same however many have ended.

What has ended never changes. A process adds it up once, keeps the sums, and from then on reads only the jobs
that have not ended and those that ended since; the first reading looks at all of them. A job that was deleted
keeps its row, so that no counter shrinks.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from operator import add
from threading import Lock
from typing import Any

from sqlalchemy import ColumnElement, Select, and_, case, extract, func, select, true
from sqlalchemy.orm import Session

from luthier.status import FINAL, LIVE, Kind, State
from luthier.tables import Job, Metric, in_state

# No transaction that ends a job takes longer to become visible.
_SETTLED = timedelta(minutes=10)
_METHOD = Job.request[("qlora", "method")].as_string()
_KEYS = (
    Job.kind,
    Job.queue,
    Job.work_key.is_not(None),
    _METHOD,
    Job.state,
    Job.error_code,
    Job.result["valid"].as_boolean(),
)


@dataclass(frozen=True)
class Group:
    """Jobs that are counted together; `is_valid` is what a validation found."""

    kind: str
    queue: str
    is_errand: bool
    method: str | None
    state: str
    error_code: str | None
    is_valid: bool | None


@dataclass(frozen=True)
class JobCount:
    """How many training jobs there are of one kind."""

    state: State
    method: str
    error_code: str | None
    count: int


@dataclass(frozen=True)
class Durations:
    """A histogram: `counts[i]` durations of at most the i-th bound; the last one counts all."""

    labels: tuple[str, ...]
    counts: tuple[int, ...]
    sum_seconds: float


@dataclass(frozen=True)
class Trained:
    """Tokens of ended jobs and steps of all jobs of a method; neither ever shrinks."""

    method: str
    tokens: int
    steps: int


@dataclass(frozen=True)
class Sums:
    """The sums at one time: how many, two histograms (each its counts and its seconds), tokens and steps."""

    groups: dict[Group, tuple[float, ...]]
    width: int

    def counts(self) -> list[JobCount]:
        """Training jobs of all projects by state, method and reason."""
        found: Counter[tuple[str, str | None, str | None]] = Counter()
        for group, numbers in self._training():
            found[group.state, group.method, group.error_code] += int(numbers[0])
        return [
            JobCount(State(state), method or "", code, count)
            for (state, method, code), count in found.items()
        ]

    def queue_waits(self) -> list[Durations]:
        """From when a job could be claimed to its first claim, by queue."""
        return self._durations(1, (((group.queue,), numbers) for group, numbers in self.groups.items()))

    def run_times(self) -> list[Durations]:
        """From the first claim to the end of training jobs, by method and state."""
        labelled = (((group.method or "", group.state), numbers) for group, numbers in self._training())
        return self._durations(1 + self.width, labelled)

    def trained(self) -> list[Trained]:
        """What has been trained in all, by method."""
        tokens: Counter[str] = Counter()
        steps: Counter[str] = Counter()
        for group, numbers in self._training():
            tokens[group.method or ""] += int(numbers[-2])
            steps[group.method or ""] += int(numbers[-1])
        return [Trained(method, tokens[method], steps[method]) for method in tokens]

    def validations(self) -> dict[str, int]:
        """Ended validations of large files by result: valid, invalid, failed."""
        found: Counter[str] = Counter()
        for group, numbers in self.groups.items():
            if group.kind == Kind.VALIDATE and not group.is_errand and State(group.state) in FINAL:
                result = "valid" if group.is_valid else "invalid"
                found["failed" if group.state != State.SUCCEEDED else result] += int(numbers[0])
        return dict(found)

    def _training(self) -> list[tuple[Group, tuple[float, ...]]]:
        return [item for item in self.groups.items() if item[0].kind == Kind.TRAIN]

    def _durations(
        self, start: int, labelled: Iterable[tuple[tuple[str, ...], tuple[float, ...]]]
    ) -> list[Durations]:
        """Histograms that stand in the numbers from `start` on; none where nothing was counted."""
        found: dict[tuple[str, ...], tuple[float, ...]] = {}
        for labels, numbers in labelled:
            part = numbers[start : start + self.width]
            found[labels] = tuple(map(add, found.get(labels, (0.0,) * self.width), part))
        return [
            Durations(labels, tuple(map(int, numbers[:-1])), numbers[-1])
            for labels, numbers in found.items()
            if numbers[-2]
        ]


class JobSums:
    """The sums of one process; `bounds` of both histograms in seconds, ascending."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._width = len(bounds) + 2
        self._settled: dict[Group, tuple[float, ...]] = {}
        self._until: datetime | None = None
        self._lock = Lock()

    def read(self, session: Session, *, now: datetime) -> Sums:
        """The sums of now."""
        with self._lock:
            self._settle(session, now - _SETTLED)
            settled, since = self._settled, self._until
        # In one statement, since a job that ends between two would be missed, and a counter shrink.
        live = self._query(session, in_state(*LIVE))
        query = live.union_all(self._query(session, Job.finished_at >= since))
        return Sums(_added(settled, session.execute(query)), self._width)

    def _settle(self, session: Session, until: datetime) -> None:
        """Take what ended up to a time into what is kept."""
        if self._until is not None and until <= self._until:
            # Somebody who asked later was faster, or the database's clock was set back.
            return
        since = true() if self._until is None else Job.finished_at >= self._until
        query = self._query(session, and_(Job.finished_at < until, since))
        self._settled = _added(self._settled, session.execute(query))
        self._until = until

    def _query(self, session: Session, condition: ColumnElement[bool]) -> Select[Any]:
        claimable_at = func.coalesce(Job.prepared_at, Job.created_at)
        is_training = Job.kind == Kind.TRAIN
        steps = select(func.max(Metric.step)).where(Metric.job_id == Job.id, is_training).scalar_subquery()
        reported = func.coalesce(Job.trained_tokens, Job.progress["trained_tokens"].as_integer(), 0)
        tokens = case((and_(is_training, Job.state.in_(FINAL)), reported), else_=0)
        return (
            select(
                *_KEYS,
                func.count(),
                *self._histogram(_seconds_between(session, claimable_at, Job.started_at)),
                *self._histogram(_seconds_between(session, Job.started_at, Job.finished_at)),
                func.sum(tokens),
                func.sum(func.coalesce(steps, Job.step)),
            )
            .where(condition)
            .group_by(*_KEYS)
        )

    def _histogram(self, seconds: ColumnElement[Any]) -> list[ColumnElement[Any]]:
        counts = [func.count().filter(seconds <= bound) for bound in self._bounds]
        return [*counts, func.count(seconds), func.coalesce(func.sum(seconds), 0.0)]


def _added(sums: dict[Group, tuple[float, ...]], rows: Iterable[Any]) -> dict[Group, tuple[float, ...]]:
    total = dict(sums)
    for row in rows:
        group, numbers = Group(*row[: len(_KEYS)]), tuple(map(float, row[len(_KEYS) :]))
        total[group] = tuple(map(add, total[group], numbers)) if group in total else numbers
    return total


def _seconds_between(session: Session, start: Any, end: Any) -> ColumnElement[Any]:
    if session.get_bind().dialect.name == "sqlite":
        return (func.julianday(end) - func.julianday(start)) * 86400.0
    return extract("epoch", end - start)
