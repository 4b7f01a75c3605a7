"""Nobody gets in without a key, and nobody sees what belongs to another project."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from openai import AuthenticationError, OpenAI
from starlette.testclient import TestClient

from api.app import create_app
from luthier.installation import Installation
from luthier.keys import new_key
from luthier.tables import ApiKey
from tests.waiting import wait_for


@pytest.fixture
def anonymous(installation: Installation) -> Iterator[TestClient]:
    """A client without a key; its address is not loopback."""
    with TestClient(create_app(installation), client=("203.0.113.7", 50000)) as client:
        yield client


@pytest.mark.parametrize(
    "change",
    [
        lambda _: {},
        lambda _: {"Authorization": ""},
        lambda key: {"Authorization": f"Basic {key}"},
        lambda key: {"Authorization": f"Bearer {key[:-1]}"},
        lambda key: {"Authorization": f"Bearer {key.swapcase()}"},
        lambda _: {"Authorization": "Bearer " + "x" * 8000},
        lambda key: [("Authorization", f"Bearer {key}"), ("Authorization", f"Bearer {key}")],
        lambda key: {"x-api-key": key},
    ],
)
def test_a_wrong_key_is_refused_and_never_repeated(
    anonymous: TestClient, key: str, change: Callable[[str], Any]
) -> None:
    response = anonymous.get("/v1/models", headers=change(key))
    assert response.status_code == 401
    assert key[-20:] not in response.text


def test_a_revoked_key_is_refused_within_a_second(client: TestClient, installation: Installation) -> None:
    assert client.get("/v1/models").status_code == 200
    with installation.database.transaction() as session:
        for row in session.query(ApiKey):
            assert row.last_used_at is not None or row.name == "first"
            row.revoked_at = row.created_at
    wait_for(lambda: client.get("/v1/models").status_code == 401, seconds=5)


def test_metrics_are_open_to_this_machine_by_its_own_name_only(installation: Installation) -> None:
    app = create_app(installation)
    local, elsewhere = ("127.0.0.1", 50000), ("203.0.113.7", 50000)
    answers = [
        TestClient(app, client=client, base_url=f"http://{host}").get("/metrics").status_code
        for client, host in [
            (local, "localhost:8000"), (local, "127.0.0.1:8000"), (local, "[::1]"),
            (elsewhere, "localhost:8000"),
        ]
    ]  # fmt: skip
    assert answers == [200, 200, 200, 401]
    proxied = TestClient(app, client=local, base_url="http://localhost", headers={"X-Forwarded-For": "::1"})
    assert proxied.get("/metrics").status_code == 401


def test_files_and_jobs_of_another_project_are_not_there(
    client: TestClient, stranger: TestClient, file_id: str
) -> None:
    job = client.post("/v1/fine_tuning/jobs", json={"model": "tiny", "training_file": file_id}).json()
    jobs = f"/v1/fine_tuning/jobs/{job['id']}"
    reads = [f"/v1/files/{file_id}", f"/v1/files/{file_id}/content", jobs]
    reads += [f"{jobs}/{part}" for part in ("events", "checkpoints", "metrics", "logs", "artifacts")]
    reads += [f"{jobs}/artifacts.tar", f"{jobs}/artifacts/metrics.csv"]
    assert {path: stranger.get(path).status_code for path in reads} == dict.fromkeys(reads, 404)
    assert stranger.delete(f"/v1/files/{file_id}").status_code == 404
    assert stranger.post(f"{jobs}/cancel").status_code == 404
    assert stranger.get("/v1/files").json()["data"] == []
    assert stranger.get("/v1/fine_tuning/jobs").json()["data"] == []
    assert stranger.get("/v1/fine_tuning/jobs", params={"after": job["id"]}).status_code == 400
    assert client.get(jobs).json()["status"] == "queued"


def test_who_guesses_keys_is_not_listened_to_for_a_while(installation: Installation, key: str) -> None:
    settings = installation.settings.model_copy(update={"wrong_keys_per_minute": 3})
    app = create_app(dataclasses.replace(installation, settings=settings))

    def status(shown: str, address: str = "2001:db8::1") -> int:
        client = TestClient(app, client=(address, 50000))
        return client.get("/v1/files", headers={"Authorization": f"Bearer {shown}"}).status_code

    assert status(key) == 200
    # What is no key at all costs nothing, and is not counted.
    assert {status("x") for _ in range(9)} == {401}
    assert [status(new_key().text) for _ in range(4)] == [401, 401, 401, 429]
    assert [status(new_key().text, address) for address in ("2001:db8::2", "2001:db8:1::1")] == [429, 401]
    assert status(key) == 200


def test_a_large_upload_without_a_key_hears_why(server: str) -> None:
    client = OpenAI(base_url=f"{server}/v1", api_key="lk_wrong", max_retries=0)
    with client, pytest.raises(AuthenticationError):
        client.files.create(file=b"x" * 20_000_000, purpose="fine-tune")
