"""Webhooks on their way out: many at once, in a thread of the dispatcher, as long as it leads.

One thread looks for messages and writes what became of them, another has an event loop in which they are
sent. A target that hangs holds up itself alone: an endpoint has few messages under way, one that fails has
one, a project has some, and who has enough gets no more until those have ended. An attempt whose resolver
hangs counts for as long as that does. A message is marked as sent
by the leader alone, after its attempt: when a dispatcher dies between the two, the next one sends it again,
under the same id.
"""

import asyncio
import random
import threading
import time
from collections import Counter
from collections.abc import Coroutine, Sequence
from concurrent.futures import Future
from datetime import datetime
from queue import Empty, SimpleQueue
from typing import Any

import structlog
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from luthier.addresses import AddressRules, Target, start_resolving
from luthier.database import clock
from luthier.ids import new_id
from luthier.installation import Installation
from luthier.service import deliveries, outbox
from luthier.service.deliveries import Delivery, Due, Result
from luthier.service.leadership import LeadershipLostError
from luthier.webhooks.sending import Answer, send
from worker.seat import Seat

log = structlog.get_logger()
_AT_ONCE, _OF_A_PROJECT, _OF_AN_ENDPOINT, _OF_A_FAILING_ENDPOINT = 64, 16, 4, 1
# Enough for some endpoints; who of them is busy then is passed over in the next look.
_LOOKED_AT = 32
_PAUSE_SECONDS, _TOGETHER_SECONDS = 5.0, 0.02
# At the end; what is still under way then is sent again by the next dispatcher.
_LAST_SECONDS = 5.0
_NO_SECRET = "the signing secret cannot be opened with this installation's key: rotate it"  # noqa: S105


