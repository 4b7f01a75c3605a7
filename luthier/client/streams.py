"""The event stream of a job: server-sent events, taken up where they broke by `Last-Event-ID`.

The format is that of the HTML standard (section 9.2, Server-sent events), as far as servers send it.
"""

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Message:
    """One event of a stream; `id` is the one to go on after."""

    kind: str
    data: str
    id: str | None


class Decoder:
    """Makes messages of bytes as they come, over one connection.

    Attributes:
        last_id: what a new connection goes on after.
    """

    def __init__(self, last_id: str | None = None) -> None:
        self.last_id = self._id = last_id
        self._rest = b""
        self._kind, self._data = "", list[str]()

    def feed(self, chunk: bytes) -> Iterator[Message]:
        """The messages that end in these bytes."""
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        for line in lines:
            message = self._take(line.removesuffix(b"\r").decode(errors="replace"))
            if message is not None:
                yield message

    def _take(self, line: str) -> Message | None:
        if not line:
            # Only what has come whole is behind us.
            self.last_id = self._id
            message = Message(self._kind or "message", "\n".join(self._data), self.last_id)
            has_data, self._kind, self._data = bool(self._data), "", []
            return message if has_data else None
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        match name:
            case "event":
                self._kind = value
            case "data":
                self._data.append(value)
            case "id":
                self._id = value
        return None
