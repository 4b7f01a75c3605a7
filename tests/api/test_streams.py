"""Server-sent events and followed logs, over a real connection."""

import asyncio
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import psutil
import pytest
from starlette.testclient import TestClient

from api.app import create_app
from api.streams.backlog import Backlog
from api.streams.broadcast import KEPT_EVENTS, Broadcast
from api.streams.logs import LogFollower, follow_log
from luthier import events
from luthier.database import clock
from luthier.installation import Installation
from luthier.service import control, deletion, endings, recording, runs
from luthier.service.retries import Ending, Limits
from luthier.tables import Job
from tests.factories import NOW, claim, create_job, create_prepared_job, create_project
from tests.serving import serving
from tests.waiting import later, wait_for

_JOB = "/v1/fine_tuning/jobs/ftjob-1"
_STREAM, _LOGS = f"{_JOB}/events/stream", f"{_JOB}/logs?stream=true"
_PROJECT_STREAM = "/v1/fine_tuning/events/stream"


class Served:
    """A server on loopback and a client of it."""

    def __init__(self, broadcast: Broadcast, url: str, key: str) -> None:
        self.broadcast, self.url = broadcast, url
        self.headers = {"Authorization": f"Bearer {key}"}

    @contextmanager
    def read(self, path: str = _STREAM, **headers: str) -> Iterator[Iterator[dict[str, Any]]]:
        """The events of a stream as they come; `retry` and comments are events without data."""
        with httpx.stream("GET", self.url + path, headers=self.headers | headers, timeout=60) as response:
            assert response.status_code == 200, response.read()
            assert response.headers["content-type"].startswith("text/event-stream")
            assert (response.headers["cache-control"], response.headers["x-accel-buffering"]) == (
                "no-store",
                "no",
            )
            yield _parsed(response.iter_lines())


def _parsed(lines: Iterator[str]) -> Iterator[dict[str, Any]]:
    event: dict[str, Any] = {}
    for line in lines:
        if line:
            name, _, value = line.partition(": ")
            event[name or "comment"] = json.loads(value) if name == "data" else value.removeprefix(": ")
        else:
            yield event
            event = {}


def _of(stream: Iterator[dict[str, Any]], *names: str) -> dict[str, Any]:
    """The next event of one of some names."""
    return next(event for event in stream if event.get("event") in names)


@pytest.fixture
def served(installation: Installation, key: str) -> Iterator[Served]:
    app = create_app(installation)
    with serving(app, backlog=2048) as url:
        yield Served(app.state.broadcast, url, key)


@pytest.fixture
def lease(installation: Installation) -> runs.Lease:
    """The lease of a job that has just started."""
    with installation.database.transaction() as session:
        create_prepared_job(session)
        taken = claim(session)
        assert taken is not None
        recording.record_events(session, taken.lease, [events.RunStarted()], offset=1, now=NOW)
        return taken.lease


def _record(installation: Installation, lease: runs.Lease, *steps: int) -> None:
    lines = [events.StepLogged(step=step, total_steps=5000, epoch=0.1, train_loss=1.5) for step in steps]
    with installation.database.transaction() as session:
        recording.record_events(session, lease, lines, offset=1, now=NOW)


def _cancel(installation: Installation, job_id: str = "ftjob-1", lease: runs.Lease | None = None) -> None:
    """Cancel a job; of one that is worked on, the run ends too."""
    with installation.database.transaction() as session:
        now = clock(session)
        control.request_cancel(session, session.get_one(Job, job_id), now=now)
        if lease is not None:
            endings.stop_run(session, lease, exit_code=85, now=now)


def test_a_stream_tells_the_past_the_present_and_the_end(served: Served, installation: Installation) -> None:
    with installation.database.transaction() as session:
        create_job(session)
    with served.read() as stream:
        assert next(stream) == {"retry": "3000"}
        first = next(stream)
        assert (first["id"], first["event"]) == ("1", "message")
        assert first["data"]["message"] == "Created fine-tuning job: ftjob-1"
        assert _of(stream, "status")["data"]["status"] == "queued"
        _cancel(installation)
        rest = list(stream)
    last = rest[-1]
    assert [event["id"] for event in rest if event["event"] == "message"] == ["4", "5"]
    assert (last["event"], last["id"], last["data"]["status"]) == ("done", "5", "cancelled")


