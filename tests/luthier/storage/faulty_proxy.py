"""A proxy before a real server that does harm: a fault for each of the next connections, then none."""

import socket
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

_PIECE_BYTES = 64 * 1024
HANG, BUSY, CONFLICT, LOST = "hang", "busy", "conflict", "lost"


def _refusal(status: bytes, code: bytes) -> bytes:
    body = b"<Error><Code>%s</Code><Message>Not now.</Message></Error>" % code
    return b"HTTP/1.1 %s\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s" % (status, len(body), body)


_REFUSALS = {
    BUSY: _refusal(b"503 Slow Down", b"SlowDown"),
    CONFLICT: _refusal(b"409 Conflict", b"OperationAborted"),
}


@dataclass
class FaultyProxy:
    """Forwards connections to `target`.

    Attributes:
        faults: for the next connections in turn: HANG never answers, BUSY answers 503, CONFLICT 409, LOST has
            the request done and loses the answer, a number breaks the answer off after so many bytes.
        connection_count: how many came.
    """

    target: tuple[str, int]
    faults: deque[str | int | None] = field(default_factory=deque)
    connection_count: int = 0
    url: str = ""
    ended: threading.Event = field(default_factory=threading.Event)

    def serve(self, listener: socket.socket) -> None:
        while not self.ended.is_set():
            with suppress(TimeoutError):
                client, _ = listener.accept()
                self.connection_count += 1
                fault = self.faults.popleft() if self.faults else None
                threading.Thread(target=self._handle, args=(client, fault), daemon=True).start()

    def _handle(self, client: socket.socket, fault: str | int | None) -> None:
        with client, _shut_at_the_end(client), suppress(OSError):
            if fault == HANG:
                self.ended.wait()
            elif isinstance(fault, str) and fault in _REFUSALS:
                client.recv(_PIECE_BYTES)
                client.sendall(_REFUSALS[fault])
            else:
                self._forward(client, fault)

    def _forward(self, client: socket.socket, fault: str | int | None) -> None:
        with socket.create_connection(self.target) as server:
            threading.Thread(target=_pipe, args=(client, server), daemon=True).start()
            left = fault if isinstance(fault, int) else None
            while piece := server.recv(_PIECE_BYTES):
                if fault == LOST:
                    return
                client.sendall(piece if left is None else piece[:left])
                if left is not None and (left := left - len(piece)) <= 0:
                    return


@contextmanager
def faulty_proxy(url: str) -> Iterator[FaultyProxy]:
    """A proxy before the server at `url`."""
    host, _, port = url.removeprefix("http://").partition(":")
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(0.1)
    proxy = FaultyProxy((host, int(port)), url=f"http://127.0.0.1:{listener.getsockname()[1]}")
    thread = threading.Thread(target=proxy.serve, args=(listener,))
    thread.start()
    try:
        yield proxy
    finally:
        proxy.ended.set()
        thread.join()
        listener.close()


@contextmanager
def _shut_at_the_end(client: socket.socket) -> Iterator[None]:
    """A socket that another thread reads from is not closed by closing it."""
    try:
        yield
    finally:
        with suppress(OSError):
            client.shutdown(socket.SHUT_RDWR)


def _pipe(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while piece := source.recv(_PIECE_BYTES):
            target.sendall(piece)
