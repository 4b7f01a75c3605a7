"""A job while it works: what happens to it, and its log, until it has ended.

The server's streams are read, and taken up where they break, for some minutes also while the server is away.
Where there is none of events, or none to be had, the server is asked again and again.
"""

import json
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any

from luthier.client.calls import Resource
from luthier.client.errors import ApiError, UnreachableError
from luthier.client.objects import Event, Job, Page
from luthier.client.retries import OnOutage
from luthier.client.steps import Flow, Item, Pause, Reply, Request, Steps, T, given, next_chunk, opened, sent
from luthier.client.streams import Decoder, Message

_EVENTS_A_PAGE = 1000
_UNKNOWN_JOB = "fine_tune_not_found"
# Answers of a server without a stream, or with no place left in it.
_NO_STREAM = frozenset({404, 405, 429, 503})
_NO_CONTENT, _NOT_MODIFIED, _QUEUED = 204, 304, "queued"
_LOG, _LOG_OFFSET, _NEWEST = "x-log", "x-log-offset", "newest"
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
        on_outage: called when the server stays away; it is tried on for some minutes.
    """

    def __init__(
        self,
        resource: Resource[Any],
        path: str,
        every_seconds: float,
        after: str | None = None,
        on_outage: OnOutage | None = None,
    ) -> None:
        self._resource, self._path, self._every_seconds = resource, path, every_seconds
        self._policy = resource._runner.policy.patient(on_outage)
        # Behind what has been given on, never behind what has merely arrived.
        self._newest = after
        self._last_id: str | None = None
        self._job: Job | None = None
        self._etag: str | None = None
        self._read_at = 0.0
        self._step_count = 0

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
        try:
            yield from self._patiently(lambda: self._read_stream(emit))
        except ApiError as error:
            if error.status in _NO_STREAM and error.code != _UNKNOWN_JOB:
                return False
            raise
        job = yield from self._patiently(self._read_job)
        yield from emit(())
        return job.is_final

    def _patiently(self, attempt: Callable[[], Generator[Any, Any, T]]) -> Generator[Any, Any, T]:
        result: T = yield from self._policy.repeated(
            attempt, is_repeatable=True, progress=lambda: self._step_count
        )
        return result

    def _read_stream(self, emit: Emit) -> Any:
        """Read one connection to its end; raises UnreachableError where it breaks."""
        decoder = Decoder(self._last_id)
        headers = {"Accept": "text/event-stream"} | given({"Last-Event-ID": self._last_id})
        params = given({"after": self._newest if self._last_id is None else None})
        path = f"{self._path}/events/stream"
        reply = yield from opened(Request("GET", path, {"params": params}, headers))
        if reply.status == _NO_CONTENT:
            return
        while (chunk := (yield from next_chunk())) is not None:
            messages = list(decoder.feed(chunk))
            events = [Event.read(each.data) for each in messages if each.kind in _EVENTS]
            self._take_status(messages)
            # Whatever comes, a heartbeat too, is a time to look how the job stands in the queue.
            if messages or self._job is not None:
                yield from emit(events)
            self._pass(events, decoder.last_id)
            if any(message.kind == _DONE for message in messages):
                return
        raise UnreachableError("The event stream broke off")

    def _poll(self, emit: Emit) -> Flow[Any]:
        while True:
            # The job is read first: what it has become by then stands in the events that are read after.
            job = yield from self._patiently(self._read_job)
            yield from self._patiently(lambda: self._emit_since(emit))
            if job.is_final:
                return
            yield Pause(self._every_seconds)

    def _emit_since(self, emit: Emit) -> Flow[Any]:
        events = yield from self._events_since()
        yield from emit(events)
        self._pass(events, None)

    def _pass(self, events: Sequence[Event], last_id: str | None) -> None:
        """Events have been given on: what is asked for next comes after them."""
        self._newest, self._last_id = events[-1].id if events else self._newest, last_id
        self._step_count += 1

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
        reply = yield from sent(Request("GET", self._path, headers=headers))
        self._read_at = time.monotonic()
        if reply.status != _NOT_MODIFIED or self._job is None:
            self._job, self._etag = Job.read(reply.content), reply.headers.get("etag")
        return self._job

    def _events_since(self) -> Steps[Sequence[Event]]:
        """Events behind the newest that is known, oldest first."""
        found: deque[Event] = deque()
        after: str | None = None
        while True:
            params = given({"limit": _EVENTS_A_PAGE, "after": after})
            reply = yield from sent(Request("GET", f"{self._path}/events", {"params": params}))
            page = Page[Event].read(reply.content)
            for event in page.data:
                if event.id == self._newest:
                    break
                found.appendleft(event)
            else:
                if page.has_more and page.data:
                    after = page.data[-1].id
                    continue
            return tuple(found)


class LogFeed:
    """What a job prints, from one run to the next.

    A log may be begun anew: another run has begun, or the log has grown too long. An answer of the server
    ends there, and the next one names another log, of which nothing is passed over.

    Args:
        tail: only so many lines from the end of what there is; None for all.
    """

    def __init__(
        self,
        resource: Resource[Any],
        path: str,
        every_seconds: float,
        tail: int | None = None,
        on_outage: OnOutage | None = None,
    ) -> None:
        self._path, self._every_seconds, self._tail = path, every_seconds, tail
        self._policy = resource._runner.policy.patient(on_outage)
        self._log, self._offset = _NEWEST, 0
        self._step_count = 0

    def chunks(self) -> Flow[bytes]:
        """Until the job has ended."""
        is_over = False
        while not is_over:
            is_over = yield from self._policy.repeated(
                self._look, is_repeatable=True, progress=lambda: self._step_count
            )
            if not is_over:
                yield Pause(self._every_seconds)

    def _look(self) -> Any:
        """Read what there is, and what comes until the log is begun anew; returns whether the job is over."""
        # The job is read first: what it has printed by then stands in the log.
        job = Job.read((yield from sent(Request("GET", self._path))).content)
        self._step_count += 1
        known = {"log": self._log, "offset": self._offset or None}
        params = given({"stream": "true", "tail": self._tail, **known})
        self._take_place((yield from opened(Request("GET", f"{self._path}/logs", {"params": params}))))
        while (chunk := (yield from next_chunk())) is not None:
            yield Item(chunk)
            self._offset += len(chunk)
            self._step_count += 1
        return job.is_final

    def _take_place(self, reply: Reply) -> None:
        """What the answer begins with; nothing is named where there is no log yet."""
        if _LOG in reply.headers:
            self._log, self._offset = reply.headers[_LOG], int(reply.headers[_LOG_OFFSET])
            self._tail = None
