"""Housekeeping: what nobody needs any more goes, from the database first and then from storage.

It runs in the dispatcher that leads, in a thread of its own, since a storage may be slow or away. Rows go in
small transactions, a limited number of them in each round; a crash between rows and bytes leaves orphans,
and a walk through storage finds those. Deleting what is gone already is no error, so a round may be repeated.
"""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta
from itertools import groupby, islice

import structlog
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from luthier.errors import LuthierError
from luthier.installation import Installation
from luthier.service import (
    audit_logs,
    deliveries,
    errands,
    idempotency,
    orphans,
    outbox,
    project_secrets,
    projects,
    retention,
)
from luthier.service.leadership import LeadershipLostError
from luthier.service.orphans import Unit
from worker.seat import Seat

log = structlog.get_logger()
_LOOK_SECONDS = 5.0
_ROWS_SECONDS = 60.0
_WALK_SECONDS = 3600.0
_KEEP_SENT = timedelta(days=1)
# Behind the end of an upload's time: who completes it again, or looks at it, is still told what it became.
_KEEP_UPLOADS = timedelta(days=1)
# Rows in a transaction, and transactions of one kind in a round.
_BATCH, _BATCHES = 100, 20
_UNITS_IN_A_QUERY = 500

Take = Callable[[Session, datetime], int | Sequence[str]]
"""Takes rows away: how many, or the storage keys that they spoke of."""


class Housekeeper:
    """Tidies up as long as its dispatcher leads."""

    def __init__(self, installation: Installation, seat: Seat) -> None:
        self._storage = installation.storage
        self._settings, self._seat = installation.settings, seat
        self._installation_key = installation.installation_key
        self._next_rows = self._next_walk = 0.0

    def serve(self, stopping: threading.Event) -> None:
        """Tidy up until told to stop; what fails is tried again in the next round."""
        while not stopping.wait(_LOOK_SECONDS):
            try:
                self.tick(time.monotonic())
            except LeadershipLostError:
                log.warning("leadership_in_doubt", part="housekeeping")
            except DBAPIError:
                log.warning("database_unreachable", part="housekeeping")
            except Exception:
                log.exception("housekeeping_failed")

    def tick(self, monotonic: float) -> None:
        """Do what is due.

        Raises:
            LeadershipLostError: this process does not lead any more.
        """
        if not self._seat.is_taken:
            return
        if monotonic >= self._next_rows:
            self._next_rows = monotonic + _ROWS_SECONDS
            self.drop_rows()
        if monotonic >= self._next_walk:
            self._next_walk = monotonic + _WALK_SECONDS
            self.collect_orphans()

    def drop_rows(self) -> None:
        """Forget what was kept for long enough, and delete its bytes."""
        for name, take in self._kinds().items():
            for _ in range(_BATCHES):
                with self._seat.transaction() as (session, now):
                    taken = take(session, now)
                if not taken:
                    break
                log.info("rows_dropped", kind=name, count=taken if isinstance(taken, int) else len(taken))
                self._delete([] if isinstance(taken, int) else taken)

    def collect_orphans(self) -> None:
        """Delete what lies in storage for long without a row, and what was begun there and never ended."""
        with self._seat.transaction() as (_, now):
            pass
        older_than = timedelta(hours=self._settings.keep_orphans_hours)
        units = self._units_before(now - older_than)
        while some := list(islice(units, _UNITS_IN_A_QUERY)):
            with self._seat.transaction() as (session, _):
                found = orphans.find_orphans(session, some)
            for unit in found:
                log.warning("orphan_found", key=unit.key)
            self._delete([unit.key for unit in found])
        if count := self._storage.clean_temporary(now=now, older_than=older_than):
            log.info("temporary_deleted", count=count)

    def _kinds(self) -> dict[str, Take]:
        checkpoints = timedelta(days=self._settings.keep_checkpoints_days)
        audit = timedelta(days=self._settings.keep_audit_days)
        prepared = timedelta(days=self._settings.keep_prepared_days)
        return {
            "message": lambda s, now: outbox.forget_sent(s, older_than=_KEEP_SENT, limit=_BATCH, now=now),
            "delivery": lambda s, now: deliveries.forget_old(
                s, older_than=timedelta(days=self._settings.keep_deliveries_days), limit=_BATCH, now=now
            ),
            "idempotency_key": lambda s, now: idempotency.forget_old(s, limit=_BATCH, now=now),
            "archived_projects_job": lambda s, now: projects.cancel_left(s, limit=_BATCH, now=now),
            "audit_log": lambda s, now: audit_logs.forget_old(s, older_than=audit, limit=_BATCH, now=now),
            "waits_for_secret": lambda s, now: project_secrets.unblock_openable(
                s, installation_key=self._installation_key, limit=_BATCH, now=now
            ),
            "errand": lambda s, now: errands.forget_old(s, limit=_BATCH, now=now),
            "file": lambda s, now: retention.drop_expired_files(s, limit=_BATCH, now=now),
            "upload_part": lambda s, now: retention.drop_parts(s, limit=_BATCH, now=now),
            "upload": lambda s, now: retention.drop_uploads(
                s, older_than=_KEEP_UPLOADS, limit=_BATCH, now=now
            ),
            "checkpoint": lambda s, now: retention.drop_checkpoints(
                s, older_than=checkpoints, limit=_BATCH, now=now
            ),
            "prepared": lambda s, now: retention.drop_prepared(s, unused_for=prepared, limit=_BATCH, now=now),
        }

    def _units_before(self, before: datetime) -> Iterator[Unit]:
        """What lies in storage and was last written to before a time, as the walk comes to it."""
        for unit, files in groupby(self._storage.list_files(), lambda file: orphans.unit_of(file.key)):
            if max(file.modified_at for file in files) < before and unit is not None:
                yield unit

    def _delete(self, keys: Sequence[str]) -> None:
        """Delete bytes that no row speaks of; what cannot be reached now is found by a later walk."""
        for key in keys:
            try:
                self._delete_one(key)
            except (OSError, LuthierError) as error:
                log.warning("orphan_left", key=key, reason=str(error))

    def _delete_one(self, key: str) -> None:
        unit = orphans.unit_of(key)
        if unit is None or unit.form != "prepared":
            self._storage.delete(key)
            return
        with self._seat.transaction() as (session, now):
            if orphans.hold_prepared(session, unit, now=now):
                self._storage.delete(key)
