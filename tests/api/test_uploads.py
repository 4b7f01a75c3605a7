"""What happens to a file on its way in: kept whole, or refused with its line and nothing left behind."""

import dataclasses
import gzip
import hashlib
import io
import json
import resource
import socket
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import anyio
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from starlette.testclient import TestClient

from api import decoding
from api.app import create_app
from api.pace import paced
from luthier import repository
from luthier.errors import CATALOGUE, LuthierError, code_of_finding
from luthier.installation import Installation
from luthier.storage import FileStorage
from tests.api.conftest import ROWS, jsonl

Upload = Callable[..., Any]
_GOOD = ROWS[0]
_ASSISTANT, _SYSTEM = {"role": "assistant", "content": "A"}, {"role": "system", "content": "S"}


def _left_behind(installation: Installation) -> list[Path]:
    return [path for path in installation.storage.root.rglob("*") if path.is_file()]


def _form(*parts: tuple[str, bytes], boundary: str = "xyz") -> dict[str, Any]:
    """A body that is written by hand; a part is the end of its Content-Disposition, and its bytes."""
    body = b"".join(
        f"--{boundary}\r\nContent-Disposition: form-data; {name}\r\n\r\n".encode() + data + b"\r\n"
        for name, data in parts
    )
    return {
        "content": body + f"--{boundary}--\r\n".encode(),
        "headers": {"Content-Type": f"multipart/form-data; boundary={boundary}"},
    }


def _parquet(rows: list[Any]) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), file)
    return file.getvalue()


_PACKED = [
    pytest.param(lambda rows: gzip.compress(jsonl(*rows)), id="gzip"),
    pytest.param(lambda rows: zstandard.compress(jsonl(*rows)), id="zstd"),
    pytest.param(_parquet, id="parquet"),
    pytest.param(lambda rows: gzip.compress(_parquet(rows)), id="packed parquet"),
]


def test_an_uploaded_file_is_processed_and_comes_back_as_it_was(client: TestClient, upload: Upload) -> None:
    data = jsonl(*ROWS)
    file = upload(data).json()
    assert (file["bytes"], file["status"], file["filename"]) == (len(data), "processed", "rows.jsonl")
    assert client.get(f"/v1/files/{file['id']}").json() == file
    assert client.get(f"/v1/files/{file['id']}/content").content == data


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "0 bytes"),
        (b"\n \n", "no rows"),
        ("{\"messages\": \"é\"}\n".encode("latin-1"), "Line 1: byte"),
        (jsonl(_GOOD, _GOOD, b'{"messages": [}\n'), "Line 3:"),
        (jsonl(_GOOD, b'{"messages": NaN}\n'), "Line 2:"),
        (jsonl(_GOOD, {"messages": [{"role": "user", "content": "Q"}]}), "Line 2:"),
        (jsonl({"messages": [_ASSISTANT, _SYSTEM]}), "Line 1:"),
        (jsonl({"messages": [{"role": "user", "content": 7}, _ASSISTANT]}), "Line 1:"),
        (jsonl({"messages": "no list"}), "Line 1:"),
        (jsonl(_GOOD, {"prompt": "Q", "completion": "A"}), "Line 2:"),
        (json.dumps(_GOOD).encode("utf-16"), "UTF-16"),
    ],
    ids=[
        "empty", "blank", "latin-1", "json", "nan", "no-assistant", "order", "types", "not-list", "mixed",
        "utf-16",
    ],
)  # fmt: skip
def test_a_bad_file_is_refused_with_its_line_and_leaves_nothing(
    client: TestClient, upload: Upload, installation: Installation, data: bytes, words: str
) -> None:
    response = upload(data)
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (400, "invalid_file", "file")
    assert words in error["message"]
    assert error["details"]
    assert _left_behind(installation) == []
    assert client.get("/v1/files").json()["data"] == []


@pytest.mark.parametrize(
    "data",
    [
        b"PK\x03\x04" + b"\0" * 60,
        b"BZh91AY",
        gzip.compress(gzip.compress(jsonl(_GOOD))),
        b"%PDF-1.7\n",
        b"\x89PNG\r\n",
    ],
    ids=["zip", "bzip2", "packed-twice", "pdf", "png"],
)
def test_a_format_that_nobody_reads_is_no_media_of_ours(
    client: TestClient, upload: Upload, data: bytes
) -> None:
    response = upload(data)
    assert (response.status_code, response.json()["error"]["code"]) == (415, "unsupported_file_format")
    assert client.get("/v1/files").json()["data"] == []


