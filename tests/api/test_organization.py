"""Projects, keys and the audit log over HTTP, in OpenAI's shapes and through its client."""

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from openai import OpenAI
from starlette.testclient import TestClient

from api.app import create_app
from luthier.client import ApiError, AsyncClient, Client
from luthier.installation import Installation
from luthier.service.access import PROJECT_SCOPES
from luthier.status import State
from luthier.tables import ApiKey, Job
from tests.waiting import wait_for

_PROJECTS = "/v1/organization/projects"
_ADMINS = "/v1/organization/admin_api_keys"


@pytest.fixture
def admin(server: str, key: str) -> Iterator[OpenAI]:
    """The stock client with an admin's key, as its admin resources want it; every field is checked."""
    with OpenAI(
        base_url=f"{server}/v1", api_key=key, admin_api_key=key, max_retries=0,
        _strict_response_validation=True,
    ) as client:  # fmt: skip
        yield client


@pytest.fixture
def enter(installation: Installation) -> Callable[..., TestClient]:
    """Makes clients with a key."""
    app = create_app(installation)
    return lambda key, **headers: TestClient(app, headers={"Authorization": f"Bearer {key}"} | headers)


def _project(client: TestClient, **fields: Any) -> dict[str, Any]:
    made: dict[str, Any] = client.post(_PROJECTS, json={"name": "support"} | fields).json()
    return made


def _key(client: TestClient, project: dict[str, Any], **fields: Any) -> dict[str, Any]:
    path = f"{_PROJECTS}/{project['id']}/api_keys"
    made: dict[str, Any] = client.post(path, json={"name": "ci"} | fields).json()
    return made


def test_the_stock_client_walks_projects_and_keys(admin: OpenAI) -> None:
    organization = admin.admin.organization
    project = organization.projects.create(name="support")
    assert (project.status, organization.projects.retrieve(project.id).name) == ("active", "support")
    assert organization.projects.update(project.id, name="help").name == "help"
    assert [each.id for each in organization.projects.list(limit=1)][:1] == [project.id]
    made = organization.admin_api_keys.create(name="operations", expires_in_seconds=3600)
    assert made.value.startswith("lk_")
    assert made.id in [each.id for each in organization.admin_api_keys.list(order="asc")]
    assert organization.admin_api_keys.retrieve(made.id).redacted_value == f"{made.value[:12]}..."
    assert organization.admin_api_keys.delete(made.id).deleted
    assert organization.projects.archive(project.id).status == "archived"
    kinds = [line.type for line in organization.audit_logs.list(resource_ids=[project.id])]
    assert kinds == ["project.archived", "project.updated", "project.created"]
    logged = organization.audit_logs.list(event_types=["project.created"]).data[0]
    assert logged.actor is not None
    assert logged.project_created is not None
    assert (logged.actor.type, logged.project_created.id) == ("api_key", project.id)


def test_the_stock_client_reads_and_revokes_a_projects_keys(
    admin: OpenAI, client: TestClient, enter: Callable[..., TestClient]
) -> None:
    project = _project(client)
    made = _key(client, project, scopes=["read"])
    keys = admin.admin.organization.projects.api_keys
    (listed,) = keys.list(project["id"]).data
    assert (listed.id, listed.owner_project_access) == (made["id"], "active")
    assert made["value"] not in listed.to_json()
    bearer = enter(made["value"])
    assert bearer.get("/v1/files").status_code == 200
    assert bearer.post("/v1/files").json()["error"]["code"] == "insufficient_permissions"
    assert keys.delete(made["id"], project_id=project["id"]).deleted
    wait_for(lambda: bearer.get("/v1/files").status_code == 401, seconds=5)
    assert keys.list(project["id"]).data == []
    assert client.get(f"{_PROJECTS}/{project['id']}/api_keys/{made['id']}").status_code == 404


def test_a_key_is_changed_and_rotated(client: TestClient, enter: Callable[..., TestClient]) -> None:
    project = _project(client)
    made = _key(client, project, scopes=["read"])
    path = f"{_PROJECTS}/{project['id']}/api_keys/{made['id']}"
    changed = client.post(path, json={"scopes": ["write", "read"], "expires_in_seconds": 3600}).json()
    assert (changed["scopes"], changed["expires_at"] is None) == (["read", "write"], False)
    assert client.post(path, json={"expires_in_seconds": None}).json()["expires_at"] is None
    rotated = client.post(f"{path}/rotate", json={"grace_hours": 0}).json()
    assert (rotated["name"], rotated["scopes"]) == ("ci", ["read", "write"])
    assert enter(rotated["value"]).get("/v1/files").status_code == 200
    assert enter(made["value"]).get("/v1/files").status_code == 401
    assert client.get(path).json()["rotated_to"] == rotated["id"]
    for again in (client.post(f"{path}/rotate"), client.post(path, json={"expires_in_seconds": 3600})):
        assert again.json()["error"]["param"] == "api_key_id"


