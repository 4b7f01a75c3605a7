"""Owns the child process of one run, from a claim to the row that ends it.

The story is `Supervisor.run`: fetch the model where it is missing, write the spec, start the child, follow
its events, publish its checkpoints, and settle by its exit code. A supervisor that loses its lease kills the
child and writes nothing more. Run it in a main thread (see `child`).
"""

import random
import shutil
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import structlog
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from luthier import events
from luthier.artifacts import MANIFEST_NAME, ManifestError, sha256_of
from luthier.database import clock
from luthier.devices import Device
from luthier.errors import FAILURE_OF_EXIT, ExitCode, Failure, JobFailure
from luthier.installation import Installation
from luthier.models import find_model
from luthier.processes import module_command
from luthier.service import endings, outcomes, recording, runs
from luthier.service.claims import Claim
from luthier.service.retries import Ending, Limits
from luthier.service.transitions import LeaseLostError
from luthier.status import Kind
from luthier.storage import StorageUnavailableError, discard
from luthier.tables import Run
from worker import specs, work
from worker.child import LOG_NAME, Child, full_log
from worker.lease import LeaseKeeper
from worker.outcomes import ending_of, signal_of
from worker.place import Place, run_prefix

log = structlog.get_logger()
_BATCH_LINES = 200
# A wish, a lost lease or the child's end is seen within this time.
_LOOK_SECONDS = 0.1
_FETCH_EVENTS = "fetch.jsonl"
_CHECKPOINT_METRICS = ("train_loss", "eval_loss")
_EVENTS = "events.jsonl"
_ENDED = {
    Ending.STOPPED: "The worker made room; the job goes on from its checkpoint",
    Ending.UNAVAILABLE: "Something remote did not answer",
    Ending.DISK_FULL: "The disk of the worker is full",
    Ending.IO_ERROR: "A disk of the worker failed",
    Ending.GPU_FAULT: "The GPU failed",
}
_OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TQDM_DISABLE": "1",
    "PYTHONUNBUFFERED": "1",
}
_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")
_NETWORK = ("HF_ENDPOINT", "SSL_CERT_FILE", "SSL_CERT_DIR", *_PROXIES, *(name.lower() for name in _PROXIES))


class StopFlag(Protocol):
    """An event of threads or of processes: set once, when an agent shall make room."""

    def is_set(self) -> bool: ...

    def wait(self, timeout: float | None = None) -> bool: ...


@dataclass(frozen=True)
class Ended:
    """How a child ended: its exit code (negative for a signal) and its last word, where it had one."""

    exit_code: int
    last: events.RunEnded | None