@pytest.mark.parametrize(
    ("finding", "status"),
    [
        ("archive.nested", 415), ("format.magic_mismatch", 415), ("format.multiline_json", 400),
        ("dataset.decoded_too_large", 413), ("dataset.too_large", 413), ("dataset.no_rows", 400),
    ],
)  # fmt: skip
def test_what_was_found_first_decides_the_status(finding: str, status: int) -> None:
    assert CATALOGUE[code_of_finding(finding)].status == status


def test_all_first_errors_of_a_file_are_told(upload: Upload) -> None:
    error = upload(jsonl(*[{"messages": []}] * 30)).json()["error"]
    assert [item["line"] for item in error["details"]] == list(range(1, 21))
    assert "29 more errors" in error["message"]


def test_a_large_file_is_validated_by_a_worker(client: TestClient, installation: Installation) -> None:
    settings = installation.settings.model_copy(update={"whole_check_bytes": 100})
    app = create_app(dataclasses.replace(installation, settings=settings))
    with TestClient(app, headers=client.headers) as small_check:
        form = {"data": {"purpose": "fine-tune"}, "files": {"file": ("a.jsonl", jsonl(*ROWS))}}
        file = small_check.post("/v1/files", **form).json()
        binary = small_check.post("/v1/files", **form | {"files": {"file": ("a", b"PK\x03\x04" * 99)}})
    with installation.database.reading() as session:
        work = repository.find_open_work(session, file_id=file["id"])
    assert (file["status"], [item.kind for item in work]) == ("uploaded", ["validate"])
    assert binary.status_code == 415


@pytest.mark.parametrize("pack", _PACKED)
def test_a_small_file_that_must_be_decoded_is_checked_in_the_upload(
    upload: Upload, installation: Installation, pack: Callable[[list[Any]], bytes]
) -> None:
    bad = {"messages": [{"role": "user", "content": "Q"}]}
    refused = upload(pack([*ROWS, bad]))
    error = refused.json()["error"]
    assert (refused.status_code, error["code"], error["param"]) == (400, "invalid_file", "file")
    assert (error["details"][0]["line"], _left_behind(installation)) == (5, [])
    assert upload(pack(ROWS)).json()["status"] == "processed"


@pytest.mark.parametrize(
    ("name", "value"), [("_SECONDS", 0.01), ("_LIMITS", ((resource.RLIMIT_AS, 1 << 20),))]
)
def test_a_file_that_takes_more_than_a_request_may_is_left_to_a_worker(
    upload: Upload, installation: Installation, monkeypatch: pytest.MonkeyPatch, name: str, value: Any
) -> None:
    monkeypatch.setattr(decoding, name, value)
    file = upload(gzip.compress(jsonl(*ROWS, b"broken\n"))).json()
    with installation.database.reading() as session:
        work = repository.find_open_work(session, file_id=file["id"])
    assert (file["status"], [item.kind for item in work]) == ("uploaded", ["validate"])


def test_no_more_files_are_decoded_at_once_than_there_are_places(
    upload: Upload, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding, "_PLACES", threading.BoundedSemaphore(1))
    packed = gzip.compress(jsonl(*ROWS))
    with decoding._PLACES:
        assert upload(packed).json()["status"] == "uploaded"
    assert [upload(packed).json()["status"] for _ in range(2)] == ["processed"] * 2


def test_a_page_of_parquet_that_asks_for_gigabytes_is_not_decoded_in_the_service(upload: Upload) -> None:
    file = io.BytesIO()
    prompts = [f"{number}{'x' * 1000}" for number in range(50_000)]
    rows = pa.table({"prompt": prompts, "completion": prompts})
    pq.write_table(rows, file, compression="zstd", use_dictionary=False, data_page_size=1 << 30)
    before = pa.default_memory_pool().max_memory()
    assert upload(file.getvalue()).json()["status"] in ("processed", "uploaded")
    assert pa.default_memory_pool().max_memory() == before


