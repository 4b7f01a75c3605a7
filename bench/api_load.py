"""Keep-alive clients over loopback: what a server answers in a second, and how long each answer takes.

The client is a few lines over a socket, since it shares the machine's cores with the server: a client that
parses as carefully as one should would be measured instead. A transfer sends or takes one large body.
"""

import re
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from api_servers import Server

CONNECTIONS = 4
# As many as poll at once, where that is what an operation is for.
POLLERS = 32
_BLOCK_BYTES = 1 << 20
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_WARM_UP_SHARE = 0.15

Headers = Mapping[str, str]


@dataclass(frozen=True)
class Measured:
    """What one operation came to.

    Attributes:
        per_second: of `unit`.
        server_ms: processor time of the server for one request.
        database_ms: the same of the database, where that is a process of its own.
    """

    server: str
    operation: str
    count: int
    per_second: float
    p50_ms: float
    p99_ms: float
    server_ms: float | None
    database_ms: float | None = None
    unit: str = "requests"


@dataclass(frozen=True)
class Transfer:
    """One large body; memory is that of the server's processes."""

    server: str
    operation: str
    size_bytes: int
    megabytes_per_second: float
    server_seconds: float
    memory_before_mib: float
    memory_peak_mib: float


@dataclass(frozen=True)
class Answer:
    status: int
    head: bytes
    body: bytes

    def header(self, name: str) -> str:
        found = re.search(rb"\r\n" + name.encode() + rb": *([^\r]*)", self.head, re.IGNORECASE)
        return found[1].decode() if found else ""


def request(method: str, path: str, headers: Headers, body: bytes = b"") -> bytes:
    """A request as it is sent."""
    return _head(method, path, headers, len(body)) + body


