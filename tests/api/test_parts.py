"""A file that comes in parts: what it becomes, what ends it, and what is left of it."""

import hashlib
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy.orm import Session
from starlette.testclient import TestClient

from api.app import create_app
from api.routes import uploads as upload_routes
from luthier import accounts
from luthier.installation import Installation
from luthier.service import access, uploads
from luthier.tables import Project, Upload
from tests.api.conftest import ROWS, jsonl

_DATA = jsonl(*ROWS)
_MD5 = hashlib.md5(_DATA, usedforsecurity=False).hexdigest()
_PIECES = [_DATA[:70], _DATA[70:200], _DATA[200:]]


@pytest.fixture
def app_storage_fields(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Files, and a bucket for who asks for it."""
    if getattr(request, "param", "files") == "files":
        return {}
    fields: dict[str, Any] = request.getfixturevalue("s3_server").settings(f"test-{os.urandom(6).hex()}")
    return fields


@pytest.fixture
def app_database_url(request: pytest.FixtureRequest) -> str:
    """SQLite, and Postgres for who asks for it."""
    url: str = request.getfixturevalue(f"{getattr(request, 'param', 'sqlite')}_url")
    return url


both_storages = pytest.mark.parametrize("app_storage_fields", ["files", "s3"], indirect=True)
both_databases = pytest.mark.parametrize("app_database_url", ["sqlite", "postgres"], indirect=True)


class Sender:
    """Sends a file in parts, step by step."""

    def __init__(self, client: TestClient) -> None:
        self.client = client

    def begin(self, data: bytes = _DATA, **fields: Any) -> str:
        body = {"bytes": len(data), "filename": "a/rows.jsonl", "mime_type": "text/jsonl"}
        answer = self.client.post("/v1/uploads", json=body | {"purpose": "fine-tune"} | fields)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["id"])

    def part(self, upload_id: str, data: bytes) -> Any:
        return self.client.post(f"/v1/uploads/{upload_id}/parts", files={"data": ("upload", data)})

    def parts(self, upload_id: str, *pieces: bytes) -> list[str]:
        return [self.part(upload_id, piece).json()["id"] for piece in pieces]

    def complete(self, upload_id: str, part_ids: list[str], **fields: Any) -> Any:
        return self.client.post(f"/v1/uploads/{upload_id}/complete", json={"part_ids": part_ids} | fields)

    def cancel(self, upload_id: str) -> Any:
        return self.client.post(f"/v1/uploads/{upload_id}/cancel")

    def get(self, upload_id: str) -> Any:
        return self.client.get(f"/v1/uploads/{upload_id}").json()


@pytest.fixture
def sender(client: TestClient) -> Sender:
    return Sender(client)


@pytest.fixture
def session(installation: Installation) -> Iterator[Session]:
    with installation.database.reading() as session:
        yield session


def _stored(installation: Installation) -> list[str]:
    return sorted(file.key for file in installation.storage.list_files())


def _error(answer: Any) -> tuple[int, str, str | None]:
    error = answer.json()["error"]
    return answer.status_code, error["code"], error["param"]


def _end_its_time(installation: Installation, upload_id: str) -> None:
    with installation.database.transaction() as session:
        session.get_one(Upload, upload_id).expires_at -= timedelta(hours=1)


@both_storages
@both_databases
def test_the_parts_become_a_file_in_the_order_that_is_told(
    client: TestClient, sender: Sender, installation: Installation, session: Session
) -> None:
    upload_id = sender.begin()
    last, first, second = sender.parts(upload_id, _PIECES[2], _PIECES[0], _PIECES[1])
    upload = sender.complete(upload_id, [first, second, last], md5=_MD5).json()
    file = upload["file"]
    assert (upload["status"], upload["bytes"], file["bytes"]) == ("completed", len(_DATA), len(_DATA))
    assert (file["filename"], file["status"], file["purpose"]) == ("rows.jsonl", "processed", "fine-tune")
    assert client.get(f"/v1/files/{file['id']}/content").content == _DATA
    assert client.get("/v1/files").json()["data"] == [file]
    assert _stored(installation) == [f"files/{file['id']}"]
    project = session.get_one(Project, access.DEFAULT_PROJECT)
    assert project.storage_bytes == accounts.recount(session, project.id) == len(_DATA)


def test_what_has_arrived_is_told_so_that_a_client_can_go_on(sender: Sender) -> None:
    upload_id = sender.begin()
    sent = sender.parts(upload_id, *_PIECES[:2])
    there = sender.get(upload_id)
    assert (there["status"], there["file"], there["expires_at"] - there["created_at"]) == (
        "pending",
        None,
        3600,
    )
    have = {part["sha256"]: part["id"] for part in there["parts"]}
    assert [part["bytes"] for part in there["parts"]] == [70, 130]
    assert [have.get(hashlib.sha256(piece).hexdigest()) for piece in _PIECES] == [*sent, None]
    rest = sender.parts(upload_id, _PIECES[2])
    assert sender.complete(upload_id, sent + rest).json()["status"] == "completed"
    assert sender.get(upload_id)["parts"] == []


@both_databases
def test_parts_come_at_once_and_over_several_processes(
    client: TestClient, sender: Sender, installation: Installation
) -> None:
    turns = [[{"role": "user", "content": f"Q{n}"}, {"role": "assistant", "content": "A"}] for n in range(99)]
    data = jsonl(*({"messages": messages} for messages in turns))
    pieces = [data[start : start + 500] for start in range(0, len(data), 500)]
    upload_id = sender.begin(data)
    with (
        TestClient(create_app(installation), headers=client.headers) as other,
        ThreadPoolExecutor(4) as pool,
    ):
        senders = [sender, Sender(other)]
        answers = pool.map(lambda n: senders[n % 2].part(upload_id, pieces[n]), range(len(pieces)))
        part_ids = [answer.json()["id"] for answer in answers]
    file = sender.complete(upload_id, part_ids).json()["file"]
    assert client.get(f"/v1/files/{file['id']}/content").content == data


def test_a_complete_that_is_repeated_gives_the_same_file(
    client: TestClient, sender: Sender, installation: Installation
) -> None:
    upload_id = sender.begin()
    part_ids = sender.parts(upload_id, *_PIECES)
    first = sender.complete(upload_id, part_ids).json()
    assert sender.complete(upload_id, part_ids).json() == first
    assert _error(sender.complete(upload_id, part_ids[::-1])) == (400, "upload_not_pending", None)
    client.delete(f"/v1/files/{first['file']['id']}")
    assert sender.complete(upload_id, part_ids).json()["file"] is None
    assert _stored(installation) == []


@both_databases
def test_a_key_belongs_to_one_complete(client: TestClient, sender: Sender) -> None:
    client.headers["Idempotency-Key"] = "one"
    upload_id, other = sender.begin(), sender.begin()
    part_ids = sender.parts(upload_id, *_PIECES)
    first = sender.complete(upload_id, part_ids)
    again = sender.complete(upload_id, part_ids)
    assert (again.json(), again.headers["Idempotent-Replayed"]) == (first.json(), "true")
    assert "Idempotent-Replayed" not in first.headers
    refused = sender.complete(other, sender.parts(other, *_PIECES))
    assert _error(refused) == (422, "idempotency_key_reused", "Idempotency-Key")
    assert sender.get(other)["status"] == "pending"


def test_completes_do_not_take_all_threads(sender: Sender, monkeypatch: pytest.MonkeyPatch) -> None:
    places = threading.BoundedSemaphore(1)
    monkeypatch.setattr(upload_routes, "_JOINED_AT_ONCE", places)
    upload_id = sender.begin()
    part_ids = sender.parts(upload_id, *_PIECES)
    with places:
        answer = sender.complete(upload_id, part_ids)
    assert (_error(answer)[:2], "Retry-After" in answer.headers) == ((503, "not_done_yet"), True)
    assert sender.complete(upload_id, part_ids).json()["status"] == "completed"


@both_databases
def test_two_completes_at_once_make_one_file(
    client: TestClient, sender: Sender, installation: Installation
) -> None:
    upload_id = sender.begin()
    part_ids = sender.parts(upload_id, *_PIECES)
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: sender.complete(upload_id, part_ids), range(4)))
    files = client.get("/v1/files").json()["data"]
    assert [answer.json()["file"] for answer in answers] == files * 4
    assert _stored(installation) == [f"files/{files[0]['id']}"]


@pytest.mark.parametrize(
    ("change", "fields", "param"),
    [
        pytest.param(lambda ids: [*ids[:2], "part_unknown"], {}, "part_ids", id="unknown"),
        pytest.param(lambda ids: [*ids, ids[0]], {}, "part_ids", id="twice"),
        pytest.param(lambda ids: ids[:2], {}, "part_ids", id="too few bytes"),
        pytest.param(lambda _: [], {}, "part_ids", id="none"),
        pytest.param(lambda ids: ids, {"md5": "0" * 32}, "md5", id="md5"),
        pytest.param(lambda ids: ids, {"sha256": "0" * 64}, "sha256", id="sha256"),
        pytest.param(lambda ids: ids, {"md5": "x"}, "md5", id="no md5"),
        pytest.param(lambda ids: ids[::-1], {}, "file", id="no rows in this order"),
    ],
)
def test_parts_that_make_no_such_file_are_refused_and_stay(
    sender: Sender, change: Callable[[list[str]], list[str]], fields: dict[str, str], param: str
) -> None:
    upload_id = sender.begin()
    part_ids = sender.parts(upload_id, *_PIECES)
    status, _, named = _error(sender.complete(upload_id, change(part_ids), **fields))
    assert (status, named) == (400, param)
    sha256 = hashlib.sha256(_DATA).hexdigest()
    assert sender.complete(upload_id, part_ids, sha256=sha256).json()["status"] == "completed"


@pytest.mark.parametrize("ending", ["completed", "cancelled", "expired"])
def test_an_upload_that_is_over_takes_nothing_more(
    sender: Sender, installation: Installation, ending: str
) -> None:
    upload_id = sender.begin()
    part_ids = sender.parts(upload_id, *_PIECES)
    if ending == "completed":
        sender.complete(upload_id, part_ids)
    elif ending == "cancelled":
        cancelled = sender.cancel(upload_id).json()
        assert (cancelled["status"], _stored(installation)) == ("cancelled", [])
        assert sender.cancel(upload_id).json() == cancelled
    else:
        _end_its_time(installation, upload_id)
    refused = [sender.part(upload_id, b"more"), sender.complete(upload_id, part_ids[:1])]
    refused += [] if ending == "cancelled" else [sender.cancel(upload_id)]
    assert {_error(answer) for answer in refused} == {(400, "upload_not_pending", None)}
    assert sender.get(upload_id)["status"] == ending


@pytest.mark.parametrize(
    ("form", "status", "code"),
    [
        ({"data": ("upload", b"")}, 400, "invalid_value"),
        ({"file": ("upload", b"x")}, 400, "unknown_parameter"),
        ({"data": ("upload", bytes(uploads.MAX_PART_BYTES + (1 << 17)))}, 413, "file_too_large"),
    ],
)
def test_a_part_that_cannot_be_one_is_refused(
    client: TestClient, sender: Sender, installation: Installation, form: Any, status: int, code: str
) -> None:
    upload_id = sender.begin()
    answer = client.post(f"/v1/uploads/{upload_id}/parts", files=form)
    assert _error(answer)[:2] == (status, code)
    assert (_stored(installation), sender.get(upload_id)["parts"]) == ([], [])


def test_parts_are_not_sent_again_without_end(sender: Sender, installation: Installation) -> None:
    upload_id = sender.begin()
    sent = sender.parts(upload_id, _DATA, _DATA)
    assert _error(sender.part(upload_id, b"x")) == (413, "file_too_large", "data")
    assert len(_stored(installation)) == 2
    assert sender.complete(upload_id, sent[1:]).json()["status"] == "completed"


@pytest.mark.parametrize(
    ("change", "status", "param"),
    [
        ({"bytes": 0}, 400, "bytes"),
        ({"bytes": (8 << 30) + 1}, 413, "bytes"),
        ({"bytes": None}, 400, "bytes"),
        ({"purpose": "batch"}, 400, "purpose"),
        ({"filename": ""}, 400, "filename"),
        ({"expires_after": {"anchor": "created_at", "seconds": 60}}, 400, "expires_after.seconds"),
        ({"size": 5}, 400, "size"),
    ],
)
def test_an_announcement_that_cannot_be_kept_is_refused(
    client: TestClient, change: dict[str, Any], status: int, param: str
) -> None:
    body = {"bytes": 10, "filename": "a", "mime_type": "text/jsonl", "purpose": "fine-tune"} | change
    assert _error(client.post("/v1/uploads", json=body))[::2] == (status, param)


def test_the_wishes_of_the_announcement_hold_for_the_file(sender: Sender) -> None:
    data = jsonl(*ROWS, {"messages": []})
    upload_id = sender.begin(data, on_bad_row="drop", expires_after={"anchor": "created_at", "seconds": 7200})
    file = sender.complete(upload_id, sender.parts(upload_id, data)).json()["file"]
    assert (file["status"], file["expires_at"] - file["created_at"]) == ("error", 7200)


def test_parts_count_for_the_quota(sender: Sender, client: TestClient, installation: Installation) -> None:
    with installation.database.transaction() as session:
        session.get_one(Project, access.DEFAULT_PROJECT).quotas = {"storage_bytes": len(_DATA)}
    upload_id, other = sender.begin(), sender.begin()
    sender.parts(other, _PIECES[0])
    assert _error(sender.part(upload_id, _DATA))[:2] == (429, "quota_exceeded")
    sender.cancel(other)
    part_ids = sender.parts(upload_id, _DATA)
    assert sender.complete(upload_id, part_ids).json()["status"] == "completed"
    body = {"bytes": 1, "filename": "a", "mime_type": "text/jsonl", "purpose": "fine-tune"}
    assert _error(client.post("/v1/uploads", json=body))[:2] == (429, "quota_exceeded")


def test_an_upload_of_another_project_is_not_there(sender: Sender, stranger: TestClient) -> None:
    upload_id = sender.begin()
    part_ids, foreign = sender.parts(upload_id, *_PIECES), Sender(stranger)
    answers = [
        stranger.get(f"/v1/uploads/{upload_id}"), foreign.part(upload_id, b"x"),
        foreign.complete(upload_id, part_ids), foreign.cancel(upload_id),
    ]  # fmt: skip
    assert {_error(answer) for answer in answers} == {(404, "upload_not_found", "upload_id")}
    own = foreign.begin()
    assert _error(foreign.complete(own, part_ids)) == (400, "invalid_value", "part_ids")