class WebhookDeliverer:
    """Sends what the outbox holds for webhook endpoints."""

    def __init__(self, installation: Installation, seat: Seat) -> None:
        self._installation, self._seat = installation, seat
        self._settings, self._rules = installation.settings, installation.settings.webhook_rules
        self._under_way: dict[int, Delivery] = {}
        self._ended: SimpleQueue[Result] = SimpleQueue()
        self._news = threading.Event()
        self._results: list[Result] = []
        self._failing: set[str] = set()
        # Until when endpoints are left alone that asked for it, and when their owner last touched them.
        self._resting: dict[str, tuple[float, datetime]] = {}
        # Of messages under way; each stays so while its resolver hangs, since that holds a thread.
        self._resolving: dict[int, Future[Sequence[str]]] = {}
        self._hanging: set[int] = set()

    def serve(self, stopping: threading.Event) -> None:
        """Deliver until told to stop; what has ended by then, or soon after, is recorded."""
        with _Loop() as loop:
            while not stopping.is_set():
                self._news.clear()
                if self._round_guarded(loop):
                    # An attempt that ends is recorded soon, with those that end beside it.
                    self._news.wait(self._settings.poll_seconds)
                    stopping.wait(_TOGETHER_SECONDS)
                else:
                    stopping.wait(_PAUSE_SECONDS)
            self._end(loop)

    def _round_guarded(self, loop: "_Loop | None") -> bool:
        try:
            self._record()
            self._forget()
            if loop is not None:
                self._start(loop)
        except LeadershipLostError:
            # Whoever leads now sends these once more.
            self._forget()
        except DBAPIError:
            log.warning("database_unreachable", part="webhooks")
            return False
        except Exception:
            log.exception("delivering_failed")
            return False
        return True

    def _record(self) -> None:
        """Write what has ended since the last round.

        Raises:
            LeadershipLostError: it is not written.
        """
        while True:
            try:
                self._results.append(self._ended.get_nowait())
            except Empty:
                break
        if not self._results:
            return
        with self._seat.transaction() as (session, now):
            deliveries.record(session, self._results, jitter=random.random(), now=now)
        for result in self._results:
            self._learn(result)

    def _learn(self, result: Result) -> None:
        """Tell of an attempt, and remember how its endpoint does."""
        delivery, answer = result.delivery, result.answer
        if answer.has_arrived:
            self._failing.discard(delivery.endpoint_id)
            return
        self._failing.add(delivery.endpoint_id)
        if rest := deliveries.asked_pause_seconds(answer):
            self._resting[delivery.endpoint_id] = time.monotonic() + rest, delivery.endpoint_updated_at
        log.info(
            "webhook_failed",
            endpoint_id=delivery.endpoint_id,
            event_id=delivery.event.id,
            attempt=delivery.attempt,
            status_code=answer.status_code,
            error=answer.error,
        )

    def _forget(self) -> None:
        self._hanging.update(result.delivery.message_id for result in self._results)
        self._results.clear()
        for message_id in list(self._hanging):
            resolving = self._resolving.get(message_id)
            if resolving is None or resolving.done():
                self._hanging.discard(message_id)
                self._resolving.pop(message_id, None)
                self._under_way.pop(message_id, None)

    def _start(self, loop: "_Loop") -> None:
        """Begin as many attempts as there may be.

        Raises:
            LeadershipLostError: this process does not lead any more.
        """
        while len(self._under_way) < _AT_ONCE:
            with self._installation.database.reading() as session:
                now = clock(session)
                if not self._seat.stands(session, now=now):
                    return
                due = self._find_due(session, now)
            if due.unwanted:
                with self._seat.transaction() as (session, at):
                    outbox.record_sent(session, due.unwanted, now=at)
            begun = [self._begin(loop, delivery, now) for delivery in due.deliveries]
            if not due.has_more or not (due.unwanted or any(begun)):
                return

    def _find_due(self, session: Session, now: datetime) -> Due:
        self._end_rests(session)
        of_endpoints = Counter(one.endpoint_id for one in self._under_way.values())
        of_projects = Counter(one.project_id for one in self._under_way.values())
        busy = {one for one, count in of_endpoints.items() if count >= self._limit(one)}
        return deliveries.find_due(
            session,
            self._installation.installation_key,
            under_way=self._under_way.keys(),
            busy_endpoints=busy | self._resting.keys(),
            busy_projects={one for one, count in of_projects.items() if count >= _OF_A_PROJECT},
            limit=_LOOKED_AT,
            now=now,
        )

    def _end_rests(self, session: Session) -> None:
        """Forget the rests that are over, and those of endpoints that their owner has touched meanwhile."""
        monotonic = time.monotonic()
        self._resting = {one: rest for one, rest in self._resting.items() if rest[0] > monotonic}
        if self._resting:
            updated_at = {one: at for one, (_, at) in self._resting.items()}
            for endpoint_id in deliveries.find_updated(session, updated_at):
                del self._resting[endpoint_id]

    def _begin(self, loop: "_Loop", delivery: Delivery, now: datetime) -> bool:
        """Send a message, unless its endpoint or project has enough under way; whether it is sent."""
        others = self._under_way.values()
        of_endpoint = sum(one.endpoint_id == delivery.endpoint_id for one in others)
        of_project = sum(one.project_id == delivery.project_id for one in others)
        is_free = of_endpoint < self._limit(delivery.endpoint_id) and of_project < _OF_A_PROJECT
        if not is_free or len(others) >= _AT_ONCE:
            return False
        self._under_way[delivery.message_id] = delivery
        loop.start(self._attempt(delivery, now))
        return True

    async def _attempt(self, delivery: Delivery, now: datetime) -> None:
        def start(target: Target, rules: AddressRules) -> Future[Sequence[str]]:
            self._resolving[delivery.message_id] = resolving = start_resolving(target, rules)
            return resolving

        answer = Answer(0, error=_NO_SECRET)
        try:
            if delivery.secrets:
                answer = await send(
                    delivery.url,
                    delivery.event,
                    delivery.secrets,
                    self._rules,
                    timeout_seconds=self._settings.webhook_timeout_seconds,
                    now=now,
                    start_resolving=start,
                )
        except Exception as error:
            log.exception("webhook_attempt_failed", endpoint_id=delivery.endpoint_id)
            answer = Answer(0, error=f"internal error ({type(error).__name__})")
        self._ended.put(Result(new_id("whdl_"), delivery, answer))
        self._news.set()

    def _limit(self, endpoint_id: str) -> int:
        return _OF_A_FAILING_ENDPOINT if endpoint_id in self._failing else _OF_AN_ENDPOINT

    def _end(self, loop: "_Loop") -> None:
        loop.wait(_LAST_SECONDS)
        self._round_guarded(None)


class _Loop:
    """An event loop in a thread of its own."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True, name="webhooks")
        self._futures: set[Future[None]] = set()

    def __enter__(self) -> "_Loop":
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        for future in list(self._futures):
            future.cancel()
        # Whoever was cancelled closes its connection first.
        self.wait(_LAST_SECONDS)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def start(self, work: Coroutine[Any, Any, None]) -> None:
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        self._futures.add(future)
        future.add_done_callback(self._futures.discard)

    def wait(self, seconds: float) -> None:
        """Until all that was started has ended, but no longer than that."""
        ends = asyncio.run_coroutine_threadsafe(self._others_end(seconds), self._loop)
        ends.result()

    async def _others_end(self, seconds: float) -> None:
        others: Sequence[asyncio.Task[Any]] = [
            task for task in asyncio.all_tasks() if task is not asyncio.current_task()
        ]
        if others:
            await asyncio.wait(others, timeout=seconds)