def test_a_name_is_not_taken_away(client: TestClient) -> None:
    project = _project(client)
    key = f"{_PROJECTS}/{project['id']}/api_keys/{_key(client, project)['id']}"
    for path, name in ((f"{_PROJECTS}/{project['id']}", "name"), (key, "name"), (key, "scopes")):
        refused = client.post(path, json={name: None})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, name)


def test_keys_of_the_organisation_are_no_keys_of_a_project(client: TestClient) -> None:
    made = client.post(_ADMINS, json={"name": "operations"}).json()
    home = f"{_PROJECTS}/proj-default/api_keys"
    assert client.get(home).json()["data"] == []
    assert client.get(f"{home}/{made['id']}").json()["error"]["code"] == "api_key_not_found"
    assert client.post(home, json={"name": "x", "scopes": ["admin"]}).status_code == 400
    assert client.post(_ADMINS, json={"name": "x", "scopes": ["read"]}).status_code == 400
    rotated = client.post(f"{_ADMINS}/{made['id']}/rotate").json()
    assert rotated["scopes"] == ["admin", "read", "write"]


def test_an_archived_project_ends_its_jobs_and_shuts_its_keys_out(
    client: TestClient, enter: Callable[..., TestClient], installation: Installation, file_id: str
) -> None:
    project = _project(client)
    bearer = enter(_key(client, project)["value"])
    rows = client.get(f"/v1/files/{file_id}/content").content
    file = bearer.post("/v1/files", data={"purpose": "fine-tune"}, files={"file": ("r.jsonl", rows)}).json()
    job = bearer.post("/v1/fine_tuning/jobs", json={"model": "tiny", "training_file": file["id"]}).json()
    archived = client.post(f"{_PROJECTS}/{project['id']}/archive").json()
    assert (archived["status"], archived["archived_at"] is None) == ("archived", False)
    with installation.database.reading() as session:
        assert session.get_one(Job, job["id"]).state == State.CANCELLED
    wait_for(lambda: bearer.get("/v1/files").json().get("error", {}).get("code") == "project_archived")
    reader = enter(client.headers["authorization"].split()[1], **{"OpenAI-Project": project["id"]})
    assert reader.get(f"/v1/fine_tuning/jobs/{job['id']}").json()["status"] == "cancelled"
    assert reader.post("/v1/secrets", json={"name": "a", "value": "b"}).status_code == 403
    assert reader.delete(f"/v1/files/{file['id']}").status_code == 200
    refused = client.post(f"{_PROJECTS}/{project['id']}/api_keys", json={"name": "x"})
    assert refused.json()["error"]["code"] == "project_archived"
    assert project["id"] not in client.get(_PROJECTS).text
    assert project["id"] in client.get(_PROJECTS, params={"include_archived": "true"}).text


def test_a_projects_quotas_are_set_and_hold(
    client: TestClient, enter: Callable[..., TestClient], file_id: str
) -> None:
    project = _project(client, quotas={"storage_bytes": 1})
    bearer = enter(_key(client, project)["value"])
    rows = client.get(f"/v1/files/{file_id}/content").content
    send = {"data": {"purpose": "fine-tune"}, "files": {"file": ("r.jsonl", rows)}}
    assert bearer.post("/v1/files", **send).json()["error"]["code"] == "quota_exceeded"
    changed = client.post(f"{_PROJECTS}/{project['id']}", json={"quotas": {"running_jobs": None}}).json()
    assert changed["quotas"] == {"running_jobs": None}
    assert bearer.post("/v1/files", **send).status_code == 200


def test_an_admin_works_in_the_project_that_a_header_names(
    client: TestClient, key: str, enter: Callable[..., TestClient]
) -> None:
    project = _project(client)
    inside = enter(key, **{"OpenAI-Project": project["id"]})
    inside.post("/v1/secrets", json={"name": "a", "value": "b"})
    assert [each["name"] for each in inside.get("/v1/secrets").json()["data"]] == ["a"]
    assert client.get("/v1/secrets").json()["data"] == []
    plain = _key(client, project)["value"]
    assert enter(plain, **{"OpenAI-Project": project["id"]}).get("/v1/files").status_code == 200
    for header, code in [
        ("OpenAI-Project", "mismatched_project"),
        ("OpenAI-Organization", "mismatched_organization"),
    ]:
        response = enter(plain, **{header: "other"}).get("/v1/files")
        assert (response.status_code, response.json()["error"]["code"]) == (401, code)


