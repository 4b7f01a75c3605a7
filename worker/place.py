"""Where a run works, and what it is called there.

A `Place` goes through everything that a supervisor does for one run; nothing in it changes while the run
lasts.
"""

from dataclasses import dataclass
from pathlib import Path

from luthier.database import Database
from luthier.settings import Settings
from luthier.storage import Storage

_FETCHED = "fetched"


@dataclass(frozen=True)
class Place:
    """Where a run works: database, storage, settings, its folder, and its prefix in storage."""

    settings: Settings
    database: Database
    storage: Storage
    folder: Path
    prefix: str

    def fetch_file(self, key: str) -> Path:
        """A stored file on this machine: in place, or a copy that is gone with the run's folder.

        Raises:
            FileNotFoundError, StorageUnavailableError: it is not there, or cannot be had now.
        """
        return self.storage.fetch_file(key, self.folder / _FETCHED / key)

    def fetch_folder(self, key: str) -> Path:
        """A stored folder on this machine, checked; where it lies, as above.

        Raises:
            ManifestError, StorageUnavailableError: it is not whole, or cannot be had now.
        """
        return self.storage.fetch_folder(key, self.folder / _FETCHED / key)


def run_prefix(job_id: str, epoch: int) -> str:
    """`<job>/e0003`: the name of a run in the run folder and in storage."""
    return f"{job_id}/e{epoch:04d}"


def run_mark(settings: Settings, job_id: str, epoch: int) -> str:
    """What the processes of a run carry: its folder, since a copy of an installation has the same job ids."""
    return str(settings.runs / run_prefix(job_id, epoch))