def test_a_stream_goes_on_where_it_broke_and_is_empty_after_the_end(
    served: Served, installation: Installation, lease: runs.Lease
) -> None:
    _record(installation, lease, 1, 2)
    with served.read() as stream:
        numbers = [_of(stream, "message", "metrics")["id"] for _ in range(3)]
    _record(installation, lease, 3)
    with served.read(**{"Last-Event-ID": numbers[-1]}) as stream:
        assert _of(stream, "message", "metrics")["id"] == str(int(numbers[-1]) + 1)
    with served.read(f"{_STREAM}?after=ftevent-1-2") as stream:
        assert _of(stream, "message", "metrics")["id"] == "3"
        _cancel(installation, lease=lease)
        last = _of(stream, "done")["id"]
    again = httpx.get(served.url + _STREAM, headers=served.headers | {"Last-Event-ID": last})
    assert (again.status_code, again.content) == (204, b"")


def test_a_long_history_comes_whole_and_once(
    served: Served, installation: Installation, lease: runs.Lease
) -> None:
    _record(installation, lease, *range(1, 2501))
    with served.read() as stream:
        numbers = []
        while len(numbers) < 2500:
            numbers.append(int(_of(stream, "message", "metrics")["id"]))
        _record(installation, lease, 2501)
        numbers.append(int(_of(stream, "metrics")["id"]))
    assert numbers == list(range(1, 2502))


def test_many_readers_cost_the_looks_of_one(
    served: Served, installation: Installation, lease: runs.Lease
) -> None:
    address = urlsplit(served.url)
    key = served.headers["Authorization"]
    request = f"GET {_STREAM} HTTP/1.1\r\nHost: localhost\r\nAuthorization: {key}\r\n\r\n"
    threads = threading.active_count()
    with ExitStack() as stack:
        sockets = []
        for _ in range(200):
            connection = socket.create_connection((address.hostname or "", address.port or 0), timeout=60)
            stack.enter_context(connection)
            connection.sendall(request.encode())
            sockets.append(connection)
        for connection in sockets:
            _read_until(connection, b"event: status")
        assert threading.active_count() - threads < 60
        before = served.broadcast.look_count
        _record(installation, lease, 7)
        for connection in sockets:
            _read_until(connection, b'"step":7')
        # Looks go on by the clock while the answers are read.
        assert served.broadcast.look_count - before < 100


def _read_until(connection: socket.socket, wanted: bytes) -> None:
    found = b""
    while wanted not in found:
        chunk = connection.recv(1 << 16)
        assert chunk, found
        found = found[-len(wanted) :] + chunk


@pytest.mark.parametrize("path", [_STREAM, _PROJECT_STREAM])
def test_a_silent_stream_is_kept_alive(served: Served, lease: runs.Lease, path: str) -> None:
    """Also where the database is looked at more often than that."""
    served.broadcast.keep_alive_seconds = 0.2
    with served.read(path) as stream:
        assert next(event for event in stream if "comment" in event) == {"comment": "keep-alive"}


@pytest.mark.parametrize("path", [_LOGS, f"{_JOB}/logs"], ids=["stream", "download"])
def test_a_client_that_takes_nothing_is_let_go(
    installation: Installation, key: str, lease: runs.Lease, path: str
) -> None:
    size = 32 << 20
    _log_path(installation.settings.runs, lease.epoch).write_bytes(bytes(size))
    request = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {key}\r\n\r\n"
    with serving(create_app(installation), stall_seconds=0.3) as url, socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.settimeout(60)
        port = urlsplit(url).port
        client.connect(("127.0.0.1", port))
        client.sendall(request.encode())
        received = len(client.recv(1000))
        wait_for(lambda: not _has_connection(port))
        with suppress(ConnectionResetError):
            while chunk := client.recv(1 << 20):
                received += len(chunk)
    assert 0 < received < size


def _has_connection(port: int | None) -> bool:
    """Whether a server of this process still has one that was made to its port."""
    connections = psutil.Process().net_connections("tcp")
    return any(
        one.laddr.port == port and one.status == psutil.CONN_ESTABLISHED for one in connections if one.laddr
    )


def test_a_stopped_server_ends_its_streams_at_once(served: Served, lease: runs.Lease) -> None:
    with served.read() as stream:
        _of(stream, "status")
        served.broadcast.close()
        assert list(stream) == []


