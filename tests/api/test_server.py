"""The API as a process of its own, and what only a real connection shows."""

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest

from luthier.installation import Installation, open_installation, prepare
from luthier.keys import new_key, parse_key
from luthier.settings import Settings
from luthier.tables import ApiKey

_MIB = 1 << 20
_ROW = (
    b'{"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "'
    + b"x" * 900
    + b'"}]}\n'
)
_HEAD = (
    b'--xyz\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nfine-tune\r\n'
    b'--xyz\r\nContent-Disposition: form-data; name="file"; filename="rows.jsonl"\r\n\r\n'
)
_TAIL = b"\r\n--xyz--\r\n"

Start = Callable[..., subprocess.Popen[str]]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """Starts `python -P -m api` with settings; its output can be read line by line."""
    processes: list[subprocess.Popen[str]] = []

    def run(**settings: str) -> subprocess.Popen[str]:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("LUTHIER_")}
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "api"],
            env={**clean, "LUTHIER_DATA_DIR": str(tmp_path_factory.mktemp("data")), **settings},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        processes.append(process)
        return process

    yield run
    for process in processes:
        process.terminate()
        process.communicate(timeout=30)


@pytest.fixture(scope="module")
def process(start: Start) -> tuple[psutil.Process, str, str]:
    """A served installation: the process, its address and its key."""
    port, key = _free_port(), new_key().text
    started = start(LUTHIER_PORT=str(port), LUTHIER_BOOTSTRAP_KEY=key)
    assert started.stdout is not None
    assert any("api_listens" in line for line in started.stdout)
    return psutil.Process(started.pid), f"127.0.0.1:{port}", key


def _peak_bytes(process: psutil.Process) -> int:
    """The most memory that a process ever had resident."""
    status = Path(f"/proc/{process.pid}/status").read_text(encoding="ascii")
    return int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) * 1024