class Supervisor:
    """One run of one claimed job.

    Args:
        device: what the child may use.
        lock: descriptor of the device's lock; the child inherits it.
        stopping: set when this agent shall make room; the child then saves and the job is queued again.
        environment: of this process, where the fetcher's network settings come from.
        child_command: what to start for a kind of work in a run folder.
    """

    def __init__(
        self,
        installation: Installation,
        claim: Claim,
        *,
        device: Device,
        lock: int,
        stopping: StopFlag,
        environment: Mapping[str, str],
        child_command: Callable[[Kind, Path], list[str]] = work.child_command,
    ) -> None:
        self._installation, self._settings = installation, installation.settings
        self._database, self._storage = installation.database, installation.storage
        self._claim, self._device, self._lock, self._stopping = claim, device, lock, stopping
        self._environment, self._child_command = environment, child_command
        # Since when the storage has not answered, and its last word.
        self._storage_away: tuple[float, StorageUnavailableError] | None = None
        prefix = run_prefix(claim.job.id, claim.lease.epoch)
        folder = self._settings.runs / prefix
        self._place = Place(self._settings, self._database, self._storage, folder, prefix)
        self._log = log.bind(job_id=claim.job.id, kind=claim.job.kind, run=claim.number)

    def run(self) -> None:
        """Do the work, and end the job, queue it again, or leave it to whoever has the lease now."""
        self._place.folder.mkdir(parents=True, exist_ok=True)
        self._log.info("run_started", device=self._device.id)
        try:
            with LeaseKeeper(self._database, self._claim.lease, self._settings) as keeper:
                self._keeper = keeper
                self._work_guarded()
        except LeaseLostError:
            self._log.warning("lease_lost")
        finally:
            shutil.rmtree(self._place.folder, ignore_errors=True)

    def _work_guarded(self) -> None:
        """The edge of a run: what nobody foresaw is logged, and the job is tried again."""
        try:
            self._work()
        except LeaseLostError:
            raise
        except StorageUnavailableError as error:
            self._log.warning("storage_unavailable", reason=error.message)
            self._requeue(Ending.UNAVAILABLE, error.message, ExitCode.UNAVAILABLE)
        except Exception as error:  # noqa: BLE001, the edge of a run
            self._log.exception("run_broke_off")
            self._requeue(Ending.CRASHED, f"The worker failed: {type(error).__name__}", None)

    def _work(self) -> None:
        try:
            if work.needs_model(self._claim.job) and not self._fetch_model():
                return
            spec = specs.build_spec(self._place, self._claim)
            if (known := specs.known_outcome(spec)) is not None:
                self._finish(spec, known)
                return
            (self._place.folder / "spec.json").write_text(spec.model_dump_json(indent=1), encoding="utf-8")
            command = self._child_command(Kind(self._claim.job.kind), self._place.folder)
            ended = self._run_child(command, _EVENTS, _OFFLINE)
            self._keep_log()
            if ended.exit_code == ExitCode.DONE and ended.last is not None:
                self._finish(spec, ended.last)
            else:
                self._end_early(ended)
        except JobFailure as failure:
            self._fail(
                Failure(failure.code, failure.message, failure.param, failure.details), failure.exit_code
            )

    def _finish(self, spec: specs.AnySpec, last: events.RunEnded) -> None:
        self._insist(self._start_finalizing)
        while not self._try(lambda: self._settle(spec, last)):
            self._wait_for_storage()
        self._log.info("run_succeeded")

    def _settle(self, spec: specs.AnySpec, last: events.RunEnded) -> None:
        """Settle once; again where that failed, unless only the answer to the commit was lost."""
        with self._database.reading() as session:
            is_settled = outcomes.find_ending(session, self._claim.lease) is not None
        if not is_settled:
            work.settle(self._place, self._claim, spec, last)

    def _fetch_model(self) -> bool:
        """Have the fetcher pull a model that is not here yet; False where that ended the run."""
        model_id, folder = self._claim.job.model or "", self._settings.models
        if find_model(folder, model_id) is not None:
            return True
        arguments = [
            model_id,
            "--model-dir",
            str(folder),
            "--events",
            str(self._place.folder / _FETCH_EVENTS),
        ]
        environment = {name: self._environment[name] for name in _NETWORK if name in self._environment}
        if self._settings.hub_token is not None:
            environment["LUTHIER_HUB_TOKEN"] = self._settings.hub_token.get_secret_value()
        ended = self._run_child(module_command("luthier.fetcher", *arguments), _FETCH_EVENTS, environment)
        if ended.exit_code == ExitCode.DONE:
            return True
        self._keep_log()
        self._end_early(ended)
        return False

    def _run_child(self, command: list[str], events_name: str, environment: dict[str, str]) -> Ended:
        child = Child(
            command,
            folder=self._place.folder,
            environment={
                **environment,
                **self._device.environment(),
                "OMP_NUM_THREADS": str(self._settings.trainer_threads),
                # Threads that wait by spinning take the cores from those that work, tens of times over.
                "OMP_WAIT_POLICY": "PASSIVE",
                "HF_HOME": str(self._settings.data / "hf"),
                "MPLCONFIGDIR": str(self._settings.data / "matplotlib"),
            },
            keep_open=[self._lock],
            max_log_bytes=self._settings.max_log_bytes,
        )
        try:
            self._insist(lambda session: runs.record_child(session, self._claim.lease, pid=child.pid))
            return self._follow(child, self._place.folder / events_name)
        finally:
            child.kill()

    def _follow(self, child: Child, path: Path) -> Ended:
        """Record what the child reports until it is gone; pass on the wish to stop."""
        reader = _Reader(self, path)
        silent_until = time.monotonic() + self._settings.start_timeout_seconds
        kill_at: float | None = None
        next_record = 0.0
        while (code := child.poll()) is None:
            self._keeper.check()
            now = time.monotonic()
            if now >= next_record:
                self._try(reader.record)
                next_record = now + self._settings.watch_seconds
            if kill_at is None and self._wants_stop():
                child.ask_to_stop()
                kill_at = now + self._settings.stop_grace_seconds
            if reader.offset == 0 and now > silent_until:
                self._log.warning("child_silent")
                kill_at = now
            if kill_at is not None and now >= kill_at:
                child.kill()
            time.sleep(min(_LOOK_SECONDS, self._settings.watch_seconds))
        while not reader.is_at_end():
            self._keeper.check()
            if not self._try(reader.record):
                self._wait_for_storage()
        return Ended(code, reader.last)

    def _wants_stop(self) -> bool:
        return self._keeper.cancel_wanted.is_set() or self._stopping.is_set()

    def publish_checkpoint(self, event: events.CheckpointSaved) -> None:
        """Copy a checkpoint to storage, then write its row; older ones beyond the limit go."""
        source = (self._place.folder / event.path).resolve()
        key = f"{self._place.prefix}/checkpoints/{source.name}"
        # Published before, where the answer to the commit was lost and the event is read again.
        with self._database.reading() as session:
            if outcomes.find_checkpoint(session, self._claim.lease, event.step) is not None:
                return
        if not source.is_relative_to(self._place.folder.resolve()):
            raise JobFailure("A checkpoint lies outside the run folder", "server_error", ExitCode.BAD_SPEC)
        try:
            sha256 = sha256_of(source / MANIFEST_NAME)
            manifest = self._storage.put_folder(source, key)
        except (ManifestError, FileNotFoundError, shutil.Error) as error:
            # The child keeps only its newest ones and may have removed this one by now.
            self._log.warning("checkpoint_not_published", step=event.step, reason=str(error))
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
                metrics={name: manifest.meta.get(name) for name in _CHECKPOINT_METRICS},
                now=clock(session),
            )
            old = runs.drop_checkpoints(session, self._claim.lease, keep=keep)
        discard(self._storage, old)

    def _end_early(self, ended: Ended) -> None:
        """The child did not finish: cancelled, to be tried again, or failed."""
        code = ended.exit_code
        self._log.info("run_ended_early", exit_code=code)
        if self._keeper.cancel_wanted.is_set():
            self._insist(
                lambda session: endings.cancel_run(
                    session, self._claim.lease, exit_code=code, now=clock(session)
                )
            )
        elif (ending := self._ending(code)) is not None:
            self._requeue(ending, _message(ended, ending), code)
        else:
            self._fail(_failure(ended, self._claim.job.subject_job_id or self._claim.job.id), code)

    def _ending(self, code: int) -> Ending | None:
        if self._stopping.is_set() and code == -signal.SIGTERM:
            # The child was asked to stop in its first moments, before it could hear.
            return Ending.STOPPED
        return ending_of(code)

    def _requeue(self, ending: Ending, message: str, exit_code: int | None) -> None:
        self._insist(
            lambda session: endings.requeue_run(
                session,
                self._claim.lease,
                ending=ending,
                message=message,
                exit_code=exit_code,
                limits=Limits.of(self._settings),
                jitter=random.random(),
                now=clock(session),
            )
        )

    def _fail(self, failure: Failure, exit_code: int | None) -> None:
        self._log.info("run_failed", code=failure.code)
        self._insist(
            lambda session: endings.fail_run(
                session, self._claim.lease, failure, exit_code=exit_code, now=clock(session)
            )
        )

    def _start_finalizing(self, session: Session) -> None:
        endings.start_finalizing(session, self._claim.lease, now=clock(session))

    def _keep_log(self) -> None:
        text = full_log(self._place.folder)
        copy = self._place.folder / "log.full.txt"
        copy.write_bytes(text)
        try:
            self._storage.put(copy, f"{self._place.prefix}/{LOG_NAME}")
        except StorageUnavailableError as error:
            self._log.warning("log_not_kept", reason=error.message)

    def _insist(self, write: Callable[[Session], object]) -> None:
        """Run a transaction until the database takes it, or the lease is lost."""
        while not self._try(lambda: self._transact(write)):
            self._keeper.check()
            time.sleep(self._settings.watch_seconds)

    def _transact(self, write: Callable[[Session], object]) -> None:
        def once(session: Session) -> None:
            # What ended the run before stands, where only the answer to its commit was lost.
            if outcomes.find_ending(session, self._claim.lease) is None:
                write(session)

        self._database.run(once)

    def _try(self, action: Callable[[], object]) -> bool:
        try:
            action()
        except DBAPIError:
            self._log.warning("database_unreachable")
            return False
        except StorageUnavailableError as error:
            self._log.warning("storage_unavailable", reason=error.message)
            self._storage_away = self._storage_away or (time.monotonic(), error)
            return False
        self._storage_away = None
        return True

    def _wait_for_storage(self) -> None:
        """Wait a moment before the next try; not for ever, since the device is idle meanwhile.

        Raises:
            StorageUnavailableError: the storage has been away for too long.
        """
        self._keeper.check()
        if self._storage_away is not None:
            since, error = self._storage_away
            if time.monotonic() - since > self._settings.storage_patience_seconds:
                raise error
        time.sleep(self._settings.watch_seconds)

    def record(self, batch: list[events.AnyEvent], offset: int) -> None:
        """Store a batch of events in one transaction."""
        with self._database.transaction() as session:
            recording.record_events(session, self._claim.lease, batch, offset=offset, now=clock(session))

    def recorded_offset(self) -> int:
        """How far the database says that the events were recorded."""
        with self._database.reading() as session:
            run = session.get(Run, (self._claim.lease.job_id, self._claim.lease.epoch))
        return run.event_offset if run else 0


