"""An agent's row: that it is there, what its device has free, and whether it is set aside."""

import threading
from dataclasses import dataclass

import structlog
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from luthier import __version__
from luthier.boot import boot_id
from luthier.database import clock
from luthier.devices import Device, DeviceMissingError, read_usage
from luthier.installation import Installation
from luthier.service import workers
from luthier.status import Queue
from worker.stop_flag import StopFlag

log = structlog.get_logger()


@dataclass(frozen=True)
class Identity:
    """Who an agent is. `instance_id` is new at every start; `worker_id` stays."""

    worker_id: str
    instance_id: str
    host: str
    queue: Queue
    device: Device

    @property
    def owner(self) -> str:
        """What stands in the leases that it holds."""
        return f"{self.worker_id}#{self.instance_id}"


class Presence:
    """Writes and reads one agent's row."""

    def __init__(self, installation: Installation, identity: Identity) -> None:
        self._installation, self._identity = installation, identity
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, stopping: StopFlag) -> None:
        """Tell from now on, with every heartbeat, in a thread."""
        self._thread = threading.Thread(target=self._keep, args=(stopping,), name="presence", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Tell that the agent has ended."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()

    def record(self, state: str) -> None:
        """Tell once. A sick agent stays sick."""
        with self._installation.database.transaction() as session:
            self._write(session, state)

    def set_aside(self, reason: str) -> None:
        """Tell that the device must not be used."""
        with self._installation.database.transaction() as session:
            self._write(session, "active")
            workers.set_aside(session, self._identity.worker_id, reason)

    def is_set_aside(self, session: Session) -> bool:
        """Whether the device must not be used, as an operator sees it."""
        return workers.is_sick(session, self._identity.worker_id)

    def _write(self, session: Session, state: str) -> None:
        own, device = self._identity, self._identity.device
        workers.record_worker(
            session,
            own.worker_id,
            instance_id=own.instance_id,
            host=own.host,
            queue=own.queue,
            device=device.id,
            version=__version__,
            resources={
                "name": device.name,
                "memory_bytes": device.memory_bytes,
                "has_bf16": device.has_bf16,
                "free_memory_bytes": free_memory_bytes(device),
                "boot_id": boot_id(),
            },
            labels=",".join(sorted(labels_of(self._installation.settings.labels))),
            state=state,
            now=clock(session),
        )

    def _keep(self, stopping: StopFlag) -> None:
        while not self._ended.is_set():
            self._attempt("draining" if stopping.is_set() else "active")
            self._ended.wait(self._installation.settings.heartbeat_seconds)
        self._attempt("stopped")

    def _attempt(self, state: str) -> None:
        try:
            self.record(state)
        except DBAPIError:
            log.warning("database_unreachable", worker_id=self._identity.worker_id)


def free_memory_bytes(device: Device) -> int | None:
    """Free memory of a GPU now; None for the CPU, and where the driver does not tell."""
    if not device.is_gpu:
        return None
    try:
        usage = read_usage(device)
    except DeviceMissingError:
        return None
    return usage.free_bytes if usage else None


def labels_of(text: str) -> frozenset[str]:
    """The words of the setting `labels`."""
    return frozenset(word.strip() for word in text.split(",") if word.strip())
