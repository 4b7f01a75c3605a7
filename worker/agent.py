"""An agent: one device, or one place on the CPU, and the loop that claims work for it.

`Agent.drain` does what there is to do and returns; a polling loop and a Celery task both call it. The
device's lock lets one of them in at a time, on one machine. `python -P -m worker.agent` is the polling loop.
"""

import argparse
import math
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import structlog
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from luthier import disk, schema_fit
from luthier.database import clock
from luthier.devices import Device, DeviceMissingError, choose_devices, list_gpus, read_usage
from luthier.ids import new_id
from luthier.installation import Installation, open_installation
from luthier.logs import configure_logs
from luthier.service import claims, outcomes
from luthier.service.claims import Claim, Offer
from luthier.service.quotas import limits_of
from luthier.service.workers import fault_of_job
from luthier.settings import Settings
from luthier.status import Kind, Queue
from worker import recovery, work
from worker.locks import device_lock_path, held_lock, holders
from worker.presence import Identity, Presence, labels_of
from worker.process_tree import adopt_orphans
from worker.stop_flag import StopFlag
from worker.supervisor import Supervisor

log = structlog.get_logger()
# So long, jobs that need more memory than was free at the last claim are not looked at again.
_PASSED_OVER_SECONDS = 5.0


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
        self._errands_only, self._child_command, self.stopping = errands_only, child_command, stopping
        place = f"{queue}-{device.id}{'-errands' if errands_only else ''}"
        # A GPU is one for the whole host; a place on the CPU belongs to its data folder. Whoever has the lock
        # may take back what stands under the name.
        if device.is_gpu:
            self.worker_id, self._lock_path = f"{host}/{place}", device_lock_path(device.id)
        else:
            self.worker_id = f"{host}/{place}-{installation.folder_id}"
            self._lock_path = installation.settings.data / "locks" / f"{place}.lock"
        self._identity = Identity(self.worker_id, instance_id, host, queue, device)
        self.presence = Presence(installation, self._identity)
        self._told_holders, self._had_room = "", True
        # What must keep the agent from claiming, until it stands in its row; and the lock, kept meanwhile.
        self._fault: str | None = None
        self._kept_lock: int | None = None
        self._is_set_aside = False
        # What was free of the device at the last claim, and when that was.
        self._passed_over: tuple[int | None, float] = (None, -math.inf)

    def recover(self) -> None:
        """Clear up, at a start, what is surely dead."""
        settings = self._installation.settings
        recovery.remove_dead_folders(settings.runs)
        recovery.release_after_reboot(self._installation.database, settings, self.worker_id)

    def drain(self) -> None:
        """Work until nothing can be claimed, or another process of this host has the device."""
        if self.stopping.is_set() or not self._may_work():
            return
        with held_lock(self._lock_path) as lock:
            if lock is None:
                self._tell_locked()
                return
            self._told_holders = ""
            if self._is_set_aside:
                self._kept_lock = os.dup(lock)
            # A claim whose commit was not heard of is ours all the same.
            claim = None if self._is_set_aside else self._find_claim()
            if claim is None:
                self._release_previous(lock)
                claim = self._claim()
            while claim is not None:
                fault = self._supervise(claim, lock)
                if fault is not None:
                    self._set_aside_unheard(fault, lock)
                claim = None if self.stopping.is_set() else self._claim()

    def serve(self, poll_seconds: float) -> None:
        """Drain again and again until told to stop; survives a database that is away."""
        if not self._wait_until_fit(poll_seconds):
            return
        self.presence.start(self.stopping)
        is_recovered = False
        while not self.stopping.is_set():
            try:
                if not is_recovered:
                    self.recover()
                    is_recovered = True
                self.drain()
            except DBAPIError:
                log.warning("database_unreachable", worker_id=self.worker_id)
            self.stopping.wait(poll_seconds)
        self.presence.end()

    def _supervise(self, claim: Claim, lock: int) -> str | None:
        return Supervisor(
            self._installation,
            claim,
            device=self._device,
            lock=lock,
            stopping=self.stopping,
            environment=os.environ,
            set_aside=lambda reason: self._set_aside(reason, lock),
            child_command=self._child_command,
        ).run()

    def _may_work(self) -> bool:
        """Whether there is something to do, or to clear up, which a device that is set aside also has."""
        self._tell_fault()
        with self._installation.database.reading() as session:
            self._is_set_aside = self.presence.is_set_aside(session)
            if self._is_set_aside and not claims.has_left(session, self.worker_id):
                return False
            # What lives on of a run holds the lock itself: whoever gets it knows that nothing does.
            self._let_lock_go()
            return self._is_set_aside or claims.has_work(
                session,
                self._queue,
                self.worker_id,
                now=clock(session),
                offer=self._likely_offer(),
                limits=limits_of(self._installation.settings),
                errands_only=self._errands_only,
            )

    def _claim(self) -> Claim | None:
        if self._is_set_aside:
            return None
        offer = self._offer() if self._has_room() else None
        if offer is None:
            return None
        self._passed_over = (offer.free_memory_bytes, time.monotonic())

        def take(session: Session) -> Claim | None:
            settings = self._installation.settings
            return claims.claim(
                session,
                self._queue,
                owner=self._identity.owner,
                host=self._identity.host,
                device=self._device.id,
                lease_seconds=settings.lease_seconds,
                now=clock(session),
                offer=offer,
                limits=limits_of(settings),
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

    def _likely_offer(self) -> Offer:
        """What the device may have free, without a question to the driver.

        All of its memory; for a while after a claim, what was free then and left jobs over that need more.
        """
        labels = labels_of(self._installation.settings.labels)
        free, since = self._passed_over
        if time.monotonic() - since > _PASSED_OVER_SECONDS or free is None:
            free = self._device.memory_bytes or None
        return Offer(free_memory_bytes=free if self._device.is_gpu else None, labels=labels)

    def _offer(self) -> Offer | None:
        """What the device has free at this moment; None where it cannot be used."""
        labels = labels_of(self._installation.settings.labels)
        if not self._device.is_gpu:
            return Offer(labels=labels)
        try:
            usage = read_usage(self._device)
        except DeviceMissingError as error:
            self._fault = f"The driver does not show the device: {error}"
            self._tell_fault()
            return None
        if usage is None:
            log.warning("driver_does_not_answer", device=self._device.id)
            return None
        return Offer(free_memory_bytes=usage.free_bytes, labels=labels)

    def _find_claim(self) -> Claim | None:
        with self._installation.database.reading() as session:
            return self._recall_claim(session)

    def _recall_claim(self, session: Session) -> Claim | None:
        return outcomes.find_claim(session, self._identity.owner, now=clock(session))

    def _release_previous(self, lock: int) -> None:
        place = self._installation.database, self._installation.settings, self.worker_id
        living = recovery.end_previous(*place, self._device)
        for job_id, reason in living.items():
            self._set_aside(fault_of_job(reason, job_id), lock)
        recovery.release_previous(*place, living=living)

    def _set_aside(self, reason: str, lock: int) -> None:
        """Claim nothing more, and keep the device from everybody else as long as this process lives.

        Raises:
            DBAPIError: the database is away; the row is told as soon as it is back.
        """
        if not self._is_set_aside:
            log.error("device_set_aside", device=self._device.id, reason=reason)
        self._fault, self._is_set_aside = reason, True
        if self._kept_lock is None:
            self._kept_lock = os.dup(lock)
        self._tell_fault()

    def _set_aside_unheard(self, reason: str, lock: int) -> None:
        try:
            self._set_aside(reason, lock)
        except DBAPIError:
            log.warning("database_unreachable", worker_id=self.worker_id)

    def _tell_fault(self) -> None:
        """Put a fault into the row, from where an operator takes it; raises while the database is away."""
        if self._fault is not None:
            self.presence.set_aside(self._fault)
            self._fault = None

    def _let_lock_go(self) -> None:
        """After a release: a process that lives on still holds the lock itself."""
        if self._kept_lock is not None:
            os.close(self._kept_lock)
            self._kept_lock = None

    def _tell_locked(self) -> None:
        """Say once who has the device; the Celery worker of the same device is meant to, now and then."""
        told = holders(self._lock_path)
        if told != self._told_holders:
            self._told_holders = told
            log.info("device_locked", device=self._device.id, lock=str(self._lock_path), holders=told)

    def _wait_until_fit(self, poll_seconds: float) -> bool:
        """Wait for a database whose schema this release can work with; False where told to stop first.

        To end instead would have the agent started again and again.
        """
        told: str | None = None
        while not self.stopping.is_set():
            reason = self._misfit()
            if reason is None:
                return True
            if reason != told:
                told = reason
                log.error("schema_does_not_fit", reason=reason)
            self.stopping.wait(max(poll_seconds, 1))
        return False

    def _misfit(self) -> str | None:
        try:
            return schema_fit.misfit(self._installation.database)
        except DBAPIError:
            return "The database cannot be reached"


def make_agent(
    settings: Settings, queue: Queue, device_id: str, stopping: StopFlag, *, errands_only: bool = False
) -> Agent:
    """An agent for a device of this host, by `cpu`, index or UUID; this process is its alone."""
    adopt_orphans()
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
    # Asked a second time, it goes on making room.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    queue = Queue(options.queue)
    agent = make_agent(settings, queue, options.device, stopping, errands_only=options.errands)
    agent.serve(options.poll_seconds or settings.poll_seconds)


if __name__ == "__main__":
    main(sys.argv[1:])
