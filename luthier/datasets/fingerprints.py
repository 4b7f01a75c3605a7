"""Which rows were there before, in constant memory: 64-bit fingerprints of what rows say.

A fingerprint depends on roles and texts alone, so the same conversation has the same one in every container.
Up to half a million different rows all are remembered; beyond, a sample of them chosen by the fingerprint
itself, of which each keeps all of its repeats, so that counts scale up (Gibbons 2001, distinct sampling).
"""

from collections.abc import Sequence

from luthier.datasets.examples import Example

MAX_REMEMBERED = 1 << 19


def fingerprint(roles: tuple[str, ...], contents: Sequence[str | None]) -> int:
    """A number that equal rows share, within one process."""
    return hash((roles, *contents))


def fingerprint_of(example: Example) -> int:
    """As `fingerprint`, with tools, calls and weights where there are any."""
    messages = example.messages
    roles = tuple(message.role for message in messages)
    contents: list[str | None] = [message.content for message in messages]
    contents += [text for text, _ in example.text]
    if example.tools:
        contents.append(repr(example.tools))
    contents += [repr(message.tool_calls) for message in messages if message.tool_calls]
    if not all(message.is_trained for message in messages):
        contents.append(repr([message.is_trained for message in messages]))
    return fingerprint(roles, contents)


class Fingerprints:
    """A memory of fingerprints that never grows past its bound."""

    def __init__(self, max_remembered: int = MAX_REMEMBERED) -> None:
        self._seen: set[int] = set()
        self._mask = 0
        self._max = max_remembered

    @property
    def scale(self) -> int:
        """Rows that each remembered one stands for; 1 as long as all are remembered."""
        return self._mask + 1

    def find_repeated(self, prints: Sequence[int]) -> list[int]:
        """Positions of those that were there before, here or in an earlier call; all are remembered."""
        chosen = set(prints) if self._mask == 0 else {value for value in prints if not value & self._mask}
        has_repeats = len(chosen) < len(prints) if self._mask == 0 else True
        repeated = self._repeated(prints) if has_repeats or not self._seen.isdisjoint(chosen) else []
        self._seen |= chosen
        while len(self._seen) > self._max:
            self._mask = self._mask * 2 + 1
            self._seen = {value for value in self._seen if not value & self._mask}
        return repeated

    def find_known(self, prints: Sequence[int]) -> list[int]:
        """Positions of those that were remembered; nothing is added."""
        if self._seen.isdisjoint(prints):
            return []
        return [position for position, value in enumerate(prints) if value in self._seen]

    def _repeated(self, prints: Sequence[int]) -> list[int]:
        here: set[int] = set()
        repeated = []
        for position, value in enumerate(prints):
            if value & self._mask:
                continue
            if value in self._seen or value in here:
                repeated.append(position)
            here.add(value)
        return repeated
