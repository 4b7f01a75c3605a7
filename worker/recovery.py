"""What earlier processes of a host left behind: run folders and processes whose run is over, leases.

A lease of this agent's previous instance is taken back only where its run is surely dead: the device's lock
is in our hands, which every process of a run inherits, or the machine has started anew since. A folder is
removed only where nobody holds its lock, whoever made it.
"""

import random
import shutil
from pathlib import Path

import structlog
from sqlalchemy import select
from sqlalchemy.orm import Session

from luthier.boot import boot_id
from luthier.database import Database, clock
from luthier.service import sweep
from luthier.service.retries import Limits
from luthier.settings import Settings
from luthier.status import LEASED
from luthier.tables import Job, Run
from worker.locks import unheld_folder
from worker.place import run_mark
from worker.process_tree import end_members

log = structlog.get_logger()


def release_previous(database: Database, settings: Settings, worker_id: str) -> None:
    """Take back what previous instances of an agent held; call it with the device's lock in hand."""
    with database.reading() as session:
        runs = [(run.job_id, run.epoch) for run in _left_runs(session, worker_id)]
    if not runs:
        return
    for job_id, epoch in runs:
        # A daemon that let go of the lock may be left; it must not meet the next run of its job.
        mark = run_mark(settings, job_id, epoch)
        if left := end_members(mark, None, seconds=settings.unkillable_seconds):
            log.error("left_processes_live", run=mark, pids=[process.pid for process in left])

    def release(session: Session) -> list[str]:
        return sweep.release_previous(
            session, worker_id, limits=Limits.of(settings), jitter=random.random(), now=clock(session)
        )

    for job_id in database.run(release):
        log.warning("previous_run_released", job_id=job_id)


def release_after_reboot(database: Database, settings: Settings, worker_id: str) -> None:
    """Take back what this agent held before the machine started anew; needs no lock."""
    now = boot_id()
    with database.reading() as session:
        left = _left_runs(session, worker_id)
    if left and now is not None and all(run.boot_id not in (None, now) for run in left):
        release_previous(database, settings, worker_id)


def remove_dead_folders(runs: Path) -> None:
    """Remove the folders of runs that nobody works on any more."""
    for folder in sorted(runs.glob("*/e*")):
        with unheld_folder(folder) as is_dead:
            if is_dead:
                log.info("run_folder_removed", folder=str(folder))
                shutil.rmtree(folder, ignore_errors=True)


def _left_runs(session: Session, worker_id: str) -> list[Run]:
    query = (
        select(Run)
        .join(Job, (Job.id == Run.job_id) & (Job.lease_epoch == Run.epoch))
        .where(Job.state.in_(LEASED), Job.lease_owner.startswith(f"{worker_id}#", autoescape=True))
    )
    return list(session.scalars(query).all())
