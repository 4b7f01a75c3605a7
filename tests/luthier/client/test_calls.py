"""Calls over HTTP, by both clients: what is repeated and what is not, errors, pages, downloads."""

import hashlib
import json
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest

from luthier.client import ApiError, Artifact, Client, SetupError, UnreachableError
from luthier.client.connection import Connection
from luthier.client.files import Files

JOB = {"id": "ftjob-1", "status": "queued", "created_at": 1, "model": "tiny", "training_file": "file-1"}
FILE = {"id": "file-1", "bytes": 3, "created_at": 1, "filename": "a.jsonl", "purpose": "fine-tune"}


def test_an_error_carries_all_that_the_server_said(server: Any, client: Any, error_reply: Any) -> None:
    server.answer(error_reply(400, "r must be at least 1"))
    with pytest.raises(ApiError, match="r must be at least 1") as caught:
        client.jobs.create({})
    error = caught.value
    assert (error.status, error.code, error.param, error.request_id) == (
        400,
        "invalid_value",
        "qlora.r",
        "req_1",
    )


def test_a_get_is_sent_again_as_late_as_the_server_asks(server: Any, client: Any, error_reply: Any) -> None:
    at = format_datetime(datetime.now(UTC) + timedelta(seconds=50), usegmt=True)
    server.answer(
        error_reply(503, **{"Retry-After": "7"}),
        error_reply(429, **{"retry-after-ms": "250", "Retry-After": "7"}),
        error_reply(503, **{"Retry-After": at}),
        FILE,
    )
    assert client.files.get("file-1").id == "file-1"
    assert server.pauses[:2] == [7.0, 0.25]
    assert 40 < server.pauses[2] <= 50


def test_pauses_grow_and_are_shortened_at_random(server: Any, client: Any, error_reply: Any) -> None:
    server.answer(error_reply(503, "the database is away", "database_unavailable"))
    with pytest.raises(ApiError, match="the database is away"):
        client.files.get("file-1")
    assert len(server.asked) == len(server.pauses) + 1 == 4
    for pause, longest in zip(server.pauses, (0.5, 1, 2), strict=True):
        assert 0.75 * longest <= pause <= longest


@pytest.mark.parametrize(
    ("status", "headers", "times"),
    [
        (500, {"x-should-retry": "false"}, 1),
        (400, {"x-should-retry": "true"}, 4),
        (503, {"Retry-After": "3600"}, 1),
        (404, {}, 1),
        (502, {}, 4),
    ],
)
def test_the_server_says_whether_another_try_helps(
    server: Any, client: Any, error_reply: Any, status: int, headers: dict[str, str], times: int
) -> None:
    server.answer(error_reply(status, **headers))
    with pytest.raises(ApiError):
        client.jobs.get("ftjob-1")
    assert len(server.asked) == times


def test_what_may_not_come_twice_is_sent_once(server: Any, client: Any, error_reply: Any) -> None:
    server.answer(error_reply(503))
    with pytest.raises(ApiError):
        client.jobs.retry("ftjob-1")
    assert len(server.asked) == 1


def test_what_came_too_often_was_not_done_and_may_come_again(
    server: Any, client: Any, error_reply: Any
) -> None:
    server.answer(error_reply(429, code="rate_limit_exceeded", **{"Retry-After": "7"}), JOB)
    assert client.jobs.retry("ftjob-1").id == "ftjob-1"
    assert server.pauses == [7.0]


def test_what_a_lost_answer_has_deleted_is_no_error(server: Any, client: Any, error_reply: Any) -> None:
    server.answer(error_reply(502), error_reply(404))
    client.jobs.delete("ftjob-1")
    assert len(server.asked) == 2
    server.answer(error_reply(429), error_reply(404))
    with pytest.raises(ApiError):
        client.jobs.delete("ftjob-1")


