"""What routes are given: the installation, the caller, a checked body, and the page that is asked for."""

import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Query, Request
from starlette.concurrency import run_in_threadpool

from api import job_body
from api.json_body import read_json_or_yaml, read_object
from api.streams.broadcast import Broadcast
from luthier.installation import Installation
from luthier.llamafactory import is_llamafactory
from luthier.request_errors import Body, parse_body, parse_job
from luthier.service import idempotency
from luthier.service.idempotency import Mark
from luthier.service.jobs import Caller
from luthier.spec import JobRequest

# Tells that an answer is that of an earlier request of the same key.
REPLAYED = "Idempotent-Replayed"
_KEY, _RESENT = "idempotency-key", "x-stainless-retry-count"


async def get_installation(request: Request) -> Installation:
    installation: Installation = request.app.state.installation
    return installation


async def get_caller(request: Request) -> Caller:
    caller: Caller = request.state.caller
    return caller


async def get_broadcast(request: Request) -> Broadcast:
    broadcast: Broadcast = request.app.state.broadcast
    return broadcast


InstallationOf = Annotated[Installation, Depends(get_installation)]
CallerOf = Annotated[Caller, Depends(get_caller)]
BroadcastOf = Annotated[Broadcast, Depends(get_broadcast)]


async def read_job_request(request: Request, installation: InstallationOf, caller: CallerOf) -> JobRequest:
    """The body of a new job, in JSON or YAML, of ours or of LLaMA-Factory's."""
    return (await _read_job(request, installation, caller))[0]


async def _read_job(
    request: Request, installation: Installation, caller: Caller
) -> tuple[JobRequest, list[str]]:
    """The same, with notes about how it is understood."""
    body = await read_json_or_yaml(request, installation.settings)
    notes: list[str] = []
    if is_llamafactory(body):
        body, notes = await run_in_threadpool(job_body.from_llamafactory, installation, caller, body)
    return parse_job(body), notes


@dataclass(frozen=True)
class Submission:
    """A new job as it was asked for.

    Attributes:
        notes: how the body is understood, for the job's events.
        mark: by what the request is known when it is sent again; None where nothing says so.
    """

    request: JobRequest
    notes: list[str]
    mark: Mark | None


async def read_submission(request: Request, installation: InstallationOf, caller: CallerOf) -> Submission:
    """All of a submit in one: each dependency costs what a small statement does."""
    body, notes = await _read_job(request, installation, caller)
    return Submission(body, notes, _mark(request, caller))


def body_of(model: type[Body]) -> Callable[..., Awaitable[Body]]:
    """A dependency that reads a JSON body of that form."""

    async def read(request: Request, installation: InstallationOf) -> Body:
        return parse_body(await read_object(request, installation.settings), model)

    return read


def optional_body_of(model: type[Body]) -> Callable[..., Awaitable[Body]]:
    """The same, where no body stands for one without fields."""
    read_body = body_of(model)

    async def read(request: Request, installation: InstallationOf) -> Body:
        is_empty = request.headers.get("content-length", "0") == "0"
        if is_empty and "transfer-encoding" not in request.headers:
            return model()
        return await read_body(request, installation)

    return read


def mark_of(read_body: Callable[..., Awaitable[object]]) -> Callable[..., Awaitable[Mark | None]]:
    """A dependency that tells by what a request is known when it is sent again; None where nothing says so.

    Args:
        read_body: the dependency that reads the request's body.
    """

    async def read(
        request: Request, caller: CallerOf, _body: Annotated[object, Depends(read_body)]
    ) -> Mark | None:
        return _mark(request, caller)

    return read


def _mark(request: Request, caller: Caller) -> Mark | None:
    """Clients of OpenAI's send no `Idempotency-Key`, but count how often they have sent a request before."""
    parts = (request.method, request.scope["path"], request.url.query, request.state.body_sha256)
    sha256 = hashlib.sha256("\n".join(parts).encode()).hexdigest()
    key, resent = request.headers.get(_KEY), request.headers.get(_RESENT, "")
    if key is not None:
        return Mark(idempotency.check_key(key), sha256)
    if not resent.isdecimal():
        return None
    return Mark(
        f"resent {caller.api_key_id} {sha256}",
        sha256,
        kept_seconds=idempotency.RESENT_SECONDS,
        is_first=int(resent) == 0,
    )


JobBody = Annotated[JobRequest, Depends(read_job_request)]
SubmissionOf = Annotated[Submission, Depends(read_submission)]
After = Annotated[str | None, Query(description="Id of the last row of the page before")]
Limit = Annotated[int, Query(ge=1, description="Rows of a page; larger numbers are cut to the maximum")]
