"""What machines ask about the service itself: is it alive, is it ready, how does it fare, what can it do."""

from collections.abc import Mapping

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, Response
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import CollectorRegistry
from sqlalchemy.exc import SQLAlchemyError

from api.dependencies import InstallationOf
from api.page import build_page
from api.prometheus import DatabaseCollector
from luthier import repository
from luthier.disk import has_room
from luthier.errors import LuthierError
from luthier.installation import Installation
from luthier.schema import wanted_revision

_PAGE_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"

router = APIRouter(tags=["service"])


@router.get("/livez", operation_id="get_liveness")
async def get_liveness() -> dict[str, str]:
    """Whether this process answers; nothing else is asked."""
    return {"status": "ok"}


@router.get("/readyz", operation_id="get_readiness")
def get_readiness(installation: InstallationOf) -> dict[str, str]:
    """Whether this process can work: database, schema and disk; 503 names what is wrong."""
    if problems := _problems(installation):
        text = "; ".join(f"{name}: {problem}" for name, problem in problems.items())
        details = [{"loc": name, "message": problem} for name, problem in problems.items()]
        raise LuthierError(f"Not ready. {text}", "not_ready", details=details)
    return {"status": "ready"}


@router.get("/metrics", operation_id="get_prometheus_metrics", response_class=Response)
def get_prometheus_metrics(request: Request, installation: InstallationOf) -> Response:
    """Metrics for Prometheus, read from the database but for the count of requests; with a key, or from this
    machine without one.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(DatabaseCollector(installation, request.app.state.job_sums))
    registry.register(request.app.state.request_counts)
    encode, media_type = choose_encoder(request.headers.get("accept", ""))
    return Response(encode(registry), headers={"Content-Type": media_type})


@router.get("/docs", include_in_schema=False)
async def get_docs(request: Request) -> HTMLResponse:
    """The API for people."""
    return HTMLResponse(build_page(request.app.openapi()), headers={"Content-Security-Policy": _PAGE_POLICY})


def _problems(installation: Installation) -> Mapping[str, str]:
    """What keeps this process from working, by the check that found it."""
    found: dict[str, str] = {}
    try:
        with installation.database.reading() as session:
            current = repository.find_schema_revision(session)
    except SQLAlchemyError:
        found["database"] = "it cannot be reached"
    else:
        if current != (wanted := wanted_revision()):
            found["schema"] = f"the database has {current}, this release wants {wanted}: luthier db upgrade"
    if not has_room(installation):
        found["disk"] = "the storage folder or the database has too little free space"
    return found