@pytest.mark.parametrize("file_first", [True, False])
def test_fields_and_file_come_in_any_order(client: TestClient, file_first: bool) -> None:
    parts = [
        ('name="purpose"', b"fine-tune"), ('name="expires_after[anchor]"', b"created_at"),
        ('name="expires_after[seconds]"', b"3600"), ('name="file"; filename="upload"', jsonl(*ROWS)),
    ]  # fmt: skip
    file = client.post("/v1/files", **_form(*(reversed(parts) if file_first else parts))).json()
    assert file["expires_at"] - file["created_at"] == 3600


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        pytest.param('filename="../../etc/passwd"', "passwd", id="D77-path"),
        pytest.param('filename="C:\\\\data\\\\rows.jsonl"', "rows.jsonl", id="D77-drive"),
        pytest.param('filename="con"', "con", id="D77-device"),
        pytest.param(f'filename="{"x" * 5000}"', "x" * 254 + "…", id="D77-long"),
        pytest.param('filename="' + "\u7434" * 5000 + '"', "\u7434" * 254 + "…", id="D77-long-wide"),
        pytest.param('filename="a\x07\u202eb.jsonl"', "a\ufffd\ufffdb.jsonl", id="D77-control"),
        pytest.param('filename="a\0b"', "a\ufffdb", id="D77-nul"),
        pytest.param('filename="%2e%2e%2fa%0d%0aX-Y: 1"', "%2e%2e%2fa%0d%0aX-Y: 1", id="D77-percent"),
        pytest.param('filename=".."', "upload", id="D77-dots"),
        pytest.param('filename="räksmörgås.jsonl"', "räksmörgås.jsonl", id="letters"),
        pytest.param('filename=""', "upload", id="D77-empty"),
        pytest.param("x=1", "upload", id="none"),
    ],
)
def test_a_filename_is_a_label_that_can_be_shown(client: TestClient, given: str, shown: str) -> None:
    form = _form(('name="purpose"', b"fine-tune"), (f'name="file"; {given}', jsonl(*ROWS)))
    file = client.post("/v1/files", **form).json()
    headers = client.get(f"/v1/files/{file['id']}/content").headers
    assert file["filename"] == shown
    assert headers["content-disposition"] == f"attachment; filename*=UTF-8''{quote(shown, safe='')}"
    assert "x-y" not in headers


_FILE = ('name="file"; filename="a"', jsonl(*ROWS))
_PURPOSE = ('name="purpose"', b"fine-tune")
_ANCHOR = ('name="expires_after[anchor]"', b"created_at")


def _seconds(text: bytes) -> tuple[str, bytes]:
    return 'name="expires_after[seconds]"', text


@pytest.mark.parametrize(
    ("parts", "code", "param"),
    [
        ([_FILE], "missing_required_parameter", "purpose"),
        ([_PURPOSE], "missing_required_parameter", "file"),
        ([], "missing_required_parameter", "file"),
        ([('name="purpose"', b"batch"), _FILE], "invalid_value", "purpose"),
        pytest.param([_PURPOSE, _FILE, _FILE], "invalid_value", "file", id="D76-files"),
        pytest.param([_PURPOSE] * 10_000, "invalid_value", "purpose", id="D76-parts"),
        ([_PURPOSE, ('name="porpose"', b"x"), _FILE], "unknown_parameter", "porpose"),
        pytest.param([('name="purpose"', b"x" * 5000), _FILE], "invalid_value", "purpose", id="D76-field"),
        ([_PURPOSE, _seconds(b"3600"), _FILE], "invalid_value", "expires_after[anchor]"),
        ([_PURPOSE, _ANCHOR, _seconds(b"1e4"), _FILE], "invalid_value", "expires_after[seconds]"),
        ([_PURPOSE, _ANCHOR, _seconds(b"3599"), _FILE], "invalid_value", "expires_after[seconds]"),
        pytest.param(
            [_PURPOSE, (f'name="file"; filename="{"x" * 30_000}"', b"x")], "invalid_multipart", None,
            id="D76-header",
        ),
    ],
)  # fmt: skip
def test_a_bad_form_names_the_field_and_leaves_nothing(
    client: TestClient, installation: Installation, parts: Any, code: str, param: str | None
) -> None:
    response = client.post("/v1/files", **_form(*parts))
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (400, code, param)
    assert _left_behind(installation) == []


