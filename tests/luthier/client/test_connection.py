"""Calls over HTTP: what is repeated and what is not, errors, addresses and keys."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from luthier.client import ApiError, Client
from luthier.client.connection import Connection


def test_an_error_carries_all_that_the_server_said(
    server: Any, connection: Connection, error_reply: Any
) -> None:
    server.answer(error_reply(400, "r must be at least 1"))
    with pytest.raises(ApiError, match="r must be at least 1") as caught:
        connection.request("POST", "/fine_tuning/jobs", json={})
    error = caught.value
    assert (error.status, error.code, error.param, error.request_id) == (
        400,
        "invalid_value",
        "qlora.r",
        "req_1",
    )


def test_a_get_is_sent_again_while_the_server_is_busy(
    server: Any, connection: Connection, error_reply: Any
) -> None:
    server.answer(error_reply(503, **{"Retry-After": "7"}), error_reply(429), {"id": "it"})
    assert connection.request("GET", "/files/it").json() == {"id": "it"}
    assert server.pauses == [7.0, 1.0]


def test_a_post_is_sent_once(server: Any, connection: Connection, error_reply: Any) -> None:
    server.answer(error_reply(503))
    with pytest.raises(ApiError):
        connection.request("POST", "/fine_tuning/jobs", json={})
    assert len(server.asked) == 1


def test_giving_up_tells_the_last_error(server: Any, connection: Connection, error_reply: Any) -> None:
    server.answer(error_reply(503, "the database is away", "database_unavailable"))
    with pytest.raises(ApiError, match="the database is away"):
        connection.request("GET", "/files")
    assert len(server.asked) == len(server.pauses) + 1 == 4


def test_a_server_that_is_not_there_is_named() -> None:
    pauses: list[float] = []
    connection = Connection("http://127.0.0.1:1", "lk_test", pause=pauses.append)
    with pytest.raises(ApiError, match=r"127\.0\.0\.1:1 does not answer.*luthier up") as caught:
        connection.request("GET", "/files")
    connection.close()
    assert caught.value.status is None
    assert pauses == [0.5, 1.0, 2.0]


def test_an_answer_of_something_else_is_told_apart(server: Any, connection: Connection) -> None:
    server.answer({"detail": "Not Found"})
    server.script[0].status = 404
    with pytest.raises(ApiError, match="not Luthier"):
        connection.request("GET", "/files")


def test_a_broken_download_goes_on_where_it_broke(
    server: Any, connection: Connection, tmp_path: Path
) -> None:
    body = bytes(range(100))
    server.answer(
        server.reply(body, cut_after=40),
        server.reply(body[40:], status=206),
    )
    sha256 = hashlib.sha256(body).hexdigest()
    connection.download("/files/it/content", tmp_path / "new" / "it", sha256=sha256)
    assert (tmp_path / "new" / "it").read_bytes() == body
    assert [asked.headers.get("range") for asked in server.asked] == [None, "bytes=40-"]


def test_a_damaged_download_leaves_nothing(server: Any, connection: Connection, tmp_path: Path) -> None:
    server.answer(server.reply(b"something else"))
    with pytest.raises(ApiError, match="damaged"):
        connection.download("/files/it/content", tmp_path / "it", sha256="0" * 64)
    assert list(tmp_path.iterdir()) == []


def test_the_address_comes_from_the_data_folder(
    server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LUTHIER_URL", raising=False)
    monkeypatch.setenv("LUTHIER_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("LUTHIER_API_KEY", "lk_test\n")
    (tmp_path / "server.json").write_text(json.dumps({"url": server.url, "pid": 1}))
    server.answer({"object": "list", "data": []})
    with Client() as client:
        assert client.models.list() == []
    assert server.asked[0].path == "/v1/models"
    assert server.asked[0].headers["authorization"] == "Bearer lk_test"


def test_an_address_may_end_in_v1(server: Any) -> None:
    server.answer({"object": "list", "data": []})
    with Client(f"{server.url}/v1/", "lk_test") as client:
        client.models.list()
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
    url: str, key: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LUTHIER_API_KEY", raising=False)
    with pytest.raises(ApiError, match=message):
        Client(url, key)
