"""Luthier as its users run it: real processes, started by the command line, ended by their ids."""

import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from importlib.resources import files
from pathlib import Path

import psutil
import pytest
from openai import OpenAI

from luthier.keys import new_key
from tests.waiting import wait_for

_START_SECONDS = 60
_END_SECONDS = 60


@dataclass
class Service:
    """A running installation: its address, key and processes."""

    url: str
    key: str
    environment: dict[str, str]
    folder: Path
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        """Start `luthier ARGUMENTS`; its output goes to a file beside the data."""
        log = (self.folder / f"{arguments[0]}.log").open("ab")
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "luthier.cli", *arguments],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=self.folder,
        )
        log.close()
        self.processes.append(process)
        return process

    def wait_until_ready(self) -> None:
        wait_for(self._is_ready, _START_SECONDS, f"the start (see {self.folder})")

    @cached_property
    def client(self) -> OpenAI:
        """The stock client; closed at the end."""
        return OpenAI(base_url=f"{self.url}/v1", api_key=self.key, max_retries=0)

    def get(self, path: str) -> bytes:
        """The body of a GET with the key."""
        request = urllib.request.Request(f"{self.url}{path}", headers={"Authorization": f"Bearer {self.key}"})
        with urllib.request.urlopen(request, timeout=30) as answer:
            body: bytes = answer.read()
        return body

    def end(self) -> None:
        """SIGTERM to each process, then SIGKILL to what is left of it and its children."""
        self.client.close()
        family = [child for process in self.processes for child in _family(process.pid)]
        for process in self.processes:
            process.send_signal(signal.SIGTERM)
        for process in self.processes:
            try:
                process.wait(_END_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for child in family:
            if child.is_running():
                child.kill()

    def _is_ready(self) -> bool:
        for process in self.processes:
            assert process.poll() is None, f"{process.args} ended: see {self.folder}"
        try:
            with urllib.request.urlopen(f"{self.url}/readyz", timeout=2) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False


@pytest.fixture
def service(tmp_path: Path, model_dir: Path) -> Iterator[Service]:
    """A service that is not started yet: fresh folder, free port, own key, short times."""
    port, key = _free_port(), new_key().text
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LUTHIER_")} | {
        "LUTHIER_DATA_DIR": str(tmp_path / "data"),
        "LUTHIER_MODEL_DIR": str(model_dir),
        "LUTHIER_PORT": str(port),
        "LUTHIER_GPUS": "cpu",
        "LUTHIER_BOOTSTRAP_KEY": key,
        "LUTHIER_WATCH_SECONDS": "0.2",
        "LUTHIER_HEARTBEAT_SECONDS": "1",
        "LUTHIER_SELF_FENCE_SECONDS": "8",
        "LUTHIER_LEASE_SECONDS": "10",
        "LUTHIER_SWEEP_SECONDS": "1",
        "OMP_NUM_THREADS": "1",
    }
    service = Service(f"http://127.0.0.1:{port}", key, environment, tmp_path)
    yield service
    service.end()


@pytest.fixture(scope="session")
def faq() -> Path:
    """503 real questions and answers in Alpaca form."""
    found = [
        path
        for path in Path(str(files("zaragoza_construction_faq"))).rglob("*.jsonl")
        if "alpaca" in path.name
    ]
    return next(path for path in found if "en" in path.name)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def _family(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
