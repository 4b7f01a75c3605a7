"""The application: routes, and the layers that every request passes on its way to them.

From the outside: `Edge` (request id, log, last resort), `Access` (a key, before any body is read), the error
handlers, the routes. `create_app` connects to nothing.
"""

from typing import Any

from fastapi import Depends, FastAPI

from api.access import Access
from api.dependencies import refuse_nul
from api.edge import Edge
from api.errors import add_error_handlers
from api.openapi import ERROR_RESPONSES, describe_api
from api.prometheus import BOUNDS_SECONDS
from api.routes import artifacts, control, datasets, files, jobs, models, progress, queue, service, streams
from api.streams.broadcast import Broadcast
from luthier import __version__
from luthier.installation import Installation
from luthier.job_sums import JobSums


def create_app(installation: Installation) -> FastAPI:
    """An application that serves one installation; whoever opened that closes it."""
    app = create_api()
    app.state.installation = installation
    app.state.broadcast = Broadcast(installation)
    app.state.job_sums = JobSums(BOUNDS_SECONDS)
    app.add_middleware(Access, installation=installation)
    app.add_middleware(Edge)
    return app


def create_api() -> FastAPI:
    """The routes alone, with nothing to serve: what the API is described by."""
    app = _Application(
        title="Luthier",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        dependencies=[Depends(refuse_nul)],
        responses=ERROR_RESPONSES,
    )
    add_error_handlers(app)
    for module in (files, datasets, jobs, control, queue, progress, streams, artifacts, models, service):
        app.include_router(module.router)
    return app


class _Application(FastAPI):
    """FastAPI with our description of the API."""

    def openapi(self) -> dict[str, Any]:
        if not self.openapi_schema:
            self.openapi_schema = describe_api(self)
        return self.openapi_schema