@pytest.mark.parametrize(
    ("content_type", "status"),
    [
        ("application/json", 415),
        pytest.param("multipart/form-data", 400, id="D76-no-boundary"),
        pytest.param("multipart/form-data; boundary=other", 400, id="D76-other-boundary"),
    ],
)
def test_what_is_no_form_is_refused(client: TestClient, content_type: str, status: int) -> None:
    body = _form(_PURPOSE, _FILE)["content"]
    assert (
        client.post("/v1/files", content=body, headers={"Content-Type": content_type}).status_code == status
    )


@pytest.mark.parametrize(
    ("length", "status"),
    [
        pytest.param("Content-Length: 60", 400, id="D73-smaller"),
        pytest.param("Content-Length: 100000", None, id="D73-larger"),
        pytest.param("Content-Length: -1", 400, id="D73-negative"),
        pytest.param("X-Length: 60", 400, id="D73-absent"),
    ],
)
def test_a_length_that_is_not_the_bodys_leaves_nothing(
    server: str, key: str, installation: Installation, length: str, status: int | None
) -> None:
    form, parts = _form(_PURPOSE, _FILE), urlsplit(server)
    lines = ["POST /v1/files HTTP/1.1", "Host: localhost", f"Authorization: Bearer {key}", length]
    lines += [f"Content-Type: {form['headers']['Content-Type']}", "Connection: close", "", ""]
    with socket.create_connection((parts.hostname or "", parts.port or 0), timeout=30) as connection:
        connection.sendall("\r\n".join(lines).encode() + form["content"])
        if status is None:
            connection.shutdown(socket.SHUT_WR)
        answer = connection.makefile("rb").read()
    # Who promised more and went away is owed no answer.
    assert answer.split(b" ")[1:2] == ([] if status is None else [b"%d" % status])
    assert _left_behind(installation) == []


def test_an_upload_that_breaks_off_is_refused(client: TestClient, installation: Installation) -> None:
    form = _form(_PURPOSE, _FILE)
    form["content"] = form["content"][:-20]
    assert client.post("/v1/files", **form).json()["error"]["code"] == "invalid_multipart"
    assert _left_behind(installation) == []


def test_d74_an_upload_whose_client_goes_away_leaves_nothing(installation: Installation, key: str) -> None:
    form = _form(_PURPOSE, ('name="file"; filename="a"', b"x" * 3_000_000))
    arriving = iter([{"type": "http.request", "body": form["content"][:2_500_000], "more_body": True}])
    headers = form["headers"] | {
        "Authorization": f"Bearer {key}",
        "Content-Length": str(len(form["content"])),
    }
    raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "method": "POST", "path": "/v1/files", "query_string": b"", "headers": raw}
    answered: list[Any] = []

    async def receive() -> Any:
        return next(arriving, {"type": "http.disconnect"})

    async def send(message: Any) -> None:
        answered.append(message)

    anyio.run(create_app(installation), scope, receive, send)
    assert (answered, _left_behind(installation)) == ([], [])


@pytest.mark.parametrize("announced", [True, pytest.param(False, id="D73-chunked")])
def test_a_file_over_the_cap_is_refused(
    client: TestClient, installation: Installation, announced: bool
) -> None:
    settings = installation.settings.model_copy(update={"max_upload_bytes": 100_000})
    form = _form(_PURPOSE, ('name="file"; filename="a"', b"x" * 200_000))
    body: Any = form["content"] if announced else iter([form["content"]])
    app = create_app(dataclasses.replace(installation, settings=settings))
    with TestClient(app, headers=client.headers) as capped:
        response = capped.post("/v1/files", content=body, headers=form["headers"])
    assert (response.status_code, response.json()["error"]["code"]) == (413, "file_too_large")
    assert _left_behind(installation) == []


@pytest.mark.parametrize(
    ("sha256", "code"),
    [
        pytest.param(hashlib.sha256(_FILE[1]).hexdigest().upper(), None, id="as announced"),
        pytest.param("0" * 64, "checksum_mismatch", id="D75"),
    ],
)
def test_bytes_that_differ_from_what_was_announced_are_not_kept(
    client: TestClient, installation: Installation, sha256: str, code: str | None
) -> None:
    answer = client.post("/v1/files", **_form(('name="sha256"', sha256.encode()), _PURPOSE, _FILE))
    assert answer.json().get("error", {}).get("code") == code
    assert bool(_left_behind(installation)) == (code is None)


