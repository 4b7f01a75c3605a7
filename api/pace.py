"""How fast a body arrives: one that trickles in is ended, since it holds a connection, and an upload a file.

A client may pause for `idle_seconds`, and its mean rate may not stay below `MIN_BYTES_PER_SECOND` once it has
had `idle_seconds` to begin.
"""

import time
from collections.abc import AsyncIterator, Callable

import anyio

from luthier.errors import LuthierError

MIN_BYTES_PER_SECOND = 1024


async def paced(
    chunks: AsyncIterator[bytes], idle_seconds: float, clock: Callable[[], float] = time.monotonic
) -> AsyncIterator[bytes]:
    """The chunks as they come.

    Raises:
        LuthierError: `upload_too_slow`.
    """
    started_at, received = clock(), 0
    while True:
        try:
            with anyio.fail_after(idle_seconds):
                chunk = await anext(chunks)
        except StopAsyncIteration:
            return
        except TimeoutError as error:
            raise _too_slow(f"nothing came for {idle_seconds:g} seconds") from error
        received += len(chunk)
        seconds = clock() - started_at
        if seconds > idle_seconds and received < seconds * MIN_BYTES_PER_SECOND:
            raise _too_slow(f"{received} bytes came in {seconds:.0f} seconds")
        yield chunk


def _too_slow(what: str) -> LuthierError:
    return LuthierError(
        f"The body comes too slowly: {what}. Send it again over a better line", "upload_too_slow"
    )
