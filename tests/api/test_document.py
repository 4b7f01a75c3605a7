"""The OpenAPI document: as committed, valid, with examples that are true, and all that can go wrong."""

import json
from typing import Any

import httpx2
import jsonschema_rs
import pytest
from openai import OpenAI
from schemathesis.specs.openapi.definitions import OPENAPI_31_VALIDATOR

from api import examples, openapi
from api.app import create_api
from api.document import PATH, document_text
from luthier.errors import CATALOGUE
from luthier.request_errors import parse_body

# What is answered where no operation is.
_OF_NO_OPERATION: set[str] = set()
_OPENAI_ANSWERS = {
    "FileObject": lambda client: client.files.retrieve("x"),
    "FileDeleted": lambda client: client.files.delete("x"),
    "ListPage_FileObject_": lambda client: client.files.list(),
    "JobObject": lambda client: client.fine_tuning.jobs.retrieve("x"),
    "ListPage_JobObject_": lambda client: client.fine_tuning.jobs.list(),
    "ListPage_EventObject_": lambda client: client.fine_tuning.jobs.list_events("x"),
    "ListPage_CheckpointObject_": lambda client: client.fine_tuning.jobs.checkpoints.list("x"),
    "ModelObject": lambda client: client.models.retrieve("x"),
    "ModelList": lambda client: client.models.list(),
}


@pytest.fixture(scope="module")
def document() -> Any:
    return create_api().openapi()


def _operations(document: Any) -> list[tuple[str, str, Any]]:
    return [
        (path, method, operation)
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
    ]


def test_the_committed_document_is_the_one_that_is_served() -> None:
    assert PATH.read_text(encoding="utf-8") == document_text(), "`make openapi` writes it anew"


def test_the_document_is_valid_openapi_3_1(document: Any) -> None:
    assert document["openapi"].startswith("3.1")
    assert [error.message for error in OPENAPI_31_VALIDATOR.iter_errors(document)] == []


def _validator(document: Any, name: str) -> jsonschema_rs.Draft202012Validator:
    schema = {"$ref": f"#/components/schemas/{name}", "components": document["components"]}
    return jsonschema_rs.Draft202012Validator(schema)


@pytest.mark.parametrize("name", [*examples.ANSWERS, *examples.BODIES])
def test_an_example_is_of_its_schema(document: Any, name: str) -> None:
    example = {**examples.ANSWERS, **examples.BODIES}[name]
    assert [error.message for error in _validator(document, name).iter_errors(example)] == []


def test_every_body_and_every_main_answer_has_an_example(document: Any) -> None:
    assert set(examples.BODIES) == {model.__name__ for model in openapi.BODY_MODELS}
    for path, method, operation in _operations(document):
        for content in operation.get("requestBody", {}).get("content", {}).values():
            assert "example" in content, (method, path)


@pytest.mark.parametrize("model", openapi.BODY_MODELS, ids=lambda model: model.__name__)
def test_the_example_of_a_body_is_taken(model: Any) -> None:
    assert parse_body(examples.BODIES[model.__name__], model)


@pytest.mark.parametrize("name", _OPENAI_ANSWERS)
def test_openais_client_reads_the_example_of_an_answer_strictly(name: str) -> None:
    transport = httpx2.MockTransport(lambda _: httpx2.Response(200, json=examples.ANSWERS[name]))
    with (
        httpx2.Client(transport=transport) as http_client,
        OpenAI(
            base_url="http://luthier/v1",
            api_key="x",
            http_client=http_client,
            _strict_response_validation=True,
        ) as client,
    ):
        shown = _OPENAI_ANSWERS[name](client)
    assert json.loads(shown.model_dump_json())["object"] == examples.ANSWERS[name]["object"]


def test_every_operation_says_what_it_is_and_how_it_fails(document: Any) -> None:
    names = [operation["operationId"] for _, _, operation in _operations(document)]
    assert len(set(names)) == len(names)
    for path, method, operation in _operations(document):
        assert operation["description"], (method, path)
        assert "422" not in operation["responses"] or "idempotency" in json.dumps(
            operation["responses"]["422"]
        )
        if path.startswith("/v1/"):
            assert {"401", "500", "503"} <= set(operation["responses"]), (method, path)
            assert operation["security"] == [{"key": []}]


def test_what_no_signature_tells_is_described(document: Any) -> None:
    told = {operation["operationId"]: operation for _, _, operation in _operations(document)}
    named = {
        name: {one["name"] for one in told[name]["parameters"]} for name in ("list_jobs", "list_audit_logs")
    }
    assert {"metadata", "If-None-Match"} <= named["list_jobs"]
    assert {"effective_at", "event_types[]", "resource_ids[]"} <= named["list_audit_logs"]
    metrics, created = told["get_prometheus_metrics"], told["create_job"]["responses"]
    assert metrics["security"] == [{"key": []}, {}]
    assert {"401", "403"} <= set(metrics["responses"])
    assert {"x-request-id", "Idempotent-Replayed"} <= set(created["200"]["headers"])
    assert {"Retry-After", "RateLimit", "x-should-retry"} <= set(created["429"]["headers"])
    assert told["get_file_content"]["responses"]["206"]["headers"]["Content-Range"]


def test_every_code_of_the_catalogue_belongs_to_an_operation(document: Any) -> None:
    told = json.dumps(document["paths"])
    assert {code for code in CATALOGUE if f"`{code}`" not in told} == _OF_NO_OPERATION


def test_every_link_leads_to_an_operation(document: Any) -> None:
    names = {operation["operationId"] for _, _, operation in _operations(document)}
    links = [
        link
        for _, _, operation in _operations(document)
        for response in operation["responses"].values()
        for link in response.get("links", {}).values()
    ]
    assert links
    assert {link["operationId"] for link in links} <= names
