"""What one reader is sent: history from the database, then what the broadcast finds, until the end.

A stream ends by itself after the broadcast's `longest_seconds`, with a comment: the client connects again. A
reader that falls behind the backlog is sent away in the same way.
"""

import time
from collections.abc import AsyncGenerator, AsyncIterator

from starlette.concurrency import run_in_threadpool

from api.streams.broadcast import Broadcast, Feed
from api.streams.frames import GO_ON, KEEP_ALIVE, RETRY, TOO_SLOW, event_frames
from luthier import repository
from luthier.database import Database

_EVENTS_A_PAGE = 500


async def job_stream(
    broadcast: Broadcast, database: Database, job_id: str, after: int
) -> AsyncGenerator[bytes, None]:
    """The events of a job behind a number, its status as it changes, and `done`."""
    yield RETRY
    until = time.monotonic() + broadcast.longest_seconds
    async with broadcast.job(job_id) as feed:
        async for silence in _until_ready(broadcast, feed, until):
            yield silence
        while after < feed.backlog.begins_after:
            page = await run_in_threadpool(_read, database, job_id, after)
            if not page:
                break
            yield b"".join(data for _, data in page)
            after = page[-1][0]
        position = feed.backlog.position_behind(after)
        yield b"".join([*(feed.backlog.since(position) or ()), *feed.current.values()])
        position = feed.backlog.end
        async for chunk in _go_on(broadcast, feed, position, until):
            yield chunk


async def project_stream(broadcast: Broadcast, project_id: str) -> AsyncGenerator[bytes, None]:
    """How each job of a project stands that has not ended, and each change of any of them."""
    yield RETRY
    until = time.monotonic() + broadcast.longest_seconds
    async with broadcast.project(project_id) as feed:
        async for silence in _until_ready(broadcast, feed, until):
            yield silence
        position = feed.backlog.end
        yield b"".join(feed.current.values())
        async for chunk in _go_on(broadcast, feed, position, until):
            yield chunk


async def _until_ready(broadcast: Broadcast, feed: Feed, until: float) -> AsyncIterator[bytes]:
    while not feed.is_ready and not broadcast.is_closed and time.monotonic() <= until:
        if not await feed.backlog.changed(broadcast.keep_alive_seconds):
            yield KEEP_ALIVE


async def _go_on(broadcast: Broadcast, feed: Feed, position: int, until: float) -> AsyncIterator[bytes]:
    """What comes from a position on."""
    while not broadcast.is_closed:
        frames = feed.backlog.since(position)
        if frames is None:
            yield TOO_SLOW
            return
        if frames:
            position += len(frames)
            yield b"".join(frames)
            continue
        if feed.is_over:
            yield feed.done or GO_ON
            return
        if time.monotonic() > until:
            yield GO_ON
            return
        if not await feed.backlog.changed(broadcast.keep_alive_seconds):
            yield KEEP_ALIVE


def _read(database: Database, job_id: str, after: int) -> list[tuple[int, bytes]]:
    with database.reading() as session:
        rows = repository.list_events_after(session, job_id, after=after, limit=_EVENTS_A_PAGE)
        return event_frames(rows)
