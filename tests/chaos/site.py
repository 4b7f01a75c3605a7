"""A whole installation for faults: real processes of many hosts on one machine, started and ended by name.

Each host has a data folder of its own; database, storage and broker are shared. Times are scaled: a lease
lasts 2 s. What a site starts carries its folder in the environment, so that nothing it left can hide.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from luthier.database import Database
from luthier.installation import Installation, open_installation, prepare
from luthier.keys import new_key
from luthier.processes import die_with_parent, module_command
from luthier.settings import Settings
from tests.brokers import free_port
from tests.waiting import wait_for

ROOT = Path(__file__).parents[2]
CANARY = "hf_canaryCANARYcanaryCANARYcanary42"
_READY_SECONDS = 60.0
_END_SECONDS = 15.0
# The lease's inequalities hold: 5 heartbeats fit into the self-fence, and that into the lease.
SCALED = {
    "lease_seconds": "2",
    "self_fence_seconds": "1.5",
    "heartbeat_seconds": "0.3",
    "sweep_seconds": "0.5",
    "watch_seconds": "0.1",
    "stop_grace_seconds": "3",
    "cancel_grace_seconds": "2",
    "start_timeout_seconds": "30",
    "doorbell_poll_seconds": "3",
    # Random kills say nothing about a job.
    "max_infra_restarts": "100000",
    "max_user_failures": "100000",
    "max_deaths": "100000",
    "max_queued_jobs": "100000",
    "low_disk_bytes": "1",
    "enough_disk_bytes": "2",
    "log_format": "json",
}


@dataclass
class Site:
    """An installation and its processes.

    Attributes:
        folder: holds all but the database server's files; it stands in every process's environment.
        hosts: names of the hosts that train.
        variables: settings by their names without LUTHIER_.
    """

    folder: Path
    database_url: str
    model_dir: Path
    redis_url: str | None = None
    hosts: tuple[str, ...] = ("host-0", "host-1", "host-2")
    variables: Mapping[str, str] = field(default_factory=dict)
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.key, self.port = new_key().text, free_port()
        self.storage, self.stage = self.folder / "storage", self.folder / "stage"
        (self.stage / "orders").mkdir(parents=True)
        self.installation = self._open()
        self.database: Database = self.installation.database

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def training_names(self) -> dict[str, list[str]]:
        """Names of the processes of each training host."""
        return {
            host: [name for name in self._commands() if name.startswith(f"{host}/")] for host in self.hosts
        }

    def environment(self, host: str) -> dict[str, str]:
        """Of a process on a host: nothing of ours but what finds the code."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("LUTHIER_")}
        named = SCALED | self._places(host) | dict(self.variables)
        settings = {f"LUTHIER_{name.upper()}": value for name, value in named.items()}
        own = {"CHAOS_HOST": host, "CHAOS_STAGE": str(self.stage), "PYTHONPATH": str(ROOT)}
        return inherited | settings | own | {"OMP_NUM_THREADS": "1"}

    def start_all(self) -> None:
        """Start every process, and wait until the API answers."""
        for name in self._commands():
            self.start(name)
        self.wait_until_ready()

    def start(self, name: str) -> None:
        """Start a process. It dies with the thread that starts it: call this in the main thread."""
        host = name.split("/", maxsplit=1)[0]
        with (self.folder / f"{name.replace('/', '-')}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                self._commands()[name],
                env=self.environment(host),
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=die_with_parent(signal.SIGKILL),  # noqa: PLW1509, it calls the kernel and no more
            )

    def kill(self, *names: str, restart: bool = False) -> None:
        """`kill -9` to processes and what is in their sessions; trainers have sessions of their own."""
        for name in names:
            self.send(name, signal.SIGKILL)
            self.processes[name].wait()
        if restart:
            for name in names:
                self.start(name)

    def send(self, name: str, number: signal.Signals) -> None:
        """A signal to a process and its session."""
        if self.processes[name].poll() is None:
            os.killpg(self.processes[name].pid, number)

    def terminate(self, name: str) -> int:
        """SIGTERM to one process, as systemd does; its exit code."""
        self.processes[name].send_signal(signal.SIGTERM)
        return self.processes[name].wait(_READY_SECONDS)

    def wait_until_ready(self) -> None:
        wait_for(self._is_ready, _READY_SECONDS)

    def end(self) -> None:
        """End what was started: gently, then by force."""
        for name in self.processes:
            self.send(name, signal.SIGCONT)
            self.send(name, signal.SIGTERM)
        deadline = time.monotonic() + _END_SECONDS
        for name, process in self.processes.items():
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                self.kill(name)

    def close(self) -> None:
        """End all, and let go of the database."""
        self.end()
        self.database.close()

    def _commands(self) -> dict[str, list[str]]:
        """What runs on which host, by name."""
        commands = {
            "head/api": module_command("luthier.cli", "api"),
            "head/dispatcher": module_command("luthier.cli", "dispatcher"),
        }
        for queue, hosts in (("cpu", ("head",)), ("train", self.hosts)):
            for host in hosts:
                place = ["--queue", queue, "--device", "cpu"]
                poll = [] if self.redis_url is None else ["--poll-seconds", SCALED["doorbell_poll_seconds"]]
                commands[f"{host}/agent"] = _launched("worker.agent", *place, *poll)
                if self.redis_url is not None:
                    commands[f"{host}/doorbell"] = _launched("worker.celery_worker", *place)
        return commands

    def _places(self, host: str) -> dict[str, str]:
        places = {
            "data_dir": str(self.folder / host),
            "database_url": self.database_url,
            "storage_dir": str(self.storage),
            "model_dir": str(self.model_dir),
            "secret_key": "the-key-of-all-hosts",
            "bootstrap_key": self.key,
            "hub_token": CANARY,
            "port": str(self.port),
            "gpus": "cpu",
        }
        return places | ({} if self.redis_url is None else {"redis_url": self.redis_url})

    def _open(self) -> Installation:
        values = SCALED | self._places("head") | dict(self.variables)
        installation = open_installation(Settings.model_validate(values))
        assert installation.settings.problems() == []
        prepare(installation)
        return installation

    def _is_ready(self) -> bool:
        for name, process in self.processes.items():
            assert process.poll() is None, f"{name} ended: see its log in {self.folder}"
        try:
            return httpx.get(f"{self.url}/readyz", timeout=2).status_code == 200
        except httpx.TransportError:
            return False


@contextmanager
def running(site: Site) -> Iterator[Site]:
    """A site whose processes run while the block lasts."""
    try:
        site.start_all()
        yield site
    finally:
        site.close()


def _launched(module: str, *arguments: str) -> list[str]:
    return [sys.executable, "-P", "-m", "tests.chaos.launch", module, *arguments]
