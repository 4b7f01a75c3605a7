"""The answer to who polls a job that has not changed: 304, before a route is looked for.

Routing and what FastAPI does around a route cost several times as much as this. What has changed, and what is
no such question, goes on to the routes.
"""

import re

from fastapi import Request
from starlette.routing import get_route_path  # type: ignore[attr-defined]
from starlette.types import ASGIApp, Receive, Scope, Send

from api.conditional import not_modified
from api.job_view import JobLooks
from api.request_counts import note_route

_JOB = re.compile(r"/v1/fine_tuning/jobs/([\w-]+)", re.ASCII)
_ROUTE = "/v1/fine_tuning/jobs/{job_id}"


class Unchanged:
    """ASGI middleware behind `Access`, which tells whose job may be asked for."""

    def __init__(self, app: ASGIApp, looks: JobLooks) -> None:
        self._app, self._looks = app, looks

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self._app
        if scope["type"] == "http" and scope["method"] == "GET":
            path = _JOB.fullmatch(get_route_path(scope))
            if path is not None and (request := Request(scope)).headers.get("if-none-match"):
                tag = await self._looks.tag(request.state.caller, path[1])
                if tag is not None and (answer := not_modified(request, tag)) is not None:
                    note_route(scope, _ROUTE)
                    app = answer
        await app(scope, receive, send)
