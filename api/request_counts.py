"""How the requests of one API process were answered, for Prometheus: by route, method and class of status.

Labels are bounded: a route is told by its template, a path that is none by one word, and so is a method that
no route has. Unlike all other metrics these are of the process that is asked, so every API is to be scraped.
"""

from collections.abc import Iterator, MutableMapping
from typing import Any

from prometheus_client import Counter
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

_METHODS = frozenset({"GET", "POST", "PATCH", "PUT", "DELETE", "HEAD", "OPTIONS"})
_NO_ROUTE, _OTHER_METHOD = "none", "other"
# An answer that is still being worked out is no failure, though its status is 503.
_NOT_YET_CODE, _NOT_YET = "not_done_yet", "not_yet"
_ERROR_CODE, _ROUTE = "luthier.error_code", "luthier.route"


def note_error(scope: MutableMapping[str, Any], code: str) -> None:
    """Have a request counted by the error that it was answered with."""
    scope[_ERROR_CODE] = code


def note_route(scope: MutableMapping[str, Any], path: str) -> None:
    """Have a request counted under a route's template, though routing has not come to it."""
    scope[_ROUTE] = path


class RequestCounts(Collector):
    """Counts since the process started."""

    def __init__(self) -> None:
        self._counter = Counter(
            "luthier_http_requests",
            "Requests that this API process has answered, but for probes",
            ["route", "method", "status"],
            registry=None,
        )

    def add(self, scope: MutableMapping[str, Any], status: int) -> None:
        """Count one answer."""
        route = scope.get(_ROUTE) or getattr(scope.get("route"), "path", _NO_ROUTE)
        method = scope["method"] if scope["method"] in _METHODS else _OTHER_METHOD
        is_not_yet = scope.get(_ERROR_CODE) == _NOT_YET_CODE
        self._counter.labels(route, method, _NOT_YET if is_not_yet else f"{status // 100}xx").inc()

    def collect(self) -> Iterator[Metric]:
        yield from self._counter.collect()
