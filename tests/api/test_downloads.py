"""Stored bytes on their way out: whole, in parts, or not at all when the client has them."""

import base64
import hashlib
import io
import tarfile
from collections.abc import Callable
from typing import Any

import pytest
from starlette.testclient import TestClient

from luthier.installation import Installation
from luthier.service import endings
from luthier.tables import File
from tests.factories import NOW, claim, create_prepared_job

_DATA = bytes(range(256)) * 4000
_SHA256 = hashlib.sha256(_DATA).hexdigest()
_ETAG = f'"{_SHA256}"'
_URL = "/v1/fine_tuning/jobs/ftjob-1"
_MODEL = f"{_URL}/artifacts/adapter/adapter_model.safetensors"
_NAMES = {
    "adapter/adapter_model.safetensors": _DATA,
    "metrics.csv": b"step,train_loss\n1,2.0\n",
    "empty": b"",
}


@pytest.fixture
def app_storage_fields(storage_fields: dict[str, Any]) -> dict[str, Any]:
    """Both kinds of storage."""
    return storage_fields


@pytest.fixture(autouse=True)
def _succeeded_job(installation: Installation) -> None:
    """A job that has left three files."""
    artifacts = []
    for name, data in _NAMES.items():
        key = f"ftjob-1/e0001/artifacts/{name}"
        with installation.storage.receive() as incoming:
            incoming.write(data)
            installation.storage.keep(incoming, key)
        sha256 = hashlib.sha256(data).hexdigest()
        artifacts.append(endings.NewArtifact(name, "adapter", len(data), sha256, key))
    with installation.database.transaction() as session:
        job = create_prepared_job(session)
        taken = claim(session)
        assert taken is not None
        endings.start_finalizing(session, taken.lease, now=NOW)
        result_file = File(
            id="file-result", project_id=job.project_id, filename="a", purpose="fine-tune-results",
            size_bytes=1, sha256="1" * 64, storage_key="x", status="processed", created_at=NOW,
        )  # fmt: skip
        endings.succeed_training(
            session, taken.lease, artifacts=artifacts, result={}, result_file=result_file, now=NOW
        )


def test_artifacts_are_listed_by_name_with_size_and_hash(client: TestClient) -> None:
    listed = client.get(f"{_URL}/artifacts").json()
    assert listed["object"] == "list"
    assert [item["name"] for item in listed["data"]] == sorted(_NAMES)
    assert listed["data"][0]["sha256"] == _SHA256
    assert listed["data"][0]["bytes"] == len(_DATA)


def test_a_whole_file_carries_its_hash(client: TestClient) -> None:
    response = client.get(_MODEL)
    assert response.content == _DATA
    assert (response.headers["etag"], response.headers["accept-ranges"]) == (_ETAG, "bytes")
    digest = base64.b64encode(hashlib.sha256(_DATA).digest()).decode()
    assert response.headers["repr-digest"] == f"sha-256=:{digest}:"
    assert "adapter_model.safetensors" in response.headers["content-disposition"]


@pytest.mark.parametrize(
    ("asked", "start", "stop"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=1000-1999", 1000, 2000),
        ("bytes=1000000-", 1_000_000, len(_DATA)),
        ("bytes=-10", len(_DATA) - 10, len(_DATA)),
        ("bytes=-9999999999", 0, len(_DATA)),
        ("bytes=5-9999999999", 5, len(_DATA)),
    ],
)
def test_a_range_is_a_part(client: TestClient, asked: str, start: int, stop: int) -> None:
    response = client.get(_MODEL, headers={"Range": asked})
    assert (response.status_code, response.content) == (206, _DATA[start:stop])
    assert response.headers["content-range"] == f"bytes {start}-{stop - 1}/{len(_DATA)}"


@pytest.mark.parametrize("asked", ["bytes=9999999-", "bytes=-0", f"bytes={len(_DATA)}-{len(_DATA)}"])
def test_a_range_outside_is_416(client: TestClient, asked: str) -> None:
    response = client.get(_MODEL, headers={"Range": asked})
    assert (response.status_code, response.headers["content-range"]) == (416, f"bytes */{len(_DATA)}")
    assert response.json()["error"]["code"] == "range_not_satisfiable"