def test_a_server_that_is_not_there_is_named() -> None:
    pauses: list[float] = []
    connection = Connection("http://127.0.0.1:1", "lk_test", pause=pauses.append, max_retries=1)
    with pytest.raises(UnreachableError, match=r"127\.0\.0\.1:1 does not answer.*luthier up") as caught:
        Files(connection).get("file-1")
    connection.close()
    assert caught.value.status is None
    assert len(pauses) == 1


def test_an_answer_of_something_else_is_told_apart(server: Any, client: Any) -> None:
    server.answer({"detail": "Not Found"})
    server.script[0].status = 404
    with pytest.raises(ApiError, match="not Luthier"):
        client.jobs.get("ftjob-1")


def test_a_page_of_a_proxy_is_no_answer(server: Any, client: Any) -> None:
    server.answer(server.reply(b"<html>Sign in</html>"))
    for call in (lambda: client.jobs.get("ftjob-1"), client.models.list().page):
        with pytest.raises(ApiError, match="not what Luthier answers"):
            call()


def test_a_list_is_read_page_by_page(server: Any, client: Any) -> None:
    rows = [JOB | {"id": f"ftjob-{number}"} for number in range(3)]
    server.answer(
        {"object": "list", "data": rows[:2], "has_more": True, "last_id": "ftjob-1"},
        {"object": "list", "data": rows[2:], "has_more": False},
    )
    found = client.jobs.list(limit=2, metadata={"team": "a b"})
    assert server.asked == []
    assert [job.id for job in found] == ["ftjob-0", "ftjob-1", "ftjob-2"]
    first, second = (asked.path.partition("?")[2] for asked in server.asked)
    assert first == "limit=2&metadata%5Bteam%5D=a+b"
    assert second == f"after=ftjob-1&{first}"


def test_one_page_can_be_had_alone(server: Any, client: Any) -> None:
    server.answer({"object": "list", "data": [JOB], "has_more": True, "last_id": "ftjob-1"})
    page = client.jobs.list(limit=1).page()
    assert (page.data[0].id, page.has_more, page.next_after) == ("ftjob-1", True, "ftjob-1")


def test_an_id_cannot_leave_its_place_in_the_path(server: Any, client: Any) -> None:
    server.answer(JOB)
    client.jobs.get("a?b#c")
    client.models.delete("ft:base/name:org::1")
    assert [asked.path for asked in server.asked] == [
        "/v1/fine_tuning/jobs/a%3Fb%23c",
        "/v1/models/ft:base/name:org::1",
    ]


def test_a_broken_download_goes_on_where_it_broke(server: Any, client: Any, tmp_path: Path) -> None:
    body = bytes(range(100))
    server.answer(
        server.reply(body, cut_after=40, headers={"ETag": '"v1"'}),
        server.reply(body[40:], status=206, cut_after=30, headers={"ETag": '"v1"'}),
        server.reply(body[70:], status=206),
    )
    artifact = Artifact(name="new/it", bytes=100, sha256=hashlib.sha256(body).hexdigest())
    assert client.jobs.download("ftjob-1", artifact, tmp_path) == tmp_path / "new" / "it"
    assert (tmp_path / "new" / "it").read_bytes() == body
    assert [asked.headers.get("range") for asked in server.asked] == [None, "bytes=40-", "bytes=70-"]
    assert server.asked[1].headers["if-range"] == '"v1"'


def test_a_download_that_failed_goes_on_when_it_is_asked_for_again(
    server: Any, client: Any, tmp_path: Path, error_reply: Any
) -> None:
    body = bytes(range(100))
    artifact = Artifact(name="it", bytes=100, sha256=hashlib.sha256(body).hexdigest())
    server.answer(server.reply(body, cut_after=40), error_reply(403))
    with pytest.raises(ApiError):
        client.jobs.download("ftjob-1", artifact, tmp_path)
    server.answer(server.reply(body[40:], status=206))
    client.jobs.download("ftjob-1", artifact, tmp_path)
    assert (tmp_path / "it").read_bytes() == body
    assert server.asked[-1].headers["range"] == "bytes=40-"
    assert server.asked[-1].headers["if-range"] == f'"{artifact.sha256}"'
    assert [path.name for path in tmp_path.iterdir()] == ["it"]


