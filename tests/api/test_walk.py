"""A walk over every route, method and mounted app: who gets in, what a scope allows, what a stranger finds.

It asks the application for its routes and OpenAPI's document for bodies, so that a route which is added later
is walked, too. A collection (`POST /v1/things` beside `/v1/things/{id}`) has to have an example that can be
sent as it is: of it the walk makes the thing that a stranger then asks for.
"""

import dataclasses
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from fastapi import FastAPI, WebSocket, WebSocketDisconnect
from fastapi.routing import iter_route_contexts
from starlette.routing import Mount
from starlette.testclient import TestClient

from api.access import LOCAL, PUBLIC
from api.app import create_app
from luthier.installation import Installation
from luthier.keys import new_key
from luthier.service.access import PROJECT_SCOPES

_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
_READING = frozenset({"GET", "HEAD", "OPTIONS"})
_PARAMETER = re.compile(r"\{(\w+)(?::\w+)?\}")
_ADMIN = "/v1/organization"
_NOWHERE = ("/v1", "/v1/", "/v1/nothing", "/nothing", "//v1/files", "/v1/organization/nothing")


@dataclass
class Walk:
    """The application's routes, and the things that the walk has made, by the path of their collection."""

    routes: list[tuple[str, str]]
    document: dict[str, Any]
    made: dict[str, dict[str, Any]] = field(default_factory=dict)

    def body(self, method: str, path: str) -> dict[str, Any]:
        """What is sent: the example of a route that wants JSON."""
        if not self._wants_body(method, path):
            return {}
        example = self._example(method, path)
        return {"json": {} if example is None else example}

    def is_judged_by_its_body(self, method: str, path: str) -> bool:
        """Whether a body is wanted and none is known that is right."""
        return self._wants_body(method, path) and self._example(method, path) is None

    def filled(self, path: str) -> str:
        """A path with the ids of what was made in the place of its parameters."""

        def fill(match: re.Match[str]) -> str:
            made = self.made.get(path[: match.start() - 1], {})
            return str(made.get(match[1]) or made.get("id", "nothing"))

        return _PARAMETER.sub(fill, path)

    def collections(self) -> list[str]:
        """Paths where things are made that can then be asked for one by one."""
        return sorted(
            path
            for method, path in self.routes
            if method == "POST" and "{" not in path and any(f"{path}/{{" in other for _, other in self.routes)
        )

    def _wants_body(self, method: str, path: str) -> bool:
        return "requestBody" in self._operation(method, path)

    def _example(self, method: str, path: str) -> Any:
        content = self._operation(method, path)["requestBody"]["content"].get("application/json", {})
        named = [each["value"] for each in content.get("examples", {}).values()]
        return next(iter([*([content["example"]] if "example" in content else []), *named]), None)

    def _operation(self, method: str, path: str) -> dict[str, Any]:
        plain = _PARAMETER.sub(lambda match: f"{{{match[1]}}}", path)
        operation: dict[str, Any] = self.document["paths"].get(plain, {}).get(method.lower(), {})
        return operation


def _routes(app: FastAPI) -> Iterator[tuple[str, str]]:
    for context in iter_route_contexts(app.routes):
        path = context.path or ""
        if isinstance(context.original_route, Mount):
            yield from ((method, f"{path}{tail}") for method in _METHODS for tail in ("", "/", "/nothing"))
        else:
            yield from ((method, path) for method in sorted(context.methods or ()))


@pytest.fixture
def app(installation: Installation) -> FastAPI:
    """The application."""
    return create_app(installation)


@pytest.fixture
def walk(app: FastAPI, client: TestClient) -> Walk:
    """All routes, with nothing made yet."""
    return Walk(list(_routes(app)), client.get("/openapi.json").json())


@pytest.fixture
def made(walk: Walk, client: TestClient, file_id: str) -> Walk:
    """The same, with one thing in every collection of the client's project."""
    given = {
        "/v1/files": lambda: client.get(f"/v1/files/{file_id}"),
        "/v1/fine_tuning/jobs": lambda: client.post(
            "/v1/fine_tuning/jobs", json={"model": "tiny", "training_file": file_id}
        ),
        # By its address, since the example's host is looked up.
        "/v1/webhook_endpoints": lambda: client.post(
            "/v1/webhook_endpoints",
            json={**walk.body("POST", "/v1/webhook_endpoints")["json"], "url": "https://1.1.1.1/luthier"},
        ),
    }
    for path in walk.collections():
        make = given.get(path) or (lambda path=path: client.post(path, **walk.body("POST", path)))
        response = make()
        assert response.is_success, f"give {path} an example that can be sent as it is: {response.text}"
        walk.made[path] = response.json()
    return walk


