"""The dispatcher's eye on the disks: says when room runs short, and lets jobs go on once there is enough.

Between the two marks nothing changes, so that a disk at the edge does not let jobs go and stop in turn. The
room that is held back for the database is given up where a write of state finds none, by the database
itself; here it is taken again.
"""

import structlog

from luthier import disk
from luthier.installation import Installation
from luthier.service import blocking, watching
from luthier.service.transitions import note
from luthier.status import BlockedOn
from worker.seat import Seat

log = structlog.get_logger()
_LIMIT = 100


class DiskWatch:
    """Looks at the room there is, and acts when it has passed one of its marks."""

    def __init__(self, installation: Installation, seat: Seat) -> None:
        self._installation, self._seat = installation, seat
        self._is_low = False

    def look(self) -> None:
        """One look.

        Raises:
            LeadershipLostError: this process does not lead.
        """
        if not disk.has_room(self._installation) and not self._is_low:
            log.warning("disk_low", free_bytes=disk.free_bytes(self._installation))
            self._warn()
            self._is_low = True
        if disk.has_enough(self._installation) and self._installation.database.restore_reserve():
            if self._is_low:
                log.warning("disk_has_room", free_bytes=disk.free_bytes(self._installation))
            self._is_low = False
            self._unblock()

    def _warn(self) -> None:
        """Tell the owners of jobs that train now why they may stop."""
        text = "The server's disk is nearly full: the job may have to wait until there is room again"
        with self._seat.transaction() as (session, now):
            for job in watching.leased_training(session, limit=_LIMIT):
                note(session, job, "disk_low", text, now=now, level="warn")

    def _unblock(self) -> None:
        with self._installation.database.reading() as session:
            waits = watching.has_blocked(session, blocked_on=BlockedOn.DISK)
        if waits:
            with self._seat.transaction() as (session, now):
                for job_id in blocking.unblock(session, blocked_on=BlockedOn.DISK, now=now, limit=_LIMIT):
                    log.info("job_unblocked", job_id=job_id, blocked_on=str(BlockedOn.DISK))
