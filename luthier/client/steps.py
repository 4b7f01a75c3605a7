"""The steps of a call, and what they carry: what a call may want of the world outside.

A call is a generator. It yields steps, is sent what came of each (or is thrown the error), and returns its
result. So it is written once, for a client that blocks and for one on an event loop (`luthier.client.calls`).
A flow yields an `Item` for each value beside.
"""

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeAlias, TypeVar
from urllib.parse import quote

T = TypeVar("T")
_REPEATABLE = frozenset({"GET", "DELETE"})


@dataclass(frozen=True)
class Request:
    """One request, below `/v1`.

    Attributes:
        arguments: of httpx: `params`, `json`, `data`, `files`.
        is_repeatable: None means yes for GET and DELETE.
    """

    method: str
    path: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    is_repeatable: bool | None = None

    @property
    def may_be_repeated(self) -> bool:
        return self.method in _REPEATABLE if self.is_repeatable is None else self.is_repeatable


@dataclass(frozen=True)
class Reply:
    """A good answer; of an opened stream it has no content."""

    status: int
    headers: Mapping[str, str]
    content: bytes = b""


@dataclass(frozen=True)
class Send:
    """Send a request, once; gives its `Reply`, or raises ApiError."""

    request: Request


@dataclass(frozen=True)
class Open:
    """Send a request and leave its body open, closing one that was open before; gives its `Reply`."""

    request: Request


@dataclass(frozen=True)
class Chunk:
    """The next bytes of the open body; None at its end."""


@dataclass(frozen=True)
class Pause:
    """Let so many seconds pass."""

    seconds: float


@dataclass(frozen=True)
class Work:
    """Call something that takes its time, such as a look into a large file; gives its result."""

    action: Callable[[], Any]


@dataclass(frozen=True)
class Item(Generic[T]):
    """A value that a flow gives to its reader."""

    value: T


Step: TypeAlias = Send | Open | Chunk | Pause | Work
Steps: TypeAlias = Generator[Step, Any, T]
Flow: TypeAlias = Generator[Step | Item[T], Any, None]


def given(asked: Mapping[str, Any]) -> dict[str, Any]:
    """What of a request is there."""
    return {name: value for name, value in asked.items() if value is not None}


def segment(text: str) -> str:
    """An id or a name as a part of a path; slashes in names stay."""
    return quote(text, safe="/:")


def sent(request: Request) -> Steps[Reply]:
    """The step that sends a request, with the type of its result."""
    reply: Reply = yield Send(request)
    return reply


def opened(request: Request) -> Steps[Reply]:
    """The same for a request whose body comes in chunks."""
    reply: Reply = yield Open(request)
    return reply


def next_chunk() -> Steps[bytes | None]:
    """The next bytes of the open body; None at its end."""
    chunk: bytes | None = yield Chunk()
    return chunk


def worked(action: Callable[[], T]) -> Steps[T]:
    """The result of something that takes its time."""
    result: T = yield Work(action)
    return result
