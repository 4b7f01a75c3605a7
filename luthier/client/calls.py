"""Methods that are written once, for a client that waits and for one that awaits.

`call`, `flow` and `listing` make methods of what `luthier.client.steps` tells of: on a resource of a blocking
connection they give results and iterators, on one of an asynchronous connection coroutines and asynchronous
iterators, and are typed so.
"""

import functools
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar, overload

from luthier.client.errors import ApiError
from luthier.client.objects import Answer, Page, Row
from luthier.client.retries import Policy
from luthier.client.steps import Flow, Item, Reply, Request, Steps, T, given, sent

P = ParamSpec("P")
Result = TypeVar("Result", bound=Answer)
_NO_CONTENT, _NOT_FOUND, _SERVER_ERROR = 204, 404, 500


class Waiting(ABC):
    """Runs steps and blocks meanwhile."""

    url: str
    policy: Policy

    @abstractmethod
    def iterate(self, flow: Flow[T]) -> Iterator[T]: ...

    @abstractmethod
    def run(self, steps: Steps[T]) -> T: ...


class Awaiting(ABC):
    """Runs steps on an event loop."""

    url: str
    policy: Policy

    @abstractmethod
    def iterate(self, flow: Flow[T]) -> AsyncIterator[T]: ...

    @abstractmethod
    def run(self, steps: Steps[T]) -> Coroutine[Any, Any, T]: ...


Runner = TypeVar("Runner", bound=Waiting | Awaiting, covariant=True)  # noqa: PLC0105, it reads as a noun


class Resource(Generic[Runner]):
    """What a part of the API is entered by; its methods are made by `call`, `flow` and `listing`."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner

    def _send(self, request: Request) -> Steps[Reply]:
        """The good answer to a request, which is repeated as the connection's policy says."""
        attempt = _Deletion(request).attempt if request.method == "DELETE" else lambda: sent(request)
        reply: Reply = yield from self._runner.policy.repeated(attempt, is_repeatable=request.may_be_repeated)
        return reply

    def _ask(self, answer: type[Result], request: Request) -> Steps[Result]:
        """The same answer as an object."""
        reply = yield from self._send(request)
        return answer.read(reply.content)


class _Deletion:
    """A request that may find nothing any more, where an attempt before was carried out unheard."""

    def __init__(self, request: Request) -> None:
        self._request, self._was_unheard = request, False

    def attempt(self) -> Steps[Reply]:
        try:
            return (yield from sent(self._request))
        except ApiError as error:
            if self._was_unheard and error.status == _NOT_FOUND:
                return Reply(_NO_CONTENT, {})
            self._was_unheard |= error.status is None or error.status >= _SERVER_ERROR
            raise


class Call(Generic[P, T]):
    """A method that gives one result."""

    def __init__(self, steps: Callable[Concatenate[Any, P], Steps[T]]) -> None:
        self.steps = steps
        self.__doc__ = steps.__doc__

    @overload
    def __get__(self, resource: None, owner: Any) -> "Call[P, T]": ...
    @overload
    def __get__(self, resource: Resource[Waiting], owner: Any) -> Callable[P, T]: ...
    @overload
    def __get__(self, resource: Resource[Awaiting], owner: Any) -> Callable[P, Coroutine[Any, Any, T]]: ...
    def __get__(self, resource: Any, owner: Any) -> Any:
        if resource is None:
            return self
        return _bound(self.steps, resource, resource._runner.run)


class Following(Generic[P, T]):
    """A method that gives values as they come."""

    def __init__(self, steps: Callable[Concatenate[Any, P], Flow[T]]) -> None:
        self.steps = steps
        self.__doc__ = steps.__doc__

    @overload
    def __get__(self, resource: None, owner: Any) -> "Following[P, T]": ...
    @overload
    def __get__(self, resource: Resource[Waiting], owner: Any) -> Callable[P, Iterator[T]]: ...
    @overload
    def __get__(self, resource: Resource[Awaiting], owner: Any) -> Callable[P, AsyncIterator[T]]: ...
    def __get__(self, resource: Any, owner: Any) -> Any:
        if resource is None:
            return self
        return _bound(self.steps, resource, resource._runner.iterate)


@dataclass(frozen=True)
class Query(Generic[Row]):
    """A list of the API: the type of its pages, where they are, and what is asked."""

    page: type[Page[Row]]
    path: str
    params: Mapping[str, Any] = field(default_factory=dict)

    def read(self, resource: Resource[Any]) -> Steps[Page[Row]]:
        """The first page."""
        request = Request("GET", self.path, {"params": given(self.params)})
        return resource._ask(self.page, request)

    def walk(self, resource: Resource[Any]) -> Flow[Row]:
        """Every row, page after page."""
        query = self
        while True:
            page: Page[Row] = yield from query.read(resource)
            for row in page.data:
                yield Item(row)
            if not page.has_more or not page.next_after:
                return
            query = Query(self.page, self.path, {**self.params, "after": page.next_after})


class Rows(Generic[Row]):
    """Rows of a list: iterating gives all of them, page by page; nothing is asked before."""

    def __init__(self, resource: Resource[Waiting], query: Query[Row]) -> None:
        self._resource, self._query = resource, query

    def __iter__(self) -> Iterator[Row]:
        return self._resource._runner.iterate(self._query.walk(self._resource))

    def page(self) -> Page[Row]:
        """The first page alone; its `last_id` as `after` leads to the next one."""
        return self._resource._runner.run(self._query.read(self._resource))


class AsyncRows(Generic[Row]):
    """The same for `async for`."""

    def __init__(self, resource: Resource[Awaiting], query: Query[Row]) -> None:
        self._resource, self._query = resource, query

    def __aiter__(self) -> AsyncIterator[Row]:
        return self._resource._runner.iterate(self._query.walk(self._resource))

    async def page(self) -> Page[Row]:
        """The first page alone; its `last_id` as `after` leads to the next one."""
        return await self._resource._runner.run(self._query.read(self._resource))


class Listing(Generic[P, Row]):
    """A method that gives the rows of a list."""

    def __init__(self, query: Callable[Concatenate[Any, P], Query[Row]]) -> None:
        self.query = query
        self.__doc__ = query.__doc__

    @overload
    def __get__(self, resource: None, owner: Any) -> "Listing[P, Row]": ...
    @overload
    def __get__(self, resource: Resource[Waiting], owner: Any) -> Callable[P, Rows[Row]]: ...
    @overload
    def __get__(self, resource: Resource[Awaiting], owner: Any) -> Callable[P, AsyncRows[Row]]: ...
    def __get__(self, resource: Any, owner: Any) -> Any:
        if resource is None:
            return self
        rows = Rows if isinstance(resource._runner, Waiting) else AsyncRows
        return _bound(self.query, resource, functools.partial(rows, resource))


call, flow, listing = Call, Following, Listing


def _bound(function: Callable[..., Any], resource: Any, finish: Callable[[Any], Any]) -> Callable[..., Any]:
    """A method that hands what `function` makes for a resource to `finish`."""
    method = function.__get__(resource)

    @functools.wraps(method)
    def bound(*arguments: Any, **named: Any) -> Any:
        return finish(method(*arguments, **named))

    return bound