def _stranger(app: FastAPI, key: str | None, **fields: Any) -> TestClient:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return TestClient(app, headers=headers, client=("203.0.113.7", 50000), **fields)


@pytest.mark.parametrize("presented", [None, new_key().text], ids=["no key", "a wrong key"])
def test_nobody_gets_in_without_a_key(installation: Installation, walk: Walk, presented: str | None) -> None:
    paths = {path for _, path in walk.routes} - PUBLIC
    assert {"/v1/files", "/v1/organization/projects/{project_id}/api_keys", "/metrics"} <= paths
    # Else it is soon not listened to any more.
    settings = installation.settings.model_copy(update={"wrong_keys_per_minute": 0})
    anybody = _stranger(create_app(dataclasses.replace(installation, settings=settings)), presented)
    for path in (*sorted(paths), *_NOWHERE):
        for method in _METHODS:
            response = anybody.request(method, path)
            assert response.status_code == 401, (method, path)
            assert response.headers["www-authenticate"] == "Bearer"
            assert method == "HEAD" or response.json()["error"]["code"] == "invalid_api_key"


def test_a_websocket_gets_nowhere(app: FastAPI, key: str) -> None:
    @app.websocket("/v1/socket")
    async def accept(socket: WebSocket) -> None:
        await socket.accept()

    with pytest.raises(WebSocketDisconnect), _stranger(app, key).websocket_connect("/v1/socket"):
        pass


def test_what_is_public_is_what_the_design_names(app: FastAPI) -> None:
    assert {"/livez", "/readyz", "/openapi.json", "/docs"} == PUBLIC
    assert {"/metrics"} == LOCAL
    anybody = _stranger(app, None)
    assert {path: anybody.get(path).status_code for path in PUBLIC} == dict.fromkeys(PUBLIC, 200)


@pytest.mark.parametrize(
    "scopes", [{"read"}, {"write"}, {"read", "write"}, {"admin"}], ids=lambda scopes: " ".join(sorted(scopes))
)
def test_a_key_without_the_scope_of_a_call_is_refused(
    app: FastAPI, walk: Walk, make_key: Callable[..., str], scopes: set[str]
) -> None:
    bearer = _stranger(app, make_key(scopes=scopes))
    calls = [(method, path) for method, path in walk.routes if path not in PUBLIC]
    calls += [(method, path) for path in _NOWHERE for method in ("GET", "POST")]
    for method, path in calls:
        is_admins = path == _ADMIN or path.startswith(f"{_ADMIN}/")
        wanted = "admin" if is_admins else "read" if method in _READING else "write"
        if wanted in scopes:
            continue
        response = bearer.request(method, path)
        assert response.status_code == 403, (method, path)
        assert method == "HEAD" or response.json()["error"]["code"] == "insufficient_permissions"


def test_a_stranger_finds_nothing_of_what_a_project_has(
    app: FastAPI, made: Walk, client: TestClient, make_key: Callable[..., str]
) -> None:
    stranger = _stranger(app, make_key("proj-other", scopes=PROJECT_SCOPES))
    # Else a stream would go on; whose jobs it tells of is a test of its own.
    app.state.broadcast.close()
    for method, path in made.routes:
        # What it makes itself would be there.
        if path in PUBLIC | LOCAL or (method == "POST" and path in made.made):
            continue
        response = stranger.request(method, made.filled(path), **made.body(method, path))
        if path.startswith(_ADMIN):
            expected = {403}
        elif "{" not in path:
            assert not [it for it in _ids(made) if it in response.text], (method, path)
            continue
        else:
            expected = {400, 404} if made.is_judged_by_its_body(method, path) else {404}
        assert response.status_code in expected, (method, path, response.text)
    for collection, thing in made.made.items():
        item = next(path for _, path in made.routes if path.startswith(f"{collection}/{{"))
        assert client.get(made.filled(item)).status_code in (200, 405), (item, thing)


def _ids(walk: Walk) -> list[str]:
    return [str(thing["id"]) for path, thing in walk.made.items() if not path.startswith(_ADMIN)]
