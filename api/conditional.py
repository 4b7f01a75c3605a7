"""ETags of what is shown as JSON, and the conditions of requests on them (RFC 9110, 13.1).

The tags are weak: two answers of one tag say the same, but for what drifts with the clock.
"""

from hashlib import blake2b

from fastapi import Request, Response
from pydantic import BaseModel

_CACHE = "private, no-cache"


def holds(header: str | None, opaque: str) -> bool:
    """Whether a list of ETags holds this one; the weak form counts, too."""
    tags = [tag.strip().removeprefix("W/") for tag in (header or "").split(",")]
    return "*" in tags or f'"{opaque}"' in tags


def not_modified(request: Request, opaque: str) -> Response | None:
    """The answer to who has this version already; None for all others."""
    if not holds(request.headers.get("if-none-match"), opaque):
        return None
    return Response(status_code=304, headers=_headers(opaque))


def tagged(request: Request, shown: BaseModel, opaque: str | None = None) -> Response:
    """What is shown, under its tag; without one, under the hash of its bytes, or 304 where they are known."""
    body = shown.model_dump_json(by_alias=True).encode()
    if opaque is None:
        opaque = blake2b(body, digest_size=16).hexdigest()
        if (answer := not_modified(request, opaque)) is not None:
            return answer
    return Response(body, headers=_headers(opaque), media_type="application/json")


def _headers(opaque: str) -> dict[str, str]:
    return {"ETag": f'W/"{opaque}"', "Cache-Control": _CACHE}
