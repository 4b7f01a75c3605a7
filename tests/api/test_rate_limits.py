"""Requests a minute: of the setting or of the key, over all processes, and told in every answer."""

import dataclasses
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from starlette.testclient import TestClient

from api.app import create_app
from api.rate_limits import Requests
from luthier.installation import Installation
from luthier.service.access import Grant
from luthier.service.jobs import Caller
from tests.waiting import wait_for


@pytest.fixture
def limited(installation: Installation) -> Installation:
    """The installation with a limit of three."""
    settings = installation.settings.model_copy(update={"requests_per_minute": 3})
    return dataclasses.replace(installation, settings=settings)


def _client(installation: Installation, key: str) -> TestClient:
    return TestClient(create_app(installation), headers={"Authorization": f"Bearer {key}"})


def _spent(client: TestClient) -> Any:
    """The answer to the first request that is too many; another minute may begin meanwhile."""
    return wait_for(lambda: next((r for r in (client.get("/v1/files"),) if r.status_code == 429), None))


def test_who_has_sent_too_many_is_told_when_to_come_back(
    limited: Installation, make_key: Callable[..., str]
) -> None:
    client = _client(limited, make_key())
    first = client.get("/v1/files").headers
    assert (first["x-ratelimit-limit-requests"], first["ratelimit-policy"]) == ("3", '"default";q=3;w=60')
    refused = _spent(client)
    assert refused.json()["error"]["code"] == "rate_limit_exceeded"
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert refused.headers["x-ratelimit-remaining-requests"] == "0"
    assert refused.headers["ratelimit"] == f'"default";r=0;t={refused.headers["retry-after"]}'
    assert "x-should-retry" not in refused.headers
    assert client.get("/livez").status_code == 200


def test_a_key_has_a_limit_of_its_own_or_none(limited: Installation, make_key: Callable[..., str]) -> None:
    free = _client(limited, make_key(requests_per_minute=0))
    assert {free.get("/v1/files").status_code for _ in range(6)} == {200}
    assert "ratelimit" not in free.get("/v1/files").headers
    own = _client(limited, make_key(requests_per_minute=1))
    assert own.get("/v1/files").headers["x-ratelimit-limit-requests"] == "1"


def test_without_a_limit_nothing_is_said_of_one(client: TestClient) -> None:
    assert not [name for name in client.get("/v1/files").headers if "ratelimit" in name]


def test_processes_share_what_they_have_counted(
    installation: Installation, make_key: Callable[..., str]
) -> None:
    make_key()
    grant = Grant(Caller("org-local", "proj-default", "key-1"), frozenset({"read"}))
    one, other = (Requests(100, share_every_seconds=0) for _ in range(2))

    def remaining() -> set[int]:
        """What both say is left; of two minutes, where one begins between them."""
        for requests in (one, other, one):
            requests.share(installation.database, grant)
        counted = [requests.count(grant) for requests in (one, other)]
        return {allowance.remaining for allowance in counted if allowance}

    for _ in range(10):
        one.count(grant)
        other.count(grant)
    wait_for(lambda: len(remaining()) == 1)
    assert max(remaining()) < 90


def test_requests_that_are_shared_by_many_threads_at_once_are_counted_once(
    installation: Installation, make_key: Callable[..., str]
) -> None:
    make_key()
    grant = Grant(Caller("org-local", "proj-default", "key-1"), frozenset({"read"}))

    one, other = (Requests(100, share_every_seconds=0) for _ in range(2))
    # No other minute begins below.
    wait_for(lambda: time.time() % 60 < 50)
    for _ in range(20):
        one.count(grant)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: one.share(installation.database, grant), range(8)))
    other.share(installation.database, grant)
    allowance = other.count(grant)
    assert allowance is not None
    assert allowance.remaining == 79
