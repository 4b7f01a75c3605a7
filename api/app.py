"""The application: routes, and the layers that every request passes on its way to them.

From the outside: `Proxies` (who asks), CORS where it is wanted, `Edge` (request id, log, last resort),
`Hosts` (by which name), `Access` (a key, before any body is read), `RefuseNul`, `Unchanged` (304 to who polls
a job), the error handlers, the routes.
`create_app` connects to nothing.
"""

from typing import Any

from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware

from api.access import Access
from api.dependencies import REPLAYED
from api.edge import REQUEST_ID, Edge
from api.errors import add_error_handlers
from api.hosts import Hosts
from api.job_view import JobLooks
from api.nul import RefuseNul
from api.openapi import ERROR_RESPONSES, describe_api
from api.prometheus import BOUNDS_SECONDS
from api.proxies import Proxies
from api.request_counts import RequestCounts
from api.routes import (
    api_keys,
    artifacts,
    control,
    datasets,
    files,
    jobs,
    models,
    organization,
    permissions,
    progress,
    queue,
    secrets,
    service,
    streams,
    uploads,
    webhooks,
)
from api.streams.broadcast import Broadcast
from api.submitting import Submits
from api.unchanged import Unchanged
from luthier import __version__
from luthier.installation import Installation
from luthier.job_sums import JobSums
from luthier.settings import Settings, items

# What pages of other origins may read, beside the body. Names are named one by one: there are no patterns.
_EXPOSED = (
    REQUEST_ID,
    "etag",
    "repr-digest",
    "content-disposition",
    "content-range",
    "retry-after",
    "x-should-retry",
    REPLAYED,
    "ratelimit",
    "ratelimit-policy",
    "x-ratelimit-limit-requests",
    "x-ratelimit-remaining-requests",
    "x-ratelimit-reset-requests",
)


def create_app(installation: Installation) -> FastAPI:
    """An application that serves one installation; whoever opened that closes it."""
    app = create_api()
    app.state.installation = installation
    if root_path := installation.settings.root_path:
        app.servers = [{"url": root_path}]
    app.state.broadcast = Broadcast(installation)
    app.state.job_looks = JobLooks(installation.database)
    app.state.submits = Submits(installation)
    app.state.job_sums = JobSums(BOUNDS_SECONDS)
    app.state.request_counts = RequestCounts()
    _add_layers(app, installation)
    return app


def create_api() -> FastAPI:
    """The routes alone, with nothing to serve: what the API is described by."""
    app = _Application(
        title="Luthier",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        responses=ERROR_RESPONSES,
    )
    add_error_handlers(app)
    for module in (
        files,
        uploads,
        datasets,
        jobs,
        control,
        queue,
        progress,
        streams,
        artifacts,
        permissions,
        models,
        webhooks,
        organization,
        api_keys,
        secrets,
        service,
    ):
        app.include_router(module.router)
    return app


def _add_layers(app: FastAPI, installation: Installation) -> None:
    """The layers from the innermost to the outermost."""
    settings = installation.settings
    app.add_middleware(Unchanged, looks=app.state.job_looks)
    app.add_middleware(RefuseNul)
    app.add_middleware(Access, installation=installation)
    app.add_middleware(Hosts, settings=settings)
    app.add_middleware(Edge, counts=app.state.request_counts)
    if settings.cors_origins:
        _allow_origins(app, settings)
    app.add_middleware(Proxies, networks=settings.proxy_networks, root_path=settings.root_path)


def _allow_origins(app: FastAPI, settings: Settings) -> None:
    """Let pages of some origins call, with a key in a header; there are no cookies."""
    app.add_middleware(
        CORSMiddleware,
        allow_origins=items(settings.cors_origins),
        allow_methods=["*"],
        allow_headers=["*"],
        expose_headers=_EXPOSED,
    )


class _Application(FastAPI):
    """FastAPI with our description of the API."""

    def openapi(self) -> dict[str, Any]:
        if not self.openapi_schema:
            self.openapi_schema = describe_api(self)
        return self.openapi_schema