@pytest.mark.parametrize("place", ["body", "part"])
def test_d72_an_encoded_upload_is_refused(client: TestClient, installation: Installation, place: str) -> None:
    packed = 'name="file"; filename="a.jsonl.gz"\r\nContent-Encoding: gzip'
    form = _form(_PURPOSE, (packed, gzip.compress(_FILE[1])) if place == "part" else _FILE)
    headers = form["headers"] | ({"Content-Encoding": "gzip"} if place == "body" else {})
    answer = client.post("/v1/files", content=form["content"], headers=headers)
    assert (answer.status_code, _left_behind(installation)) == (415, [])


def test_d78_an_upload_that_stops_is_ended(installation: Installation, key: str) -> None:
    settings = installation.settings.model_copy(update={"upload_idle_seconds": 0.05})
    form = _form(_PURPOSE, _FILE)
    headers = form["headers"] | {"Authorization": f"Bearer {key}"}
    raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "method": "POST", "path": "/v1/files", "query_string": b"", "headers": raw}
    arriving = iter([{"type": "http.request", "body": form["content"][:100], "more_body": True}])
    answered: list[Any] = []

    async def receive() -> Any:
        return next(arriving, None) or await anyio.sleep_forever()

    async def send(message: Any) -> None:
        answered.append(message)

    anyio.run(create_app(dataclasses.replace(installation, settings=settings)), scope, receive, send)
    assert (answered[0]["status"], _left_behind(installation)) == (408, [])


def test_d78_an_upload_that_trickles_in_is_ended() -> None:
    seconds = iter(range(0, 1000, 20))

    async def trickle() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield b"x" * 1024

    async def taken() -> int:
        return sum([len(chunk) async for chunk in paced(trickle(), 60, lambda: next(seconds))])

    with pytest.raises(LuthierError, match="4096 bytes came in 80 seconds"):
        anyio.run(taken)


class _FullStorage(FileStorage):
    """A folder on a full disk."""

    def free_bytes(self) -> int:
        return 1000


def test_d80_nothing_is_taken_on_a_full_disk(client: TestClient, installation: Installation) -> None:
    full = dataclasses.replace(installation, storage=_FullStorage(installation.storage.root))
    with TestClient(create_app(full), headers=client.headers) as crowded:
        response = crowded.post("/v1/files", **_form(_PURPOSE, _FILE))
        ready = crowded.get("/readyz")
    assert (response.status_code, response.headers["x-should-retry"]) == (507, "false")
    assert (ready.status_code, ready.headers["retry-after"]) == (503, "2")
    assert "disk" in ready.json()["error"]["message"]


def test_files_are_listed_in_pages_both_ways(client: TestClient, upload: Upload) -> None:
    ids = [upload().json()["id"] for _ in range(3)]
    first = client.get("/v1/files", params={"limit": 2}).json()
    second = client.get("/v1/files", params={"limit": 2, "after": first["last_id"]}).json()
    assert [file["id"] for file in first["data"] + second["data"]] == ids[::-1]
    assert (first["has_more"], second["has_more"]) == (True, False)
    ascending = client.get("/v1/files", params={"order": "asc", "purpose": "fine-tune"}).json()
    assert (ascending["first_id"], ascending["last_id"]) == (ids[0], ids[2])
    assert client.get("/v1/files", params={"purpose": "fine-tune-results"}).json()["data"] == []


def test_a_deleted_file_is_gone_and_one_in_use_is_not_deleted(
    client: TestClient, upload: Upload, installation: Installation, file_id: str
) -> None:
    job = client.post("/v1/fine_tuning/jobs", json={"model": "tiny", "training_file": file_id}).json()
    refused = client.delete(f"/v1/files/{file_id}")
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "file_in_use")
    client.post(f"/v1/fine_tuning/jobs/{job['id']}/cancel")
    assert client.delete(f"/v1/files/{file_id}").json() == {"id": file_id, "object": "file", "deleted": True}
    assert client.get(f"/v1/files/{file_id}").status_code == 404
    assert _left_behind(installation) == []


def test_a_file_whose_bytes_cannot_be_removed_now_is_deleted_all_the_same(
    client: TestClient, installation: Installation, file_id: str
) -> None:
    folder = installation.settings.storage / "files"
    folder.rename(folder.with_name("away"))
    # The disk fails: below what is no folder nothing can be removed.
    folder.write_bytes(b"")
    assert client.delete(f"/v1/files/{file_id}").json()["deleted"]
    assert client.get(f"/v1/files/{file_id}").status_code == 404
