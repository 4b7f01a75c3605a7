"""An agent: one device, or one place on the CPU, and the loop that claims work for it.

`Agent.drain` does what there is to do and returns; a polling loop and a Celery task both call it. The
device's lock lets one of them in at a time, on one machine. `python -P -m worker.agent` is the polling loop.
"""

import argparse
import fcntl
import os
import random
import shutil
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import structlog
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from luthier import __version__, disk
from luthier.database import clock
from luthier.devices import Device, choose_devices, list_gpus
from luthier.ids import new_id
from luthier.installation import Installation, open_installation
from luthier.logs import configure_logs
from luthier.service import claims, outcomes, sweep, workers
from luthier.service.claims import Claim
from luthier.service.retries import Limits
from luthier.settings import Settings
from luthier.status import Kind, Queue
from worker import work
from worker.supervisor import StopFlag, Supervisor

log = structlog.get_logger()


class Agent:
    """Claims jobs of one queue for one device, and has them supervised one after the other.

    Args:
        stopping: set from outside to make room: the current run saves and stops, and nothing is claimed.
        errands_only: a second place on the CPU, for work that somebody waits for: a long preparation in the
            first one does not hold it up.
    """

    def __init__(
        self,
        installation: Installation,
        queue: Queue,
        device: Device,
        *,
        host: str,
        instance_id: str,
        stopping: StopFlag,
        errands_only: bool = False,
        child_command: Callable[[Kind, Path], list[str]] = work.child_command,
    ) -> None:
        self._installation, self._queue, self._device = installation, queue, device
        self._errands_only = errands_only
        self._host, self._instance_id, self.stopping = host, instance_id, stopping
        self._child_command = child_command
        self._place = f"{queue}-{device.id}{'-errands' if errands_only else ''}"
        self.worker_id = f"{host}/{self._place}"
        self._owner = f"{self.worker_id}#{instance_id}"
        self._had_room = True

    def drain(self) -> None:
        """Work until nothing can be claimed, or another process of this host has the device."""
        if self.stopping.is_set() or not self._has_work():
            return
        with self._device_lock() as lock:
            if lock is None:
                return
            # A claim whose commit was not heard of is ours all the same.
            claim = self._find_claim()
            if claim is None:
                self._release_previous()
                claim = self._claim()
            while claim is not None:
                Supervisor(
                    self._installation,
                    claim,
                    device=self._device,
                    lock=lock,
                    stopping=self.stopping,
                    environment=os.environ,
                    child_command=self._child_command,
                ).run()
                claim = None if self.stopping.is_set() else self._claim()

    def serve(self, poll_seconds: float) -> None:
        """Drain again and again until told to stop; survives a database that is away."""
        presence = threading.Thread(target=self._keep_present, name="presence", daemon=True)
        presence.start()
        while not self.stopping.is_set():
            try:
                self.drain()
            except DBAPIError:
                log.warning("database_unreachable", worker_id=self.worker_id)
            self.stopping.wait(poll_seconds)
        presence.join()

    def _has_work(self) -> bool:
        with self._installation.database.reading() as session:
            return claims.has_work(
                session, self._queue, self.worker_id, now=clock(session), errands_only=self._errands_only
            )

    def _claim(self) -> Claim | None:
        if not self._has_room():
            return None

        def take(session: Session) -> Claim | None:
            return claims.claim(
                session,
                self._queue,
                owner=self._owner,
                host=self._host,
                device=self._device.id,
                lease_seconds=self._installation.settings.lease_seconds,
                now=clock(session),
                errands_only=self._errands_only,
            )

        return self._installation.database.run(take, recall=self._recall_claim)

    def _has_room(self) -> bool:
        """Whether work may be taken on: all of it writes. A change is logged, not each look."""
        has_room = disk.has_room(self._installation)
        if has_room != self._had_room:
            log.warning("disk_has_room" if has_room else "disk_low", worker_id=self.worker_id)
        self._had_room = has_room
        return has_room

    def _find_claim(self) -> Claim | None:
        with self._installation.database.reading() as session:
            return self._recall_claim(session)

    def _recall_claim(self, session: Session) -> Claim | None:
        return outcomes.find_claim(session, self._owner, now=clock(session))

    def _release_previous(self) -> None:
        settings = self._installation.settings
        with self._installation.database.transaction() as session:
            now = clock(session)
            released = sweep.release_previous(
                session, self.worker_id, limits=Limits.of(settings), jitter=random.random(), now=now
            )
        for job_id in released:
            log.warning("previous_run_released", job_id=job_id)
            shutil.rmtree(settings.runs / job_id, ignore_errors=True)

    @contextmanager
    def _device_lock(self) -> Iterator[int | None]:
        """The device's lock as a descriptor, or None where another process has it.

        A child inherits it: as long as one lives, nobody else gets the device.
        """
        path = _lock_path(self._installation.settings, self._place, self._device)
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            yield None
            return
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def _keep_present(self) -> None:
        state = "active"
        while state == "active":
            state = "stopped" if self.stopping.is_set() else "active"
            try:
                self._record_presence(state)
            except DBAPIError:
                log.warning("database_unreachable", worker_id=self.worker_id)
            self.stopping.wait(self._installation.settings.heartbeat_seconds)

    def _record_presence(self, state: str) -> None:
        with self._installation.database.transaction() as session:
            workers.record_worker(
                session,
                self.worker_id,
                instance_id=self._instance_id,
                host=self._host,
                queue=self._queue,
                device=self._device.id,
                version=__version__,
                resources={
                    name: getattr(self._device, name) for name in ("name", "memory_bytes", "has_bf16")
                },
                state=state,
                now=clock(session),
            )


def make_agent(
    settings: Settings, queue: Queue, device_id: str, stopping: StopFlag, *, errands_only: bool = False
) -> Agent:
    """An agent for a device of this host, by `cpu`, index or UUID."""
    device = choose_devices(device_id, list_gpus())[0]
    return Agent(
        open_installation(settings),
        queue,
        device,
        host=socket.gethostname(),
        instance_id=new_id("instance"),
        stopping=stopping,
        errands_only=errands_only,
    )


def main(arguments: list[str]) -> None:
    """The polling agent of one device."""
    parser = argparse.ArgumentParser(prog="worker.agent", description=__doc__)
    parser.add_argument("--queue", required=True, choices=[str(queue) for queue in Queue])
    parser.add_argument("--device", default="cpu", help="cpu, or a GPU by index or UUID")
    parser.add_argument("--poll-seconds", type=float)
    parser.add_argument("--errands", action="store_true", help="only work that somebody waits for")
    options = parser.parse_args(arguments)
    settings = Settings()
    configure_logs(settings)
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    queue = Queue(options.queue)
    agent = make_agent(settings, queue, options.device, stopping, errands_only=options.errands)
    agent.serve(options.poll_seconds or settings.poll_seconds)


def _lock_path(settings: Settings, place: str, device: Device) -> Path:
    """A GPU is one for the whole host; a place on the CPU belongs to its data folder."""
    if device.is_gpu:
        return Path(tempfile.gettempdir()) / f"luthier-{os.getuid()}" / f"{device.id}.lock"
    return settings.data / "locks" / f"{place}.lock"


if __name__ == "__main__":
    main(sys.argv[1:])
