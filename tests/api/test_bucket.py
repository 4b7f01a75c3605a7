"""The API over a bucket: downloads that are sent on to it, and what is answered here."""

import os
import urllib.request
from collections.abc import Callable
from typing import Any

import pytest
from starlette.testclient import TestClient

from luthier.installation import Installation
from luthier.settings import Settings
from tests.api.conftest import ROWS, jsonl
from tests.s3 import S3Server

_DATA = jsonl(*ROWS)


@pytest.fixture
def app_storage_fields(s3_server: S3Server) -> dict[str, Any]:
    """A bucket that clients download from themselves."""
    return s3_server.settings(f"test-{os.urandom(6).hex()}") | {"s3_presign": True}


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """Settings by which the larger files of these tests are large."""
    return settings.model_copy(update={"whole_check_bytes": 1000})


@pytest.fixture
def url(file_id: str) -> str:
    """Where an uploaded file is."""
    return f"/v1/files/{file_id}/content"


def _address(client: TestClient, url: str, **headers: str) -> str:
    response = client.get(url, headers=headers, follow_redirects=False)
    assert (response.status_code, response.headers["cache-control"]) == (307, "no-store")
    return response.headers["location"]


def _fetch(address: str, **headers: str) -> tuple[int, bytes, str]:
    with urllib.request.urlopen(urllib.request.Request(address, headers=headers)) as answer:
        return answer.status, answer.read(), answer.headers["content-disposition"]


def test_a_download_is_sent_to_the_bucket(client: TestClient, url: str) -> None:
    status, content, disposition = _fetch(_address(client, url))
    assert (status, content, "rows.jsonl" in disposition) == (200, _DATA, True)


def test_so_is_a_range(client: TestClient, url: str) -> None:
    status, content, _ = _fetch(_address(client, url, Range="bytes=2-9"), Range="bytes=2-9")
    assert (status, content) == (206, b"messages")


def test_what_needs_our_etag_is_answered_here(client: TestClient, url: str) -> None:
    head = client.head(url, follow_redirects=False)
    etag = head.headers["etag"]
    assert (head.status_code, int(head.headers["content-length"])) == (200, len(_DATA))
    unchanged = client.get(url, headers={"If-None-Match": etag}, follow_redirects=False)
    part = client.get(url, headers={"If-Range": etag, "Range": "bytes=2-9"}, follow_redirects=False)
    outside = client.get(url, headers={"Range": "bytes=99999-"}, follow_redirects=False)
    assert [answer.status_code for answer in (unchanged, part, outside)] == [304, 206, 416]
    assert part.content == b"messages"


def test_a_stranger_gets_no_address(stranger: TestClient, url: str) -> None:
    assert stranger.get(url, follow_redirects=False).status_code == 404


def test_a_bucket_that_is_away_is_503_and_worth_a_retry(
    client: TestClient, upload: Callable[..., Any], installation: Installation
) -> None:
    client_of_bucket = installation.storage._bucket._client  # type: ignore[attr-defined]
    client_of_bucket.meta.events.register("before-sign.s3", _to_nowhere)
    response = upload()
    assert (response.status_code, response.json()["error"]["code"]) == (503, "storage_unavailable")
    assert "retry-after" in response.headers
    assert client.get("/v1/files").json()["data"] == []


def _to_nowhere(request: Any, **_: Any) -> None:
    request.url = "http://127.0.0.1:9/nothing"


def test_a_large_file_is_registered_by_its_beginning(
    client: TestClient, settings: Settings, upload: Callable[..., Any]
) -> None:
    file = upload(jsonl(*ROWS * 100)).json()
    assert settings.whole_check_bytes < file["bytes"]
    tags = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
    entry = {"formatting": "sharegpt", "columns": {"messages": "messages"}, "tags": tags}
    response = client.post(f"/v1/files/{file['id']}/register", json={"name": "chats", "entry": entry})
    assert response.status_code == 200, response.text
    wrong = entry | {"columns": {"messages": "nothing"}}
    response = client.post(f"/v1/files/{file['id']}/register", json={"name": "chats", "entry": wrong})
    assert response.status_code == 400


def test_the_columns_of_a_conversion_are_looked_for_in_the_bucket(
    client: TestClient, upload: Callable[..., Any]
) -> None:
    file = upload(jsonl({"question": "Q", "answer": "A"})).json()
    body = {"columns": {"instruction": "nothing", "output": "answer"}}
    response = client.post(f"/v1/files/{file['id']}/prepare", json=body)
    assert (response.status_code, response.json()["error"]["param"]) == (400, "columns")


def test_a_bucket_has_no_end_that_would_make_the_service_unready(client: TestClient) -> None:
    assert client.get("/readyz").status_code == 200
    assert "luthier_storage_free_bytes" not in client.get("/metrics").text


def test_a_deleted_file_is_gone_from_the_bucket(
    client: TestClient, file_id: str, installation: Installation
) -> None:
    assert [file.key for file in installation.storage.list_files()] == [f"files/{file_id}"]
    assert client.delete(f"/v1/files/{file_id}").json()["deleted"]
    assert list(installation.storage.list_files()) == []