class _Reader:
    """Reads one events file from where the last recorded batch ended."""

    def __init__(self, supervisor: Supervisor, path: Path) -> None:
        self._supervisor, self._path = supervisor, path
        self._stores_offset = path.name == _EVENTS
        self._in_doubt = False
        self.offset = 0
        self.last: events.RunEnded | None = None

    def record(self) -> None:
        """Record what has come; a checkpoint is published before anything behind it is read."""
        if self._in_doubt and self._stores_offset:
            # The last commit failed, or only its answer was lost: the row knows.
            self.offset = max(self.offset, self._supervisor.recorded_offset())
        batch, offset = self._read()
        if offset == self.offset:
            return
        for event in batch:
            if isinstance(event, events.CheckpointSaved):
                self._supervisor.publish_checkpoint(event)
            elif isinstance(event, events.RunEnded):
                self.last = event
        self._in_doubt = True
        self._supervisor.record(batch, offset if self._stores_offset else 0)
        self._in_doubt, self.offset = False, offset

    def is_at_end(self) -> bool:
        return self._read()[1] == self.offset

    def _read(self) -> tuple[list[events.AnyEvent], int]:
        batch: list[events.AnyEvent] = []
        offset = self.offset
        for event, behind in events.read_events(self._path, self.offset):
            batch.append(event)
            offset = behind
            if len(batch) == _BATCH_LINES:
                break
        return batch, offset


def _failure(ended: Ended, job_id: str) -> Failure:
    """Why a child failed, in its own words where it had some."""
    last = ended.last
    if last is not None and last.outcome == "failed" and last.code is not None:
        return Failure(last.code, last.message or last.code, last.param, last.details)
    known = {int(code): name for code, name in FAILURE_OF_EXIT.items()}
    code = known.get(ended.exit_code, "server_error")
    text = (
        f"The process failed with exit code {ended.exit_code} and did not say why; "
        f"its log may: GET /v1/fine_tuning/jobs/{job_id}/logs"
    )
    return Failure(code, text)


def _message(ended: Ended, ending: Ending) -> str:
    """What a child said of its early end, else what its exit code says."""
    if ending == Ending.CRASHED:
        return f"The process was ended by signal {signal_of(ended.exit_code)}"
    return (ended.last.message if ended.last else None) or _ENDED[ending]
