"""Files on their way to the server, by both clients: in one request, and in parts that outlive a crash."""

import hashlib
import json
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from luthier.client import ApiError, files, uploads

FILE = {"id": "file-1", "bytes": 10, "created_at": 1, "filename": "a.jsonl", "purpose": "fine-tune"}
UPLOAD = {"id": "upload_1", "bytes": 10, "filename": "a.jsonl", "purpose": "fine-tune", "status": "pending"}


@pytest.fixture(autouse=True)
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A data folder, and parts of four bytes."""
    monkeypatch.setenv("LUTHIER_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setattr(uploads, "PART_BYTES", 4)
    return tmp_path / "data"


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that counts as large: it goes in the parts `0123`, `4567` and `89`."""
    monkeypatch.setattr(files, "LARGE_BYTES", 8)
    (tmp_path / "a.jsonl").write_bytes(b"0123456789")
    return tmp_path / "a.jsonl"


def part(number: int, content: bytes = b"") -> dict[str, Any]:
    return {"id": f"part_{number}", "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def sent_parts(server: Any) -> list[bytes]:
    """The contents of the parts that came."""
    found = [re.search(rb"\r\n\r\n(.*)\r\n--", asked.body, re.DOTALL) for asked in server.asked]
    return [match[1] for match in found if match]


def test_a_small_file_is_watched_and_names_its_purpose_first(
    server: Any, client: Any, tmp_path: Path
) -> None:
    server.answer(FILE)
    path = tmp_path / "small.jsonl"
    path.write_bytes(b"x" * 300_000)
    seen: list[int] = []
    assert client.files.upload(path, on_bytes=seen.append).id == "file-1"
    body = server.asked[0].body
    assert body.index(b'name="purpose"') < body.index(b'name="file"; filename="small.jsonl"')
    assert len(seen) > 2
    assert seen[-1] == 300_000


def test_a_large_file_goes_in_parts(server: Any, client: Any, large: Path, error_reply: Any) -> None:
    server.answer(
        UPLOAD, part(1), error_reply(503), part(2), part(3), UPLOAD | {"status": "completed", "file": FILE}
    )
    seen: list[int] = []
    assert client.files.upload(large, on_bad_row="drop", on_bytes=seen.append).id == "file-1"
    assert json.loads(server.asked[0].body) == {
        "bytes": 10,
        "filename": "a.jsonl",
        "mime_type": "application/octet-stream",
        "purpose": "fine-tune",
        "on_bad_row": "drop",
    }
    assert sent_parts(server) == [b"0123", b"4567", b"4567", b"89"]
    assert server.asked[-1].path == "/v1/uploads/upload_1/complete"
    assert json.loads(server.asked[-1].body) == {"part_ids": ["part_1", "part_2", "part_3"]}
    assert seen[-1] == 10


def test_an_upload_that_broke_off_goes_on(
    server: Any, client: Any, large: Path, error_reply: Any, data_dir: Path
) -> None:
    server.answer(UPLOAD, part(1), error_reply(400, "no room"))
    with pytest.raises(ApiError, match="no room"):
        client.files.upload(large)
    assert stat.S_IMODE(data_dir.stat().st_mode) == 0o700
    there = UPLOAD | {"parts": [part(1, b"0123")]}
    server.asked.clear()
    server.answer(there, part(2), part(3), UPLOAD | {"status": "completed", "file": FILE})
    assert client.files.upload(large).id == "file-1"
    assert (server.asked[0].method, server.asked[0].path) == ("GET", "/v1/uploads/upload_1")
    assert sent_parts(server) == [b"4567", b"89"]
    assert json.loads(server.asked[-1].body)["part_ids"] == ["part_1", "part_2", "part_3"]
    assert list((data_dir / "client" / "uploads").iterdir()) == []


@pytest.mark.parametrize("ended", [{"status": "expired"}, {"status": "cancelled"}, None])
def test_an_upload_that_is_over_begins_anew(
    server: Any, client: Any, large: Path, error_reply: Any, ended: dict[str, str] | None
) -> None:
    server.answer(UPLOAD, error_reply(400, "no room"))
    with pytest.raises(ApiError):
        client.files.upload(large)
    over = error_reply(404, "No such upload", "not_found") if ended is None else UPLOAD | ended
    again = UPLOAD | {"id": "upload_2"}
    server.answer(over, again, part(1), part(2), part(3), again | {"status": "completed", "file": FILE})
    assert client.files.upload(large).id == "file-1"
    assert server.asked[-1].path == "/v1/uploads/upload_2/complete"


def test_a_piece_that_comes_twice_is_two_parts(server: Any, client: Any, large: Path) -> None:
    large.write_bytes(b"000000000")
    server.answer(
        UPLOAD | {"bytes": 9}, part(1, b"0000"), part(2, b"0000"), part(3, b"0"), UPLOAD | {"file": FILE}
    )
    client.files.upload(large)
    assert json.loads(server.asked[-1].body) == {"part_ids": ["part_1", "part_2", "part_3"]}


def test_a_server_without_parts_gets_the_file_whole(
    server: Any, client: Any, large: Path, error_reply: Any
) -> None:
    server.answer(error_reply(404, "There is nothing", "not_found"), FILE)
    assert client.files.upload(large).id == "file-1"
    assert [asked.path for asked in server.asked] == ["/v1/uploads", "/v1/files"]
    assert b"0123456789" in server.asked[1].body


def test_parts_are_not_sent_again_for_a_key_that_was_refused(
    server: Any, client: Any, large: Path, error_reply: Any
) -> None:
    server.answer(UPLOAD, part(1), part(2), part(3), error_reply(401, "no such key", "invalid_api_key"))
    with pytest.raises(ApiError, match="no such key"):
        client.files.upload(large)
    there = [part(number, content) for number, content in enumerate((b"0123", b"4567", b"89"), 1)]
    server.asked.clear()
    server.answer(UPLOAD | {"parts": there}, UPLOAD | {"status": "completed", "file": FILE})
    assert client.files.upload(large).id == "file-1"
    assert [asked.method for asked in server.asked] == ["GET", "POST"]


def test_a_file_that_is_refused_is_sent_anew_the_next_time(
    server: Any, client: Any, large: Path, error_reply: Any, data_dir: Path
) -> None:
    server.answer(UPLOAD, part(1), part(2), part(3), error_reply(400, "line 1 is broken", "invalid_file"))
    with pytest.raises(ApiError, match="line 1 is broken"):
        client.files.upload(large)
    assert list((data_dir / "client" / "uploads").iterdir()) == []