def test_pages_of_the_audit_log_neither_repeat_nor_skip(client: TestClient) -> None:
    for number in range(5):
        _project(client, name=f"p{number}")
    path = "/v1/organization/audit_logs"
    every = [
        line["id"] for line in client.get(path, params={"event_types[]": "project.created"}).json()["data"]
    ]
    seen: list[str] = []
    page: dict[str, Any] = {"has_more": True, "last_id": None}
    while page["has_more"]:
        asked = {"event_types[]": "project.created", "limit": 2, "after": page["last_id"]}
        page = client.get(path, params={name: value for name, value in asked.items() if value}).json()
        seen += [line["id"] for line in page["data"]]
    assert (len(every), seen) == (5, every)
    before = client.get(path, params={"event_types[]": "project.created", "before": every[4], "limit": 2})
    assert [line["id"] for line in before.json()["data"]] == every[2:4]
    at = client.get(f"{path}?event_types=project.created").json()["data"][0]["effective_at"]
    assert client.get(path, params={"effective_at[gt]": at + 1}).json()["data"] == []
    assert client.get(path, params={"effective_at[lt]": "soon"}).status_code == 400


def test_the_log_tells_by_which_request_and_from_where(client: TestClient) -> None:
    response = client.post(_PROJECTS, json={"name": "support"}, headers={"x-request-id": "mine-1"})
    line = client.get("/v1/organization/audit_logs", params={"resource_ids[]": response.json()["id"]}).json()[
        "data"
    ][0]
    assert (line["request_id"], line["address"]) == ("mine-1", "testclient")


def test_what_is_not_there_is_told_by_its_kind(client: TestClient) -> None:
    for method, path, code in [
        ("GET", "/nothing", "project_not_found"),
        ("POST", "/nothing/archive", "project_not_found"),
        ("GET", "/nothing/api_keys", "project_not_found"),
        ("DELETE", "/proj-default/api_keys/nothing", "api_key_not_found"),
    ]:
        response = client.request(method, f"{_PROJECTS}{path}")
        assert (response.status_code, response.json()["error"]["code"]) == (404, code)


def test_a_project_key_opens_nothing_of_the_organisation(
    client: TestClient, enter: Callable[..., TestClient], installation: Installation
) -> None:
    bearer = enter(_key(client, _project(client))["value"])
    assert bearer.get(_PROJECTS).json()["error"]["code"] == "insufficient_permissions"
    with installation.database.reading() as session:
        scopes = {row.scopes for row in session.query(ApiKey).filter(ApiKey.name == "ci")}
    assert scopes == {",".join(sorted(PROJECT_SCOPES))}


def test_our_own_client_makes_projects_keys_and_secrets(server: str, key: str) -> None:
    with Client(server, key) as admin:
        project = admin.projects.create("support", quotas={"running_jobs": 2})
        assert admin.projects.update(project.id, quotas=None).quotas == {}
        made = admin.api_keys.create("ci", project_id=project.id, scopes=["read", "write"])
        changed = admin.api_keys.update(made.id, project_id=project.id, name="cd", expires_in_seconds=None)
        rotated = admin.api_keys.rotate(made.id, project_id=project.id, grace_hours=0)
        assert (changed.name, changed.value, rotated.name) == ("cd", None, "cd")
        with Client(server, rotated.value) as other:
            other.secrets.set("hf_token", "hf_x")
            assert [secret.name for secret in other.secrets.list()] == ["hf_token"]
            other.secrets.delete("hf_token")
            with pytest.raises(ApiError) as caught:
                other.secrets.get("hf_token")
        assert caught.value.code == "secret_not_found"
        admin.api_keys.delete(rotated.id, project_id=project.id)
        assert admin.projects.archive(project.id).status == "archived"
        told = {line.type for line in admin.audit_logs.list(resource_ids=[project.id, made.id])}
    assert told == {
        "project.created", "project.updated", "project.archived",
        "api_key.created", "api_key.updated", "api_key.rotated",
    }  # fmt: skip


def test_our_own_client_does_so_on_an_event_loop_too(server: str, key: str) -> None:
    async def names() -> list[str]:
        async with AsyncClient(server, key) as admin:
            made = await admin.api_keys.create("operations")
            return [each.name async for each in admin.api_keys.list(limit=1) if each.id == made.id]

    assert asyncio.run(names()) == ["operations"]