def _upload(address: str, key: str, row_count: int) -> Any:
    """Send a generated file of that many rows, never held in memory; returns what it became."""

    def body() -> Iterator[bytes]:
        yield _HEAD
        # Rows that are all alike are refused.
        batch = b"".join(_ROW.replace(b"xxx", b"%03d" % number, 1) for number in range(256))
        for _ in range(row_count // 256):
            yield batch
        yield _TAIL

    headers = {
        "Authorization": f"Bearer {key}",
        "Content-Type": "multipart/form-data; boundary=xyz",
        "Content-Length": str(len(_HEAD) + len(_ROW) * (row_count // 256 * 256) + len(_TAIL)),
    }
    with closing(http.client.HTTPConnection(address, timeout=120)) as connection:
        connection.request("POST", "/v1/files", body(), headers)
        return json.loads(connection.getresponse().read())


def test_a_large_upload_takes_no_memory(process: tuple[psutil.Process, str, str]) -> None:
    server, address, key = process
    assert _upload(address, key, 256)["status"] == "processed"
    before = _peak_bytes(server)
    file = _upload(address, key, 256 * _MIB // len(_ROW))
    assert (file["status"], file["bytes"] > 255 * _MIB) == ("uploaded", True)
    assert _peak_bytes(server) - before < 64 * _MIB


def test_the_first_start_shows_one_key_and_a_stop_is_clean(start: Start) -> None:
    first = start(LUTHIER_PORT=str(_free_port()))
    assert first.stdout is not None
    lines = []
    for line in first.stdout:
        lines.append(line)
        if "api_listens" in line:
            break
    keys = re.findall(r"lk_\w+", "".join(lines))
    assert [parse_key(key) is not None for key in keys] == [True]
    first.send_signal(signal.SIGTERM)
    assert first.wait(timeout=30) == 0


def test_a_stop_ends_streams_in_order(start: Start) -> None:
    port, key = _free_port(), new_key().text
    started = start(LUTHIER_PORT=str(port), LUTHIER_BOOTSTRAP_KEY=key)
    assert started.stdout is not None
    assert any("api_listens" in line for line in started.stdout)
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
        connection.request("GET", "/v1/fine_tuning/events/stream", headers={"Authorization": f"Bearer {key}"})
        response = connection.getresponse()
        assert response.readline() == b"retry: 3000\n"
        started.send_signal(signal.SIGTERM)
        # A connection that is cut off after the time of grace would raise IncompleteRead.
        assert response.read() == b"\n"
    assert started.wait(timeout=30) == 0


def test_settings_that_contradict_each_other_are_refused(start: Start) -> None:
    process = start(LUTHIER_HOST="192.0.2.1")
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 64
    assert "LUTHIER_PUBLIC_URL" in output


def _send_raw(server: str, key: str, head: str, pieces: Iterable[bytes] = ()) -> bytes:
    """Send a request piece by piece, all of it, and only then read its answer."""
    parts = urlsplit(server)
    with socket.create_connection((parts.hostname or "", parts.port or 0), timeout=30) as connection:
        text = f"{head}\r\nHost: localhost\r\nAuthorization: Bearer {key}\r\nConnection: close\r\n\r\n"
        connection.sendall(text.encode())
        for piece in pieces:
            connection.sendall(piece)
        answer = b""
        while chunk := connection.recv(65536):
            answer += chunk
    return answer


@pytest.mark.parametrize("framing", ["Content-Length: 100000000", "Transfer-Encoding: chunked"])
def test_a_body_of_100_mb_is_refused_and_the_client_hears_it(server: str, key: str, framing: str) -> None:
    head = f"POST /v1/fine_tuning/jobs HTTP/1.1\r\nContent-Type: application/json\r\n{framing}"
    piece = b" " * 1_000_000
    pieces = [piece] * 100
    if "chunked" in framing:
        pieces = [f"{len(piece):x}\r\n".encode() + piece + b"\r\n"] * 100 + [b"0\r\n\r\n"]
    answer = _send_raw(server, key, head, pieces)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b'"body_too_large"' in answer


def test_a_client_that_asks_first_is_spared_the_body(server: str, key: str) -> None:
    head = "POST /v1/fine_tuning/jobs HTTP/1.1\r\nContent-Length: 100000000\r\nExpect: 100-continue"
    answer = _send_raw(server, key, f"{head}\r\nContent-Type: application/json")
    assert answer.startswith(b"HTTP/1.1 413 ")


def test_without_a_key_not_a_byte_of_the_body_is_asked_for(server: str) -> None:
    head = "POST /v1/files HTTP/1.1\r\nContent-Length: 100000000\r\nExpect: 100-continue"
    answer = _send_raw(server, "lk_wrong", head)
    assert answer.startswith(b"HTTP/1.1 401 ")


def test_the_server_does_not_tell_what_it_runs_on(process: tuple[psutil.Process, str, str]) -> None:
    with urllib.request.urlopen(f"http://{process[1]}/livez") as answer:
        assert answer.headers.get("server") is None


def test_nothing_listens_beyond_loopback_while_no_key_is_valid(start: Start, tmp_path: Path) -> None:
    with _opened(tmp_path) as installation:
        prepare(installation)
        with installation.database.transaction() as session:
            for row in session.query(ApiKey):
                row.revoked_at = row.created_at
    # What would be listened on is no address of this machine: nothing is opened, whatever happens.
    fields = {"LUTHIER_DATA_DIR": str(tmp_path), "LUTHIER_HOST": "192.0.2.1"}
    process = start(LUTHIER_PUBLIC_URL="https://tune.example", **fields)
    output, _ = process.communicate(timeout=60)
    assert (process.returncode, "no key is valid" in output) == (64, True)


@contextmanager
def _opened(data: Path) -> Iterator[Installation]:
    installation = open_installation(Settings(data_dir=data))
    yield installation
    installation.database.close()
