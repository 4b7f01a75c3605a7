"""No NUL character in a path or a query: Postgres cannot even be asked about one."""

from starlette.types import ASGIApp, Receive, Scope, Send

from luthier.errors import invalid


class RefuseNul:
    """ASGI middleware that lets requests without one pass."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and ("\0" in scope["path"] or b"%00" in scope["query_string"]):
            raise invalid("The path or the query holds a NUL character")
        await self._app(scope, receive, send)
