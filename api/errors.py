"""Errors as HTTP: every exception becomes a `LuthierError`, and every one of those the same body.

The body is OpenAI's, with the members of RFC 9457 beside it. Routes raise; what they raise on purpose is
answered here, and the rest goes on to the edge, which logs it and tells no more than its kind.
"""

import errno
from collections.abc import Mapping

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import iter_route_contexts
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from starlette.exceptions import HTTPException

# What routing itself goes by: below a path of its own the API is asked for with and without it.
from starlette.routing import get_route_path  # type: ignore[attr-defined]

from api.request_counts import note_error
from luthier.database import CommitUnknownError, is_busy, is_disk_full
from luthier.errors import CATALOGUE, LuthierError, printable
from luthier.request_errors import MAX_DETAILS, error_of_parameters

_RETRY_AFTER_SECONDS = 2
# OpenAI's clients wait no longer before they send a request again.
_LONGEST_WAIT_SECONDS = 60
_PROBLEM_JSON = "application/problem+json"
# Sending the same again may help with these; of all others, clients are told that it does not.
_WORTH_A_RETRY = frozenset({500, 503})
_CODE_OF_STATUS = {404: "not_found", 405: "method_not_allowed", 413: "body_too_large"}
_DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_UNAVAILABLE = (OperationalError, InterfaceError, PoolTimeoutError)


def add_error_handlers(app: FastAPI) -> None:
    """Have `app` answer what its routes and the framework raise on purpose."""
    for kind in (LuthierError, HTTPException, RequestValidationError):
        app.add_exception_handler(kind, _answer)


def describe(request: Request, error: Exception) -> LuthierError:
    """What a client may know of an exception."""
    match error:
        case LuthierError():
            return error
        case RequestValidationError():
            return error_of_parameters(error.errors())
        case HTTPException():
            return _of_status(request, error.status_code)
        case OSError() if error.errno in _DISK_FULL:
            return LuthierError("The server's disk is full: free some space, then send it again", "disk_full")
        case DBAPIError() if is_disk_full(error):
            return LuthierError(
                "The database's disk is full: free some space, then send it again", "disk_full"
            )
        case OperationalError() if is_busy(error):
            return LuthierError("The database was busy for too long: try again", "database_unavailable")
        case CommitUnknownError():
            text = "The database went away while it stored this: look whether it is there, then try again"
            return LuthierError(text, "database_unavailable")
        case _ if isinstance(error, _UNAVAILABLE):
            return LuthierError("The database cannot be reached now: try again", "database_unavailable")
        case _:
            return LuthierError(
                "The service failed. Its log tells why, under the x-request-id of this answer.",
                "server_error",
            )


def error_response(
    request: Request, error: LuthierError, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    """The answer to a request that failed."""
    note_error(request.scope, error.code)
    entry = CATALOGUE[error.code]
    body = {
        "error": {
            "message": error.message,
            "type": entry.type,
            "param": error.param,
            "code": error.code,
            "details": list(error.details)[:MAX_DETAILS],
        },
        "type": f"{request.scope.get('root_path', '')}/docs#{error.code}",
        "title": entry.title,
        "status": entry.status,
        "detail": error.message,
    }
    wants_problem = _PROBLEM_JSON in request.headers.get("accept", "")
    return JSONResponse(
        body,
        entry.status,
        {**(headers or {}), **_headers_of(entry.status, error.retry_after_seconds)},
        _PROBLEM_JSON if wants_problem else "application/json",
    )


async def _answer(request: Request, error: Exception) -> JSONResponse:
    told = describe(request, error)
    headers = {"Allow": _allowed_methods(request)} if told.code == "method_not_allowed" else None
    return error_response(request, told, headers)


def _allowed_methods(request: Request) -> str:
    """All methods of a path; the framework names those of one of its routes."""
    routes = iter_route_contexts(request.app.routes)
    found = {
        method
        for route in routes
        if route.path_regex.match(get_route_path(request.scope))
        for method in route.methods or ()
    }
    return ", ".join(sorted(found))


def _of_status(request: Request, status: int) -> LuthierError:
    """The error for a status that the framework chose."""
    place = f"{printable(request.method, 20)} {printable(request.scope['path'])}"
    code = _CODE_OF_STATUS.get(status, "server_error" if status >= 500 else "invalid_value")
    text = {
        404: f"There is nothing at {place}; /docs lists the calls",
        405: f"The path does not take this method: {place}",
    }.get(status, CATALOGUE[code].title)
    return LuthierError(text, code)


def _headers_of(status: int, retry_after_seconds: int | None) -> dict[str, str]:
    wait = _RETRY_AFTER_SECONDS if status == 503 and retry_after_seconds is None else retry_after_seconds
    is_short = wait is not None and wait <= _LONGEST_WAIT_SECONDS
    headers = {} if status in _WORTH_A_RETRY or is_short else {"x-should-retry": "false"}
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if wait is not None:
        headers["Retry-After"] = str(wait)
    return headers