class Connection:
    """One connection that is kept."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=300)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def ask(self, asked: bytes) -> Answer:
        self._socket.sendall(asked)
        return self._answer()

    def send_file(self, head: bytes, path: Path, tail: bytes) -> Answer:
        self._socket.sendall(head)
        with path.open("rb") as file:
            self._socket.sendfile(file)
        self._socket.sendall(tail)
        return self._answer()

    def take(self, asked: bytes) -> int:
        """Bytes of an answer, which are thrown away."""
        self._socket.sendall(asked)
        head, rest = self._read_head()
        length, block = int(_LENGTH.findall(head)[0]), bytearray(_BLOCK_BYTES)
        left = length - len(rest)
        while left > 0:
            left -= self._socket.recv_into(block) or left
        return length

    def close(self) -> None:
        self._socket.close()

    def _answer(self) -> Answer:
        head, body = self._read_head()
        status = int(head[9:12])
        found = _LENGTH.search(head)
        if found is None:
            while status not in (204, 304) and not body.endswith(b"0\r\n\r\n"):
                body += self._more()
            return Answer(status, head, body)
        parts, missing = [body], int(found[1]) - len(body)
        while missing > 0 and status != 304:
            parts.append(self._more())
            missing -= len(parts[-1])
        return Answer(status, head, b"".join(parts))

    def _read_head(self) -> tuple[bytes, bytes]:
        data = b""
        while b"\r\n\r\n" not in data:
            data += self._more()
        head, _, rest = data.partition(b"\r\n\r\n")
        return head, rest

    def _more(self) -> bytes:
        data = self._socket.recv(_BLOCK_BYTES)
        if not data:
            raise ConnectionError("the server has closed the connection")
        return data


def measure(
    server: Server,
    operation: str,
    next_request: Callable[[], bytes],
    *,
    seconds: float,
    connections: int = CONNECTIONS,
    expected: int = 200,
    each: int = 1,
    unit: str = "requests",
) -> Measured:
    """Ask for some seconds over some connections, behind a short warm-up.

    Args:
        each: how much of `unit` is in one request.
    Raises:
        RuntimeError: an answer has another status.
    """
    _ask(server, next_request, _WARM_UP_SHARE * seconds, connections, expected)
    cpu, database = server.cpu_seconds(), server.database_seconds()
    began = time.perf_counter()
    times = sorted(_ask(server, next_request, seconds, connections, expected))
    taken = time.perf_counter() - began
    count = len(times)
    found = Measured(
        server=server.name,
        operation=operation,
        count=count,
        per_second=round(each * count / taken, 1),
        p50_ms=_at(times, 0.5),
        p99_ms=_at(times, 0.99),
        server_ms=each_ms(server.cpu_seconds(), cpu, count),
        database_ms=each_ms(server.database_seconds(), database, count),
        unit=unit,
    )  # fmt: skip
    show(found)
    return found


def show(found: Measured) -> None:
    """One line of the table."""
    costs = "".join(
        f"{ms:9.2f}" if ms is not None else f"{'':9}" for ms in (found.server_ms, found.database_ms)
    )
    print(
        f"{found.server:18} {found.operation:32}{found.count:7}{found.per_second:11,.1f} {found.unit:9}"
        f"{found.p50_ms:9.1f}{found.p99_ms:9.1f}{costs}", flush=True,
    )  # fmt: skip


def show_heading() -> None:
    print(
        f"{'':18} {'':32}{'count':>7}{'a second':>11} {'':9}{'p50 ms':>9}{'p99 ms':>9}"
        f"{'cpu ms':>9}{'db ms':>9}"
    )


def send(
    server: Server, operation: str, path: Path, *, asked: tuple[str, str, Headers], form: tuple[bytes, bytes]
) -> tuple[Transfer, Answer]:
    """Send a file.

    Args:
        asked: method, path and headers.
        form: what stands around the file in the body.
    """
    method, url, headers = asked
    before, size = server.reset_peak(), path.stat().st_size
    cpu, began = server.cpu_seconds(), time.perf_counter()
    connection = Connection(server.port)
    head = _head(method, url, headers, size + len(form[0]) + len(form[1]))
    answer = connection.send_file(head + form[0], path, form[1])
    connection.close()
    if answer.status not in (200, 201):
        raise RuntimeError(f"{server.name} {operation}: {answer.status} {answer.body[:300]!r}")
    return _transfer(server, operation, size, began=began, cpu=cpu, before=before), answer


def take(server: Server, operation: str, asked: bytes) -> Transfer:
    """Take a large answer, and throw it away."""
    before = server.reset_peak()
    cpu, began = server.cpu_seconds(), time.perf_counter()
    connection = Connection(server.port)
    size = connection.take(asked)
    connection.close()
    return _transfer(server, operation, size, began=began, cpu=cpu, before=before)


def _transfer(
    server: Server, operation: str, size: int, *, began: float, cpu: float, before: float
) -> Transfer:
    taken = time.perf_counter() - began
    found = Transfer(
        server=server.name,
        operation=operation,
        size_bytes=size,
        megabytes_per_second=round(size / taken / 1e6, 1),
        server_seconds=round(server.cpu_seconds() - cpu, 2),
        memory_before_mib=round(before / (1 << 20), 1),
        memory_peak_mib=round(server.peak_bytes() / (1 << 20), 1),
    )
    print(
        f"{found.server:18} {operation:32}{size / 1e6:9,.0f} MB{found.megabytes_per_second:9,.0f} MB/s, cpu "
        f"{found.server_seconds} s, memory {found.memory_before_mib} -> {found.memory_peak_mib} MiB",
        flush=True,
    )
    return found


def _ask(
    server: Server, next_request: Callable[[], bytes], seconds: float, connections: int, expected: int
) -> list[float]:
    """Milliseconds of each request."""
    until, times, problems = time.monotonic() + seconds, list[float](), list[str]()

    def go() -> None:
        connection = Connection(server.port)
        while time.monotonic() < until and not problems:
            asked = next_request()
            began = time.perf_counter()
            answer = connection.ask(asked)
            times.append(1000 * (time.perf_counter() - began))
            if answer.status != expected:
                problems.append(f"{server.name}: {asked[:200]!r} -> {answer.status} {answer.body[:500]!r}")
        connection.close()

    threads = [threading.Thread(target=go) for _ in range(connections)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if problems:
        raise RuntimeError(problems[0])
    return times


def _head(method: str, path: str, headers: Headers, length: int) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", f"Content-Length: {length}"]
    if method == "GET":
        lines.pop()
    return "\r\n".join([*lines, *(f"{name}: {value}" for name, value in headers.items()), "", ""]).encode()


def each_ms(after: float | None, before: float | None, count: int) -> float | None:
    return None if after is None or before is None else round(1000 * (after - before) / count, 2)


def _at(times: list[float], share: float) -> float:
    return round(times[min(len(times) - 1, int(share * len(times)))], 2)
