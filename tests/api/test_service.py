"""What the service tells about itself."""

import dataclasses
import re
from typing import Any

import pytest
from starlette.testclient import TestClient

from api.app import create_app
from luthier import schema
from luthier.database import Database
from luthier.errors import CATALOGUE
from luthier.installation import Installation
from luthier.spec import JobRequest


def test_a_prepared_service_is_alive_and_ready(client: TestClient) -> None:
    assert client.get("/livez").json() == {"status": "ok"}
    assert client.get("/readyz").json() == {"status": "ready"}


def test_an_old_schema_is_not_ready(client: TestClient, installation: Installation) -> None:
    schema.downgrade(installation.database, "base")
    response = client.get("/readyz")
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (503, "not_ready")
    assert "schema: the database has None" in error["message"]


def test_without_its_database_the_service_lives_and_says_what_is_missing(installation: Installation) -> None:
    away = Database("postgresql://luthier@127.0.0.1:1/none")
    app = create_app(dataclasses.replace(installation, database=away))
    with TestClient(app, headers={"Authorization": "Bearer lk_x"}) as client:
        assert client.get("/livez").status_code == 200
        ready = client.get("/readyz")
    assert (ready.status_code, [item["loc"] for item in ready.json()["error"]["details"]]) == (
        503,
        ["database"],
    )
    assert ready.headers["retry-after"]


def test_a_request_without_database_may_be_tried_again(installation: Installation, key: str) -> None:
    away = Database("postgresql://luthier@127.0.0.1:1/none")
    app = create_app(dataclasses.replace(installation, database=away))
    with TestClient(app, headers={"Authorization": f"Bearer {key}"}) as client:
        response = client.get("/v1/files")
    assert (response.status_code, response.json()["error"]["code"]) == (503, "database_unavailable")
    assert response.headers["retry-after"]
    assert "x-should-retry" not in response.headers


def test_what_nobody_foresaw_is_500_without_its_inside(
    client: TestClient, installation: Installation
) -> None:
    def broken() -> None:
        raise RuntimeError("SECRET of the inside")

    app = create_app(installation)
    app.add_api_route("/v1/broken", broken)
    with TestClient(app, headers=client.headers) as broken_client:
        response = broken_client.get("/v1/broken", headers={"x-request-id": "mine-1"})
    assert (response.status_code, response.json()["error"]["code"]) == (500, "server_error")
    assert "SECRET" not in response.text
    assert response.headers["x-request-id"] == "mine-1"


@pytest.mark.parametrize("asked", ["", "a b", "x" * 500, "é"])
def test_a_strange_request_id_is_replaced(client: TestClient, asked: str) -> None:
    answer = client.get("/livez", headers={"x-request-id": asked.encode()})
    assert re.fullmatch(r"req-\w{24}", answer.headers["x-request-id"])


def test_an_error_is_problem_json_for_whom_asks(client: TestClient) -> None:
    plain = client.get("/v1/files/x")
    problem = client.get("/v1/files/x", headers={"Accept": "application/problem+json"})
    assert plain.headers["content-type"] == "application/json"
    assert problem.headers["content-type"] == "application/problem+json"
    assert plain.json() == problem.json()


def _references(node: Any) -> set[str]:
    """Every $ref in a document."""
    if isinstance(node, dict):
        found = {node["$ref"]} if "$ref" in node else set()
        return found.union(*(_references(inner) for inner in node.values()))
    return set().union(*(_references(inner) for inner in node)) if isinstance(node, list) else set()


def test_the_description_is_whole(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    operations = [call for calls in document["paths"].values() for call in calls.values()]
    assert document["openapi"].startswith("3.1")
    assert len({call["operationId"] for call in operations}) == len(operations)
    for reference in _references(document):
        _, components, kind, name = reference.split("/")
        assert name in document[components][kind]
    error = document["components"]["schemas"]["Error"]["properties"]["error"]["properties"]
    assert error["code"]["enum"] == list(CATALOGUE)
    body = document["paths"]["/v1/fine_tuning/jobs"]["post"]["requestBody"]["content"]["application/json"]
    assert body["schema"]["$ref"].endswith("/JobRequest")
    assert set(document["components"]["schemas"]["JobRequest"]["properties"]) == set(JobRequest.model_fields)
    ways = {path: next(iter(calls.values()))["security"] for path, calls in document["paths"].items()}
    closed = [path for path, way in ways.items() if way == [{"key": []}]]
    assert closed == [path for path in document["paths"] if path.startswith("/v1/")]


def test_the_page_for_people_works_without_a_network(client: TestClient) -> None:
    response = client.get("/docs")
    page = response.text
    assert "<script" not in page
    assert "http://" not in page
    assert "https://" not in page
    assert "default-src 'none'" in response.headers["content-security-policy"]
    assert all(f'id="{code}"' in page for code in CATALOGUE)
    assert "POST /v1/fine_tuning/jobs" in page
    assert "max_seq_length" in page
