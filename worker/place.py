"""Where a run works, and what it is called there.

A `Place` goes through everything that a supervisor does for one run; nothing in it changes while the run
lasts.
"""

from dataclasses import dataclass
from pathlib import Path

from luthier.database import Database
from luthier.settings import Settings
from luthier.storage import Storage


@dataclass(frozen=True)
class Place:
    """Where a run works: database, storage, settings, its folder, and its prefix in storage."""

    settings: Settings
    database: Database
    storage: Storage
    folder: Path
    prefix: str


def run_prefix(job_id: str, epoch: int) -> str:
    """`<job>/e0003`: the name of a run in the run folder and in storage."""
    return f"{job_id}/e{epoch:04d}"