@pytest.mark.parametrize(
    "asked", ["bytes=5-2", "bytes=-", "bytes=x", "rows=1-2", "bytes=" + "0-," * 2000 + "0-"]
)
def test_what_is_no_single_range_gets_the_whole_file_once(client: TestClient, asked: str) -> None:
    response = client.get(_MODEL, headers={"Range": asked})
    assert (response.status_code, len(response.content)) == (200, len(_DATA))


def test_a_download_goes_on_only_while_the_file_is_the_same(client: TestClient) -> None:
    asked = {"Range": "bytes=10-19"}
    assert client.get(_MODEL, headers=asked | {"If-Range": _ETAG}).status_code == 206
    assert client.get(_MODEL, headers=asked | {"If-Range": '"other"'}).content == _DATA


@pytest.mark.parametrize("tags", [_ETAG, f'"a", W/{_ETAG}', "*"])
def test_what_the_client_has_is_not_sent_again(client: TestClient, tags: str) -> None:
    response = client.get(_MODEL, headers={"If-None-Match": tags})
    assert (response.status_code, response.content, response.headers["etag"]) == (304, b"", _ETAG)


@pytest.mark.parametrize(
    ("path", "size"),
    [(_MODEL, len(_DATA)), (f"{_URL}/artifacts/empty", 0), (f"{_URL}/artifacts.tar", 1_027_072)],
)
def test_head_tells_what_get_would(client: TestClient, path: str, size: int) -> None:
    head, get = client.head(path), client.get(path)
    assert (head.status_code, head.content) == (200, b"")
    assert int(head.headers["content-length"]) == len(get.content) == size


def test_the_tar_holds_every_file_and_is_always_the_same(client: TestClient) -> None:
    first, second = (client.get(f"{_URL}/artifacts.tar").content for _ in range(2))
    assert first == second
    with tarfile.open(fileobj=io.BytesIO(first)) as archive:
        held = {member.name: archive.extractfile(member).read() for member in archive}  # type: ignore[union-attr]
    assert held == dict(sorted(_NAMES.items()))


def test_a_job_that_left_nothing_has_no_tar(client: TestClient, installation: Installation) -> None:
    with installation.database.transaction() as session:
        create_prepared_job(session, "ftjob-2")
    assert client.get("/v1/fine_tuning/jobs/ftjob-2/artifacts").json()["data"] == []
    response = client.get("/v1/fine_tuning/jobs/ftjob-2/artifacts.tar")
    assert (response.status_code, response.json()["error"]["code"]) == (404, "artifact_not_found")


@pytest.mark.parametrize(
    "name", ["nothing", "../../../luthier.db", "..%2f..%2finstallation.key", "adapter", ""]
)
def test_only_listed_names_are_artifacts(client: TestClient, name: str) -> None:
    response = client.get(f"{_URL}/artifacts/{name}")
    assert response.status_code == 404


def test_an_uploaded_file_is_served_in_the_same_way(client: TestClient, upload: Callable[..., Any]) -> None:
    file = upload().json()
    url = f"/v1/files/{file['id']}/content"
    etag = client.head(url).headers["etag"]
    part = client.get(url, headers={"Range": "bytes=2-9", "If-Range": etag, "Accept": "application/binary"})
    assert (part.status_code, part.text) == (206, "messages")
    assert client.get(url, headers={"If-None-Match": etag}).status_code == 304


def test_a_file_that_is_deleted_while_it_is_asked_for_is_not_there(
    client: TestClient, upload: Callable[..., Any], installation: Installation
) -> None:
    file_id = upload().json()["id"]
    installation.storage.delete(f"files/{file_id}")
    gone = client.get(f"/v1/files/{file_id}/content")
    assert (gone.status_code, gone.json()["error"]["code"]) == (404, "not_found")
