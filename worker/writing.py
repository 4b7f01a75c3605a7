"""What one run writes, through a database and a storage that may be away.

The database is waited for as long as the lease stands, the storage for a while. A write whose commit was not
heard of is looked up before it is done again: see `luthier.service.outcomes`.
"""

import time
from collections.abc import Callable

import structlog
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from luthier.database import Database
from luthier.service import outcomes
from luthier.service.claims import Claim
from luthier.settings import Settings
from luthier.storage import StorageUnavailableError
from worker.lease import LeaseKeeper

log = structlog.get_logger()


class Writer:
    """Writes for one run."""

    def __init__(self, database: Database, claim: Claim, keeper: LeaseKeeper, settings: Settings) -> None:
        self._database, self._lease, self._keeper, self._settings = database, claim.lease, keeper, settings
        # Since when the storage has not answered, and its last word.
        self._storage_away: tuple[float, StorageUnavailableError] | None = None

    def insist(self, write: Callable[[Session], object]) -> None:
        """Run a transaction until the database takes it.

        Raises:
            LeaseLostError: the lease was lost meanwhile.
        """
        self.insist_on(lambda: self._once(write))

    def insist_on(self, action: Callable[[], object]) -> None:
        """Do something with transactions of its own until it gets through.

        Raises:
            LeaseLostError: the lease was lost meanwhile.
            StorageUnavailableError: the storage was away for too long, with the device idle.
        """
        while not self.attempt(action):
            self._keeper.check()
            self._check_storage()
            time.sleep(self._settings.watch_seconds)

    def attempt(self, action: Callable[[], object]) -> bool:
        """Do something once; False where the database or the storage is away."""
        try:
            action()
        except DBAPIError:
            log.warning("database_unreachable", job_id=self._lease.job_id)
            return False
        except StorageUnavailableError as error:
            log.warning("storage_unavailable", job_id=self._lease.job_id, reason=error.message)
            self._storage_away = self._storage_away or (time.monotonic(), error)
            return False
        self._storage_away = None
        return True

    def is_ended(self) -> bool:
        """Whether the run has been ended, by us, though we may not have heard of it."""
        with self._database.reading() as session:
            return outcomes.find_ending(session, self._lease) is not None

    def _check_storage(self) -> None:
        if self._storage_away is not None:
            since, error = self._storage_away
            if time.monotonic() - since > self._settings.storage_patience_seconds:
                raise error

    def _once(self, write: Callable[[Session], object]) -> None:
        def unless_ended(session: Session) -> None:
            if outcomes.find_ending(session, self._lease) is None:
                write(session)

        self._database.run(unless_ended)