def test_a_stream_that_cannot_look_ends_in_time_all_the_same(
    served: Served, lease: runs.Lease, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The two times are apart, so that the end is not found by a wait that is over."""

    def fail(*_: object) -> None:
        raise OSError

    monkeypatch.setattr(served.broadcast, "_look", fail)
    served.broadcast.longest_seconds, served.broadcast.keep_alive_seconds = 0.1, 0.2
    with served.read(_PROJECT_STREAM) as stream:
        assert list(stream)[-1] == {"comment": "connect again"}


def test_a_look_that_fails_is_not_the_last_one(
    served: Served, lease: runs.Lease, monkeypatch: pytest.MonkeyPatch
) -> None:
    look, failures = served.broadcast._look, [OSError()]

    def fail_first(*asked: Any) -> Any:
        if failures:
            raise failures.pop()
        return look(*asked)

    monkeypatch.setattr(served.broadcast, "_look", fail_first)
    served.broadcast.longest_seconds, served.broadcast.keep_alive_seconds = 5.0, 0.2
    with served.read() as stream:
        assert _of(stream, "status")["data"]["id"] == "ftjob-1"


def test_a_reader_that_is_behind_is_sent_away(
    served: Served, installation: Installation, lease: runs.Lease
) -> None:
    with served.read() as stream:
        _of(stream, "status")
        _record(installation, lease, *range(1, KEPT_EVENTS + 100))
        assert list(stream)[-1] == {"comment": "too slow, connect again"}


def test_who_falls_behind_has_lost_its_place() -> None:
    backlog = Backlog(most=10)
    backlog.add((number, b"%d" % number) for number in range(1, 8))
    slow = backlog.position_behind(3)
    assert backlog.since(slow) == [b"4", b"5", b"6", b"7"]
    backlog.add((number, b"%d" % number) for number in range(8, 30))
    assert backlog.since(slow) is None
    assert backlog.since(backlog.position_behind(backlog.begins_after))[0] == b"%d" % (
        backlog.begins_after + 1
    )  # type: ignore[index]


@pytest.mark.parametrize("after", ["99", "ftevent-2-1", "x", "-1", "1e3", "٣"])
def test_an_event_of_elsewhere_is_no_place_to_go_on_from(
    client: TestClient, lease: runs.Lease, after: str
) -> None:
    refused = client.get(_STREAM, params={"after": after})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "after")


def test_a_stream_of_another_project_is_not_there(stranger: TestClient, lease: runs.Lease) -> None:
    assert stranger.get(_STREAM).status_code == 404
    assert stranger.get(_LOGS).status_code == 404


def test_the_stream_of_a_project_tells_of_every_change_of_its_own_jobs(
    served: Served, installation: Installation, lease: runs.Lease
) -> None:
    with served.read(_PROJECT_STREAM) as stream:
        first = _of(stream, "status")["data"]
        assert (first["id"], first["status"]) == ("ftjob-1", "running")
        with installation.database.transaction() as session:
            create_project(session, "proj-other")
            create_job(session, "ftjob-other", project_id="proj-other")
        with installation.database.transaction() as session:
            create_job(session, "ftjob-2")
        assert _of(stream, "status")["data"]["id"] == "ftjob-2"
        _record(installation, lease, 5)
        assert _of(stream, "status")["data"]["progress"]["step"] == 5
        _cancel(installation, "ftjob-2")
        assert _of(stream, "status")["data"]["status"] == "cancelled"


def test_a_stream_ends_when_its_job_is_deleted(served: Served, installation: Installation) -> None:
    with installation.database.transaction() as session:
        create_job(session)
    with served.read() as stream:
        _of(stream, "status")
        # In one transaction, so that nobody sees the end of the job.
        with installation.database.transaction() as session:
            job, now = session.get_one(Job, "ftjob-1"), clock(session)
            control.request_cancel(session, job, now=now)
            deletion.delete_job(session, job, now=now)
        assert list(stream) == [{"comment": "connect again"}]
    assert httpx.get(served.url + _STREAM, headers=served.headers).status_code == 404


def _log_path(folder: Path, epoch: int) -> Path:
    path = folder / "ftjob-1" / f"e{epoch:04d}" / "log.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def test_a_log_is_followed_until_its_job_ends(
    served: Served, installation: Installation, lease: runs.Lease
) -> None:
    path = _log_path(installation.settings.runs, lease.epoch)
    path.write_bytes(b"one\ntwo\n")
    read = b""
    with httpx.stream("GET", served.url + _LOGS, headers=served.headers, timeout=60) as response:
        chunks = response.iter_bytes()
        while read != b"one\ntwo\n":
            read += next(chunks)
        with path.open("ab") as log:
            log.write(b"three\n")
        while not read.endswith(b"three\n"):
            read += next(chunks)
        # A log that has grown too long is begun anew.
        path.rename(path.with_name("log.1.txt"))
        path.write_bytes(b"four\n")
        while not read.endswith(b"four\n"):
            read += next(chunks)
        _cancel(installation, lease=lease)
        read += b"".join(chunks)
    assert read == b"one\ntwo\nthree\nfour\n"


def test_a_followed_log_ends_in_time_and_goes_on_where_it_broke(
    served: Served, installation: Installation, lease: runs.Lease
) -> None:
    """A key that was revoked is refused then, however long its job goes on."""
    path = _log_path(installation.settings.runs, lease.epoch)
    path.write_bytes(b"one\ntwo\n")
    served.broadcast.longest_seconds = 0.1
    assert httpx.get(served.url + _LOGS, headers=served.headers, timeout=60).content == b"one\ntwo\n"
    with path.open("ab") as log:
        log.write(b"three\n")
    answer = httpx.get(f"{served.url}{_LOGS}&offset=8", headers=served.headers, timeout=60)
    assert answer.content == b"three\n"


def _run_again(installation: Installation, lease: runs.Lease) -> None:
    """Have a second run, with a log of its own, and end the job with it."""
    with installation.database.transaction() as session:
        endings.requeue_run(
            session, lease, ending=Ending.STOPPED, message="", exit_code=85,
            limits=Limits(5, 5, 3), jitter=0.5, now=NOW,
        )  # fmt: skip
        taken = claim(session)
        assert taken is not None
    _log_path(installation.settings.runs, taken.lease.epoch).write_bytes(b"second run\n")
    _cancel(installation, lease=taken.lease)


def test_a_run_that_came_and_went_while_another_was_read_is_not_left_out(
    installation: Installation, lease: runs.Lease
) -> None:
    folder, long = installation.settings.runs, bytes(1 << 20)
    _log_path(folder, lease.epoch).write_bytes(long)

    async def follow() -> bytes:
        broadcast = Broadcast(installation)
        chunks = follow_log(broadcast, LogFollower(installation, "ftjob-1"), "ftjob-1")
        read = await anext(chunks)
        _run_again(installation, lease)
        looked = broadcast.look_count
        while broadcast.look_count < looked + 2:
            await asyncio.sleep(0.01)
        return read + b"".join([chunk async for chunk in chunks])

    assert asyncio.run(follow()) == long + b"second run\n"


def test_who_follows_one_log_learns_where_it_goes_on(
    served: Served, installation: Installation, lease: runs.Lease
) -> None:
    path = _log_path(installation.settings.runs, lease.epoch)
    path.write_bytes(b"one\ntwo\n")

    def opened(query: str) -> AbstractContextManager[httpx.Response]:
        return httpx.stream("GET", f"{served.url}{_LOGS}&{query}", headers=served.headers, timeout=60)

    with opened("log=newest&tail=1") as first:
        path.rename(path.with_name("log.1.txt"))
        path.write_bytes(b"three\n")
        assert (first.headers["x-log-offset"], first.read()) == ("4", b"two\n")
    with opened(f"log={first.headers['x-log']}&offset=5") as second:
        assert (second.headers["x-log-offset"], next(second.iter_bytes())) == ("0", b"three\n")
    _cancel(installation, lease=lease)
    with opened(f"log={second.headers['x-log']}&offset=5") as third:
        assert (third.headers["x-log-offset"], third.read()) == ("5", b"\n")


def test_a_followed_log_begins_where_it_is_asked_to(
    served: Served, installation: Installation, lease: runs.Lease
) -> None:
    _log_path(installation.settings.runs, lease.epoch).write_bytes(b"one\ntwo\nthree\n")
    for query, wanted in (
        ("&tail=1", b"three\n"),
        ("&offset=4", b"two\nthree\n"),
        ("&offset=999", b"one\ntwo\nthree\n"),
    ):
        with httpx.stream("GET", served.url + _LOGS + query, headers=served.headers, timeout=60) as response:
            assert next(response.iter_bytes()) == wanted, query


def test_a_log_that_is_not_there_yet_is_waited_for(served: Served, installation: Installation) -> None:
    with installation.database.transaction() as session:
        create_prepared_job(session)

    def start() -> None:
        with installation.database.transaction() as session:
            taken = claim(session)
            assert taken is not None
        _log_path(installation.settings.runs, taken.lease.epoch).write_bytes(b"here\n")

    with httpx.stream("GET", served.url + _LOGS, headers=served.headers, timeout=60) as response:
        wait_for(lambda: served.broadcast.look_count)
        later(start).join()
        assert next(response.iter_bytes()) == b"here\n"


def test_the_tail_of_a_long_log_is_right(
    client: TestClient, installation: Installation, lease: runs.Lease
) -> None:
    lines = [b"line %d\n" % number for number in range(40_000)]
    _log_path(installation.settings.runs, lease.epoch).write_bytes(b"".join(lines) + b"open end")
    for count in (1, 2, 9000, 39_000, 10**6):
        wanted = b"".join([*lines, b"open end"][-count:])
        assert client.get(f"{_JOB}/logs", params={"tail": count}).content == wanted