def test_bytes_that_are_read_go_on_where_they_broke(server: Any, client: Any, error_reply: Any) -> None:
    server.answer(
        error_reply(503),
        server.reply(b"0123456789", cut_after=4, headers={"ETag": '"v1"'}),
        server.reply(b"456789", status=206),
    )
    assert b"".join(client.files.content("file-1")) == b"0123456789"
    assert server.asked[2].headers["range"] == "bytes=4-"


def test_bytes_that_change_while_they_are_read_are_not_mixed(server: Any, client: Any) -> None:
    server.answer(
        server.reply(b"0123456789", cut_after=4, headers={"ETag": '"v1"'}),
        server.reply(b"abcdefghij", headers={"ETag": '"v2"'}),
    )
    with pytest.raises(ApiError, match="changed"):
        list(client.files.content("file-1"))


def test_a_bucket_gives_the_bytes_and_never_sees_the_key(
    server: Any, client: Any, bucket: Any, tmp_path: Path
) -> None:
    body = bytes(range(100))
    bucket.answer(
        bucket.reply(body, cut_after=40, headers={"ETag": '"b"'}), bucket.reply(body[40:], status=206)
    )
    server.answer(server.reply(b"", status=307, headers={"Location": f"{bucket.url}/signed?by=us"}))
    artifact = Artifact(name="it", bytes=100, sha256=hashlib.sha256(body).hexdigest())
    client.jobs.download("ftjob-1", artifact, tmp_path)
    assert (tmp_path / "it").read_bytes() == body
    assert [asked.path for asked in bucket.asked] == ["/signed?by=us"] * 2
    assert all("authorization" not in asked.headers for asked in bucket.asked)
    assert "authorization" in server.asked[0].headers


def test_a_damaged_download_leaves_nothing(server: Any, client: Any, tmp_path: Path) -> None:
    server.answer(server.reply(b"something else"))
    with pytest.raises(ApiError, match="damaged"):
        client.jobs.download("ftjob-1", Artifact(name="it", bytes=1, sha256="0" * 64), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_artifact_cannot_leave_its_folder(server: Any, client: Any, tmp_path: Path) -> None:
    evil = Artifact(name="../evil", bytes=1, sha256="0" * 64)
    with pytest.raises(ApiError, match="outside"):
        client.jobs.download("ftjob-1", evil, tmp_path / "folder")
    assert server.asked == []


def test_the_address_comes_from_the_data_folder(
    server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LUTHIER_URL", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("LUTHIER_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("LUTHIER_API_KEY", "lk_test\n")
    (tmp_path / "server.json").write_text(json.dumps({"url": server.url, "pid": 1}))
    server.answer({"object": "list", "data": []})
    with Client() as client:
        assert list(client.models.list()) == []
    assert server.asked[0].path == "/v1/models"
    assert server.asked[0].headers["authorization"] == "Bearer lk_test"


def test_an_address_may_end_in_v1(server: Any) -> None:
    server.answer({"object": "list", "data": []})
    with Client(f"{server.url}/v1/", "lk_test") as client:
        client.models.list().page()
    assert server.asked[0].path == "/v1/models"


@pytest.mark.parametrize(
    ("url", "key", "message"),
    [
        ("localhost:8000", "lk_test", "http://host:port"),
        ("http://127.0.0.1:1", "", "LUTHIER_API_KEY"),
        ("http://127.0.0.1:1", "lk_tést", "copy the key again"),
    ],
)
def test_a_client_that_cannot_work_says_what_it_needs(
    url: str, key: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.delenv("LUTHIER_API_KEY", raising=False)
    with pytest.raises(SetupError, match=message):
        Client(url, key)
