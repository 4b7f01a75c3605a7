"""Questions of many requests that are answered together: those that come meanwhile wait for the next time.

So a database is asked no more often, however many poll, and the event loop hops into a thread once for all of
them. An answer is never older than its question.
"""

import asyncio
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Generic, TypeVar

from starlette.concurrency import run_in_threadpool

Key = TypeVar("Key", bound=Hashable)
Found = TypeVar("Found")


class Together(Generic[Key, Found]):
    """One kind of question. For one event loop.

    Args:
        ask: finds the answers to several at once, in a thread; leaves out what there is not.
        at_once: no more than that.
    """

    def __init__(self, ask: Callable[[Sequence[Key]], Mapping[Key, Found]], *, at_once: int = 100) -> None:
        self._ask, self._at_once = ask, at_once
        self._waiting: dict[Key, asyncio.Future[Found | None]] = {}
        self._asking: asyncio.Task[None] | None = None

    async def get(self, key: Key) -> Found | None:
        """The answer to one; None where there is none. What asking raises is raised for all who asked."""
        future = self._waiting.get(key)
        if future is None:
            future = self._waiting[key] = asyncio.get_running_loop().create_future()
        if self._asking is None:
            self._asking = asyncio.create_task(self._ask_all())
        # Who goes away leaves the others their answer.
        return await asyncio.shield(future)

    async def _ask_all(self) -> None:
        try:
            while self._waiting:
                keys = list(self._waiting)[: self._at_once]
                asked = {key: self._waiting.pop(key) for key in keys}
                await self._answer(asked)
        finally:
            self._asking = None

    async def _answer(self, asked: Mapping[Key, "asyncio.Future[Found | None]"]) -> None:
        try:
            found = await run_in_threadpool(self._ask, list(asked))
        except Exception as error:  # noqa: BLE001, it is raised where it was asked
            for future in asked.values():
                future.set_exception(error)
                # Whoever asked may be gone.
                future.exception()
        else:
            for key, future in asked.items():
                future.set_result(found.get(key))
