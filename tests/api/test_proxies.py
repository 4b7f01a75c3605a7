"""Behind a proxy and at a name: whose word counts, by which names the API answers, and under which path."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
from fastapi import Request
from starlette.testclient import TestClient

from api.app import create_app
from luthier.installation import Installation
from luthier.settings import Settings

_PROXY, _ELSEWHERE = ("10.1.2.3", 4000), ("203.0.113.7", 4000)


@pytest.fixture
def open_app(installation: Installation, key: str) -> Callable[..., TestClient]:
    """Makes clients of an application with other settings; it has a route that tells what it sees."""

    def make(
        client: tuple[str, int] = _ELSEWHERE, base_url: str = "http://testserver", **fields: Any
    ) -> TestClient:
        settings = installation.settings.model_copy(update=fields)
        app = create_app(dataclasses.replace(installation, settings=settings))

        @app.get("/v1/seen")
        async def seen(request: Request) -> dict[str, Any]:
            return {"client": request.client.host if request.client else None, "url": str(request.url)}

        headers = {"Authorization": f"Bearer {key}"}
        return TestClient(app, headers=headers, client=client, base_url=base_url)

    return make


@pytest.mark.parametrize(
    ("forwarded", "seen"),
    [
        ("198.51.100.1", "198.51.100.1"),
        ("6.6.6.6, 198.51.100.1", "198.51.100.1"),
        ("6.6.6.6, 198.51.100.1, 10.9.9.9", "198.51.100.1"),
        ("[2001:db8::1]:443", "2001:db8::1"),
        ("198.51.100.1:51000", "198.51.100.1"),
        ("::ffff:198.51.100.1", "198.51.100.1"),
        ("10.9.9.9", "10.9.9.9"),
        ("6.6.6.6, nonsense", "10.1.2.3"),
        ("", "10.1.2.3"),
    ],
)
def test_of_a_trusted_chain_the_rightmost_stranger_is_the_client(
    open_app: Callable[..., TestClient], forwarded: str, seen: str
) -> None:
    client = open_app(_PROXY, trusted_proxies="10.0.0.0/8, 2001:db8:ffff::/48")
    told = client.get("/v1/seen", headers={"X-Forwarded-For": forwarded, "X-Forwarded-Proto": "https"}).json()
    assert told == {"client": seen, "url": "https://testserver/v1/seen"}


def test_the_name_that_a_trusted_proxy_was_called_by_counts(open_app: Callable[..., TestClient]) -> None:
    client = open_app(_PROXY, trusted_proxies="10.0.0.0/8", public_url="https://tune.example")
    headers = {"X-Forwarded-Host": "tune.example", "Host": "api:8000"}
    assert client.get("/v1/seen", headers=headers).json()["url"] == "http://tune.example/v1/seen"
    evil = client.get("/v1/seen", headers=headers | {"X-Forwarded-Host": "evil.example"})
    assert evil.status_code == 421


@pytest.mark.parametrize("trusted", ["", "10.0.0.0/8"])
def test_the_word_of_anybody_else_changes_nothing(open_app: Callable[..., TestClient], trusted: str) -> None:
    headers = {f"X-Forwarded-{name}": "198.51.100.1" for name in ("For", "Proto", "Host")}
    told = open_app(_ELSEWHERE, trusted_proxies=trusted).get("/v1/seen", headers=headers).json()
    assert told == {"client": "203.0.113.7", "url": "http://testserver/v1/seen"}


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:8000", 200), ("127.0.0.1", 200), ("[::1]:8000", 200), ("tune.example", 200),
        ("TUNE.example.:443", 200), ("named.example", 200), ("a.wild.example", 200),
        ("a.b.wild.example", 421),
        ("evil.example", 421), ("127.0.0.1.evil.example", 421), ("localhost.evil.example", 421),
        ("198.51.100.1", 421), ("", 421), ("[", 421),
    ],
)  # fmt: skip
def test_the_api_answers_to_its_own_names_alone(
    open_app: Callable[..., TestClient], host: str, status: int
) -> None:
    client = open_app(public_url="https://tune.example/x", allowed_hosts="named.example, *.wild.example")
    response = client.get("/livez", headers={"Host": host})
    assert response.status_code == status
    if status == 421:
        assert response.json()["error"]["code"] == "host_not_allowed"


def test_who_listens_everywhere_answers_to_addresses_and_a_star_is_all(
    open_app: Callable[..., TestClient],
) -> None:
    everywhere = open_app(host="0.0.0.0", public_url="https://tune.example")  # noqa: S104, nothing is bound
    asked = [
        everywhere.get("/livez", headers={"Host": host}).status_code
        for host in ("198.51.100.1", "evil.example")
    ]
    assert asked == [200, 421]
    assert open_app(allowed_hosts="*").get("/livez", headers={"Host": "any.example"}).status_code == 200


def test_the_public_urls_path_is_where_the_api_is_found(
    open_app: Callable[..., TestClient], key: str
) -> None:
    client = open_app(public_url="https://tune.example/luthier/")
    for path in ("/luthier/v1/files", "/v1/files"):
        assert client.get(path).status_code == 200
        assert client.get(path, headers={"Authorization": "Bearer x"}).status_code == 401
    assert client.get("/luthier/livez", headers={"Authorization": ""}).status_code == 200
    refused = client.get("/luthier/v1/nothing")
    assert (refused.status_code, refused.json()["type"]) == (404, "/luthier/docs#not_found")
    assert client.get("/luthier/v1/organization/projects").status_code == 200
    assert client.put("/luthier/v1/files").headers["allow"] == "GET, POST"


def test_probes_below_the_public_urls_path_are_not_counted(open_app: Callable[..., TestClient]) -> None:
    client = open_app(public_url="https://tune.example/luthier")
    for path in ("/livez", "/luthier/livez", "/luthier/v1/files"):
        client.get(path)
    app: Any = client.app
    (metric,) = app.state.request_counts.collect()
    assert {sample.labels["route"] for sample in metric.samples} == {"/v1/files"}


def test_a_path_below_the_public_urls_is_held_to_the_same_scopes(
    open_app: Callable[..., TestClient], make_key: Callable[..., str]
) -> None:
    client = open_app(public_url="https://tune.example/luthier")
    headers = {"Authorization": f"Bearer {make_key(scopes=['read', 'write'])}"}
    for path in ("/luthier/v1/organization/projects", "/v1/organization/projects"):
        assert client.get(path, headers=headers).status_code == 403


def test_pages_elsewhere_may_not_call_unless_they_are_named(open_app: Callable[..., TestClient]) -> None:
    page = {"Origin": "https://page.example", "Access-Control-Request-Method": "GET", "Authorization": ""}
    closed = open_app()
    assert closed.options("/v1/files", headers=page).status_code == 401
    assert "access-control-allow-origin" not in closed.get("/v1/files", headers=page).headers
    opened = open_app(cors_origins="https://page.example")
    asked = opened.options("/v1/files", headers=page)
    assert (asked.status_code, asked.headers["access-control-allow-origin"]) == (200, "https://page.example")
    refused = opened.get("/v1/files", headers=page)
    assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (
        401,
        "https://page.example",
    )
    stranger = opened.get("/livez", headers={"Origin": "https://evil.example"})
    assert "access-control-allow-origin" not in stranger.headers
    assert "access-control-allow-credentials" not in asked.headers
    exposed = {name.strip() for name in refused.headers["access-control-expose-headers"].lower().split(",")}
    assert {"x-ratelimit-limit-requests", "idempotent-replayed", "x-should-retry", "content-range"} <= exposed


@pytest.mark.parametrize(
    ("fields", "variable"),
    [
        ({"host": "192.0.2.1"}, "LUTHIER_PUBLIC_URL"),
        ({"public_url": "tune.example"}, "LUTHIER_PUBLIC_URL"),
        ({"public_url": "https://tune.example/?a=1"}, "LUTHIER_PUBLIC_URL"),
        ({"trusted_proxies": "10.0.0.1/8"}, "LUTHIER_TRUSTED_PROXIES"),
        ({"cors_origins": "https://page.example/path"}, "LUTHIER_CORS_ORIGINS"),
        ({"cors_origins": "*"}, "LUTHIER_CORS_ORIGINS"),
    ],
)
def test_addresses_that_make_no_sense_are_told_by_name(fields: dict[str, str], variable: str) -> None:
    (problem,) = Settings(**fields).problems()
    assert problem.startswith(variable) or variable in problem


def test_addresses_of_this_machine_need_no_public_url() -> None:
    assert [Settings(host=host).problems() for host in ("localhost", "127.0.0.2", "::1")] == [[], [], []]
