"""One look at the database for all who read: what is new goes into a backlog a job, or a project.

A process has one. It looks every `watch_seconds` while anybody reads, in one thread of the pool, and wakes
the readers in the event loop: they cost neither threads nor queries of their own. `close` ends all streams,
so that a server can stop.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import structlog
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from api.streams.backlog import Backlog
from api.streams.frames import done_frame, event_frames, status_frame
from luthier import repository
from luthier.database import clock
from luthier.installation import Installation
from luthier.service import feed
from luthier.status import FINAL, State

KEPT_EVENTS = 1000
_KEPT_CHANGES = 4096
# No transaction that ends a job takes longer to become visible.
_SETTLED = timedelta(seconds=30)

log = structlog.get_logger()


@dataclass
class Feed:
    """What is known of one job or project.

    Attributes:
        current: how it stands: one frame for a job, one for each job of a project, by id.
        number: of the last event that is in the backlog; None before the first look.
        done: the last frame, once the job has ended and all its events are in the backlog.
        is_gone: the job is not there any more.
    """

    backlog: Backlog
    current: dict[str, bytes] = field(default_factory=dict)
    number: int | None = None
    looked_at: datetime | None = None
    done: bytes | None = None
    is_gone: bool = False
    readers: int = 0

    @property
    def is_ready(self) -> bool:
        return self.number is not None or self.is_gone

    @property
    def is_over(self) -> bool:
        return self.done is not None or self.is_gone


@dataclass(frozen=True)
class _Known:
    """What was known of a project when a look began."""

    looked_at: datetime | None
    current: Mapping[str, bytes]


@dataclass(frozen=True)
class _News:
    """What a look has found of one feed."""

    frames: Sequence[tuple[int, bytes]]
    current: Mapping[str, bytes]
    number: int = 0
    begins_after: int = 0
    looked_at: datetime | None = None
    done: bytes | None = None


class Broadcast:
    """The feeds of a process.

    Attributes:
        keep_alive_seconds: a silent stream gets a comment after this time.
        longest_seconds: a stream ends after this time; its client connects again, and its key is looked at
            anew.
    """

    def __init__(
        self, installation: Installation, *, keep_alive_seconds: float = 15.0, longest_seconds: float = 900.0
    ) -> None:
        self._database = installation.database
        self.every_seconds = installation.settings.watch_seconds
        self.keep_alive_seconds, self.longest_seconds = keep_alive_seconds, longest_seconds
        self.is_closed = False
        self.look_count = 0
        self._jobs: dict[str, Feed] = {}
        self._projects: dict[str, Feed] = {}
        self._looker: asyncio.Task[None] | None = None
        self._hurry = asyncio.Event()

    @asynccontextmanager
    async def job(self, job_id: str) -> AsyncIterator[Feed]:
        """The feed of a job, which is looked after for the time of the block."""
        async with self._reading(self._jobs, job_id, KEPT_EVENTS) as found:
            yield found

    @asynccontextmanager
    async def project(self, project_id: str) -> AsyncIterator[Feed]:
        """The feed of all jobs of a project."""
        async with self._reading(self._projects, project_id, _KEPT_CHANGES) as found:
            yield found

    def close(self) -> None:
        """End all streams, now and from now on."""
        self.is_closed = True
        for found in (*self._jobs.values(), *self._projects.values()):
            found.backlog.wake()
        self._hurry.set()

    @asynccontextmanager
    async def _reading(self, feeds: dict[str, Feed], key: str, most: int) -> AsyncIterator[Feed]:
        found = feeds.setdefault(key, Feed(Backlog(most)))
        found.readers += 1
        if not found.is_ready:
            self._hurry.set()
        if self._looker is None or self._looker.done():
            self._looker = asyncio.create_task(self._look_on())
        try:
            yield found
        finally:
            found.readers -= 1
            if not found.readers:
                del feeds[key]

    async def _look_on(self) -> None:
        while (self._jobs or self._projects) and not self.is_closed:
            self._hurry.clear()
            jobs = {job_id: found.number for job_id, found in self._jobs.items() if not found.is_over}
            projects = {key: _Known(found.looked_at, found.current) for key, found in self._projects.items()}
            try:
                news = await run_in_threadpool(self._look, jobs, projects)
            except DBAPIError as error:
                log.warning("stream_look_failed", reason=str(error.orig))
            except Exception:
                # Readers wait for this task alone: it must not end before they do.
                log.exception("stream_look_failed")
            else:
                self._publish(jobs, projects, news)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._hurry.wait(), self.every_seconds)

    def _look(self, jobs: Mapping[str, int | None], projects: Mapping[str, _Known]) -> dict[str, _News]:
        """What is new; runs in a thread."""
        self.look_count += 1
        found: dict[str, _News] = {}
        with self._database.reading() as session:
            for head in feed.find_heads(session, jobs):
                found[head.id] = _news_of_job(session, head, jobs[head.id])
            for project_id, known in projects.items():
                found[project_id] = _news_of_project(session, project_id, known)
        return found

    def _publish(
        self, jobs: Mapping[str, int | None], projects: Mapping[str, _Known], news: Mapping[str, _News]
    ) -> None:
        """Put what was found where readers find it; a feed that began anew meanwhile is looked at again."""
        for job_id, number in jobs.items():
            found = self._jobs.get(job_id)
            if found is not None and found.number == number:
                _tell(found, news.get(job_id))
        for project_id, known in projects.items():
            found = self._projects.get(project_id)
            if found is not None and found.looked_at == known.looked_at:
                _tell(found, news[project_id])


def _news_of_job(session: Session, head: feed.Head, known: int | None) -> _News:
    last = head.next_number - 1
    begins_after = max(known or 0, last - KEPT_EVENTS)
    count = last - begins_after
    rows = repository.list_events_after(session, head.id, after=begins_after, limit=count) if count else ()
    return _News(
        frames=event_frames(rows),
        current={head.id: status_frame(head)},
        number=last,
        begins_after=begins_after,
        done=done_frame(head) if State(head.state) in FINAL else None,
    )


def _news_of_project(session: Session, project_id: str, known: _Known) -> _News:
    now = clock(session)
    heads = feed.list_heads(session, project_id, ended_since=(known.looked_at or now) - _SETTLED)
    current = {head.id: status_frame(head) for head in heads}
    changed = [(0, data) for job_id, data in current.items() if known.current.get(job_id) != data]
    return _News(frames=[] if known.looked_at is None else changed, current=current, looked_at=now)


def _tell(found: Feed, news: _News | None) -> None:
    """Take what is new into a feed, and wake its readers where there is anything."""
    if news is None:
        found.is_gone = True
        found.backlog.wake()
        return
    is_first = found.number is None
    is_new = is_first or bool(news.frames) or news.current != found.current or news.done is not None
    if found.number is None or news.begins_after > found.number:
        found.backlog.lose(news.begins_after)
    found.backlog.add(news.frames)
    if not is_first and news.looked_at is None and news.current != found.current:
        found.backlog.add((news.number, data) for data in news.current.values())
    found.current, found.number, found.looked_at, found.done = (
        dict(news.current),
        news.number,
        news.looked_at,
        news.done,
    )
    if is_new:
        found.backlog.wake()
