"""A job while it works: what happens to it, and its log, until it has ended.

The server's event stream is read, and taken up after the last event where it breaks. Where there is none, or
none to be had, the server is asked again and again.
"""

import json
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from luthier.client.calls import Resource
from luthier.client.errors import ApiError, UnreachableError
from luthier.client.objects import Event, Job, Page
from luthier.client.steps import Flow, Item, Pause, Request, Steps, given, next_chunk, opened
from luthier.client.streams import Decoder, Message

_EVENTS_A_PAGE = 1000
_UNKNOWN_JOB = "fine_tune_not_found"
# Answers of a server without a stream, or with no place left in it.
_NO_STREAM = frozenset({404, 405, 429, 503})
_NO_CONTENT, _NOT_MODIFIED, _RANGE_NOT_SATISFIABLE, _NOT_FOUND = 204, 304, 416, 404
_PARTIAL_CONTENT, _QUEUED = 206, "queued"
_EVENTS, _STATUS, _DONE = frozenset({"message", "metrics"}), "status", "done"


@dataclass(frozen=True)
class Update:
    """A job as it is now, and what has happened since the update before, oldest first."""

    job: Job
    events: Sequence[Event]


Emit = Callable[[Sequence[Event]], Flow[Any]]


class Feed:
    """What is told of one job.

    Args:
        path: of the job.
        every_seconds: the job itself is read no more often.
        after: id of the event to go on after; None for all.
    """

    def __init__(
        self, resource: Resource[Any], path: str, every_seconds: float, after: str | None = None
    ) -> None:
        self._resource, self._path, self._every_seconds = resource, path, every_seconds
        self._newest = after
        self._job: Job | None = None
        self._etag: str | None = None
        self._read_at = 0.0
        self._chunk_count = 0

    def updates(self) -> Flow[Update]:
        """The job and its events, until it has ended."""
        yield from self._run(self._update)

    def events(self) -> Flow[Event]:
        """Its events alone."""
        yield from self._run(self._each)

    def _run(self, emit: Emit) -> Flow[Any]:
        if not (yield from self._listen(emit)):
            yield from self._poll(emit)

    def _update(self, events: Sequence[Event]) -> Flow[Update]:
        if self._job is None or (self._job.status == _QUEUED and self._is_old()):
            yield from self._read_job()
        if self._job is not None:
            yield Item(Update(self._job, events))

    def _each(self, events: Sequence[Event]) -> Flow[Event]:
        for event in events:
            yield Item(event)

    def _listen(self, emit: Emit) -> Any:
        """Read the stream; returns whether the job has ended with it."""
        decoder = Decoder()
        try:
            yield from self._resource._runner.policy.repeated(
                lambda: self._read_stream(decoder, emit),
                is_repeatable=True,
                progress=lambda: self._chunk_count,
            )
        except ApiError as error:
            if error.status in _NO_STREAM and error.code != _UNKNOWN_JOB:
                return False
            raise
        job = yield from self._read_job()
        yield from emit(())
        return job.is_final

    def _read_stream(self, decoder: Decoder, emit: Emit) -> Any:
        """Read one connection to its end; raises UnreachableError where it breaks."""
        decoder.restart()
        headers = {"Accept": "text/event-stream"} | given({"Last-Event-ID": decoder.last_id})
        params = given({"after": self._newest if decoder.last_id is None else None})
        path = f"{self._path}/events/stream"
        reply = yield from opened(Request("GET", path, {"params": params}, headers))
        if reply.status == _NO_CONTENT:
            return
        while (chunk := (yield from next_chunk())) is not None:
            self._chunk_count += 1
            messages = list(decoder.feed(chunk))
            events = [Event.model_validate_json(each.data) for each in messages if each.kind in _EVENTS]
            self._newest = events[-1].id if events else self._newest
            self._take_status(messages)
            # Whatever comes, a heartbeat too, is a time to look how the job stands in the queue.
            if messages or self._job is not None:
                yield from emit(events)
            if any(message.kind == _DONE for message in messages):
                return
        raise UnreachableError("The event stream broke off")

    def _poll(self, emit: Emit) -> Flow[Any]:
        while True:
            # The job is read first: what it has become by then stands in the events that are read after.
            job = yield from self._read_job()
            yield from emit((yield from self._events_since()))
            if job.is_final:
                return
            yield Pause(self._every_seconds)

    def _take_status(self, messages: Sequence[Message]) -> None:
        """Bring the job up to the newest message that tells how it stands."""
        told = [message for message in messages if message.kind in (_STATUS, _DONE)]
        if not told or self._job is None:
            return
        status = json.loads(told[-1].data)
        status |= {"object": "fine_tuning.job"} | ({} if status.get("status") == _QUEUED else {"queue": None})
        self._job = Job.model_validate(self._job.model_dump() | status)

    def _is_old(self) -> bool:
        return time.monotonic() - self._read_at >= self._every_seconds

    def _read_job(self) -> Steps[Job]:
        # A place in the queue changes with other jobs.
        is_known = self._job is not None and self._job.status != _QUEUED
        headers = given({"If-None-Match": self._etag if is_known else None})
        reply = yield from self._resource._send(Request("GET", self._path, headers=headers))
        self._read_at = time.monotonic()
        if reply.status != _NOT_MODIFIED or self._job is None:
            self._job, self._etag = Job.model_validate_json(reply.content), reply.headers.get("etag")
        return self._job

    def _events_since(self) -> Steps[Sequence[Event]]:
        """Events behind the newest that is known, oldest first."""
        found: deque[Event] = deque()
        after: str | None = None
        while True:
            params = given({"limit": _EVENTS_A_PAGE, "after": after})
            page = yield from self._resource._ask(
                Page[Event], Request("GET", f"{self._path}/events", {"params": params})
            )
            for event in page.data:
                if event.id == self._newest:
                    break
                found.appendleft(event)
            else:
                if page.has_more and page.data:
                    after = page.data[-1].id
                    continue
            self._newest = found[-1].id if found else self._newest
            return tuple(found)


def follow_log(resource: Resource[Any], path: str, every_seconds: float) -> Flow[bytes]:
    """A job's log as it grows; that of a new run starts over."""
    offset, attempts = 0, None
    while True:
        # The job is read first: what it has printed by then stands in the log.
        job = yield from resource._ask(Job, Request("GET", path))
        if job.attempts != attempts:
            offset, attempts = 0, job.attempts
        request = Request("GET", f"{path}/logs", headers={"Range": f"bytes={offset}-"} if offset else {})
        try:
            reply = yield from opened(request)
            skipped = 0 if reply.status == _PARTIAL_CONTENT else offset
            while (chunk := (yield from next_chunk())) is not None:
                fresh = chunk[skipped:]
                skipped -= len(chunk) - len(fresh)
                offset += len(fresh)
                if fresh:
                    yield Item(fresh)
        except UnreachableError:
            # The next look goes on where this one broke.
            pass
        except ApiError as error:
            # Nothing new, or no log yet.
            if error.status not in (_RANGE_NOT_SATISFIABLE, _NOT_FOUND):
                raise
        if job.is_final:
            return
        yield Pause(every_seconds)
