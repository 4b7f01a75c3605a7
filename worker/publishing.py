"""Checkpoints of one run, from its folder to storage and then to a row, which makes them visible.

What cannot be copied is told of and passed over: the one before stays, and the next one is copied anew, from
its own files. Only a full disk ends the run, since nothing that follows would fit either.
"""

import errno
import os
import shutil

import structlog

from luthier.artifacts import MANIFEST_NAME, ManifestError, sha256_of
from luthier.database import Database, clock
from luthier.errors import ExitCode, JobFailure
from luthier.events import CheckpointSaved
from luthier.service import outcomes, runs
from luthier.service.claims import Claim
from luthier.service.transitions import note
from luthier.storage import discard
from worker.place import Place

log = structlog.get_logger()
_METRICS = ("train_loss", "eval_loss")
_DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


class Publisher:
    """Publishes the checkpoints of one run."""

    def __init__(self, place: Place, claim: Claim) -> None:
        self._place, self._claim = place, claim
        self._database: Database = place.database

    def publish(self, event: CheckpointSaved) -> None:
        """Copy a checkpoint to storage, then write its row; older ones beyond the limit go.

        Raises:
            OSError: the disk is full.
        """
        source = (self._place.folder / event.path).resolve()
        if self._is_published(event.step):
            return
        if not source.is_relative_to(self._place.folder.resolve()):
            raise JobFailure("A checkpoint lies outside the run folder", "server_error", ExitCode.BAD_SPEC)
        key = f"{self._place.prefix}/checkpoints/{source.name}"
        try:
            sha256 = sha256_of(source / MANIFEST_NAME)
            manifest = self._place.storage.put_folder(source, key)
        except (ManifestError, FileNotFoundError) as error:
            # The child keeps only its newest ones and may have removed this one by now.
            log.warning("checkpoint_not_published", job_id=self._claim.job.id, reason=str(error))
            return
        except OSError as error:
            if is_disk_full(error):
                raise
            self._tell_failed(event.step, error)
            return
        keep = (self._claim.job.hyperparameters or {}).get("save_total_limit", 1) + event.keeps_older
        with self._database.transaction() as session:
            runs.record_checkpoint(
                session,
                self._claim.lease,
                step=event.step,
                storage_key=key,
                manifest_sha256=sha256,
                size_bytes=manifest.size_bytes,
                metrics={name: manifest.meta.get(name) for name in _METRICS},
                now=clock(session),
            )
            old = runs.drop_checkpoints(session, self._claim.lease, keep=keep)
        discard(self._place.storage, old)

    def _is_published(self, step: int) -> bool:
        """As it is where the answer to the commit was lost and the event is read again."""
        with self._database.reading() as session:
            return outcomes.find_checkpoint(session, self._claim.lease, step) is not None

    def _tell_failed(self, step: int, error: OSError) -> None:
        log.warning("checkpoint_not_published", job_id=self._claim.job.id, reason=str(error))
        text = (
            f"The checkpoint of step {step} could not be stored and does not count: {error.strerror or error}"
        )
        with self._database.transaction() as session:
            job = runs.get_leased(session, self._claim.lease)
            data = {"step": step}
            note(session, job, "checkpoint_failed", text, now=clock(session), level="warn", data=data)


def is_disk_full(error: OSError) -> bool:
    """Whether a write found no room; copies of folders tell the causes as text alone."""
    if isinstance(error, shutil.Error):
        return any(os.strerror(number) in str(error) for number in _DISK_FULL)
    return error.errno in _DISK_FULL
