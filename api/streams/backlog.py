"""The newest frames of a stream, kept once for all who read to it.

A reader has a position and nothing else, so that a thousand of them take no more memory than one. Whoever
falls behind what is kept has lost its place. All of it belongs to the event loop's thread.
"""

import asyncio
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from contextlib import suppress


class Backlog:
    """Frames in the order in which they came, each under a number that never falls.

    Args:
        most: frames that are kept.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._frames: list[bytes] = []
        self._numbers: list[int] = []
        self._first = 0
        self._changed = asyncio.Event()
        # What has a number up to this is not here, or no longer.
        self.begins_after = 0

    @property
    def end(self) -> int:
        """The position behind the last frame."""
        return self._first + len(self._frames)

    def add(self, frames: Iterable[tuple[int, bytes]]) -> None:
        """Keep frames, and let go of the oldest."""
        for number, data in frames:
            self._numbers.append(number)
            self._frames.append(data)
        # In steps, since a list is cut at its beginning at the cost of its length.
        if len(self._frames) >= 2 * self._most:
            surplus = len(self._frames) - self._most
            self.begins_after = self._numbers[surplus - 1]
            del self._frames[:surplus], self._numbers[:surplus]
            self._first += surplus

    def lose(self, begins_after: int) -> None:
        """Let go of all frames, and of all who have not taken them yet: more came than is kept."""
        self._first = self.end + 1
        self._frames, self._numbers, self.begins_after = [], [], begins_after

    def position_behind(self, number: int) -> int:
        """The position of the first frame with a greater number."""
        return self._first + bisect_right(self._numbers, number)

    def since(self, position: int) -> Sequence[bytes] | None:
        """The frames from a position on; None where some of them are gone."""
        return self._frames[position - self._first :] if position >= self._first else None

    def wake(self) -> None:
        """Have all who wait look again."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def changed(self, seconds: float) -> bool:
        """Wait to be woken; False where nothing came for so long."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._changed.wait(), seconds)
            return True
        return False
