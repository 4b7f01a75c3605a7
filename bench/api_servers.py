"""The servers that are measured, each started as its users start it, with one worker process."""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import psutil

_START_SECONDS = 120
_SETTLE_SECONDS, _IDLE_SHARE = 60, 0.1
_BARE = Path(__file__).with_name("api_bare.py")


@dataclass(frozen=True)
class Server:
    """A server that answers.

    Attributes:
        database: tells the processor seconds of its database; None where that is no process of its own.
    """

    name: str
    port: int
    process: psutil.Process
    database: Callable[[], float] | None = None

    def cpu_seconds(self) -> float:
        """Of all its processes that live."""
        return sum(sum(each.cpu_times()[:2]) for each in self._processes())

    def database_seconds(self) -> float | None:
        return None if self.database is None else self.database()

    def memory_bytes(self) -> int:
        """Resident memory; pages that processes share are counted for each."""
        return sum(_status(each.pid, "VmRSS") for each in self._processes())

    def peak_bytes(self) -> int:
        """The most there was since the last `reset_peak`."""
        return sum(_status(each.pid, "VmHWM") for each in self._processes())

    def reset_peak(self) -> int:
        """Forget the peak; returns the memory now."""
        for each in self._processes():
            Path(f"/proc/{each.pid}/clear_refs").write_text("5")
        return self.memory_bytes()

    def _processes(self) -> list[psutil.Process]:
        return [self.process, *self.process.children(recursive=True)]


@contextmanager
def luthier(
    kind: str, settings: Mapping[str, str], log: Path, database: Callable[[], float] | None
) -> Iterator[Server]:
    """`luthier api`, as installed."""
    port = _free_port()
    command = [str(Path(sys.executable).with_name("luthier")), "api"]
    settings = {**settings, "LUTHIER_PORT": str(port)}
    with _running(
        f"luthier, {kind}", command, port, probe="/livez", log=log, settings=settings, database=database
    ) as server:
        yield server


@contextmanager
def bare(folder: Path, log: Path) -> Iterator[Server]:
    """The limit: FastAPI and Starlette under the same uvicorn, with nothing to do."""
    port = _free_port()
    command = [sys.executable, str(_BARE), str(port), str(folder)]
    with _running("bare", command, port, probe="/bare", log=log) as server:
        yield server


@contextmanager
def mlflow(
    kind: str, python: Path, url: str, folder: Path, database: Callable[[], float] | None
) -> Iterator[Server]:
    """MLflow's tracking server, from an environment of its own; its log lies in the folder."""
    port = _free_port()
    command = [str(python), "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--workers", "1", "--backend-store-uri", url]
    command += ["--artifacts-destination", str(folder / "artifacts")]
    settings = {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
        # Its queue of jobs is several processes more, which nothing here asks.
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    log, name = folder / "server.log", f"mlflow, {kind}"
    with _running(
        name, command, port, probe="/health", log=log, settings=settings, database=database
    ) as server:
        yield server


@contextmanager
def _running(
    name: str,
    command: Sequence[str],
    port: int,
    *,
    probe: str,
    log: Path,
    settings: Mapping[str, str] = MappingProxyType({}),
    database: Callable[[], float] | None = None,
) -> Iterator[Server]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith("LUTHIER_")}
    with log.open("wb") as output:
        started = subprocess.Popen(command, env={**clean, **settings}, stdout=output, stderr=output)
    server = Server(name, port, psutil.Process(started.pid), database)
    try:
        _wait(f"http://127.0.0.1:{port}{probe}", started, log)
        _settle(server)
        yield server
    finally:
        children = server.process.children(recursive=True) if started.poll() is None else []
        started.terminate()
        psutil.wait_procs([server.process, *children], timeout=20)
        for each in children:
            if each.is_running():
                each.kill()
        started.wait(20)


def _wait(url: str, started: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + _START_SECONDS
    while time.monotonic() < until and started.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5):  # noqa: S310, an address of ours
                return
        except OSError:
            time.sleep(0.2)
    raise RuntimeError(f"{url} does not answer:\n{log.read_text(errors='replace')[-3000:]}")


def _settle(server: Server) -> None:
    """Wait until what a server does beside its answers when it starts is done."""
    until, before = time.monotonic() + _SETTLE_SECONDS, server.cpu_seconds()
    while time.monotonic() < until:
        time.sleep(1)
        now = server.cpu_seconds()
        if 0 <= now - before < _IDLE_SHARE:
            return
        before = now


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def _status(pid: int, name: str) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(f"{name}:"))
