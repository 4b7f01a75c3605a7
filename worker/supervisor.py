"""Owns the child process of one run, from a claim to the row that ends it.

The story is `Supervisor.run`: fetch the model where it is missing, write the spec, start the child, follow it
(`following`), and write what becomes of the job (`judging`). A supervisor that loses its lease ends the child
and writes nothing more; one whose child nothing ends gives the device up. Run it in a main thread (see
`child`).
"""

import contextlib
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import structlog
from sqlalchemy.orm import Session

from luthier import events
from luthier.boot import boot_id
from luthier.database import clock
from luthier.devices import Device, DeviceMissingError
from luthier.errors import ExitCode, Failure, JobFailure
from luthier.installation import Installation
from luthier.models import find_model
from luthier.processes import module_command
from luthier.service import blocking, endings, project_secrets, runs
from luthier.service.claims import Claim
from luthier.service.project_secrets import SecretMissingError
from luthier.service.retries import Ending
from luthier.service.transitions import LeaseLostError
from luthier.status import Kind
from luthier.storage import StorageUnavailableError
from worker import specs, work
from worker.child import LOG_NAME, Child, UnkillableError, full_log
from worker.device_memory import await_device_memory
from worker.following import EVENTS_NAME, Ended, Follower, Reader
from worker.judging import Judge
from worker.lease import LeaseKeeper
from worker.locks import held_folder
from worker.place import Place, run_mark, run_prefix
from worker.publishing import Publisher
from worker.stop_flag import StopFlag
from worker.writing import Writer

log = structlog.get_logger()
_FETCH_EVENTS = "fetch.jsonl"
_UNBLOCKED_AT_ONCE = 100
_OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TQDM_DISABLE": "1",
    "PYTHONUNBUFFERED": "1",
}
_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")
_NETWORK = ("HF_ENDPOINT", "SSL_CERT_FILE", "SSL_CERT_DIR", *_PROXIES, *(name.lower() for name in _PROXIES))


class Supervisor:
    """One run of one claimed job.

    Args:
        device: what the child may use.
        lock: descriptor of the device's lock; every child inherits it.
        stopping: set when this agent shall make room; the child then saves and the job is queued again.
        environment: of this process, where the fetcher's network settings come from.
        set_aside: tells why the device must not be used any more; raises while the database is away, and may
            be called again.
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
        set_aside: Callable[[str], None],
        child_command: Callable[[Kind, Path], list[str]] = work.child_command,
    ) -> None:
        self._installation, self._settings = installation, installation.settings
        self._database, self._storage = installation.database, installation.storage
        self._claim, self._device, self._lock, self._stopping = claim, device, lock, stopping
        self._environment, self._child_command, self._set_aside = environment, child_command, set_aside
        # The last one, and all processes of the run that were there at its end.
        self._child: Child | None = None
        self._pids: set[int] = set()
        self._prefix = run_prefix(claim.job.id, claim.lease.epoch)
        folder = self._settings.runs / self._prefix
        self._place = Place(self._settings, self._database, self._storage, folder, self._prefix)
        self._log = log.bind(job_id=claim.job.id, kind=claim.job.kind, run=claim.number)

    def run(self) -> str | None:
        """Do the work, and end the job, queue it again, or leave it to whoever has the lease now.

        Returns:
            Why the device must not be used any more; None where it may, and where `set_aside` was told.
        """
        self._log.info("run_started", device=self._device.id)
        with (
            held_folder(self._place.folder) as folder_lock,
            LeaseKeeper(self._database, self._claim.lease, self._settings) as keeper,
        ):
            self._folder_lock, self._keeper = folder_lock, keeper
            self._writer = Writer(self._database, self._claim, keeper, self._settings)
            self._judge = Judge(self._claim, self._writer, self._settings, self._device)
            try:
                self._work_guarded()
            except LeaseLostError:
                self._log.warning("lease_lost")
            except UnkillableError as error:
                self._give_device_up(error.reason)
                return None
            shutil.rmtree(self._place.folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            # An earlier run of the job may still be ending beside it.
            self._place.folder.parent.rmdir()
        return self._judge.device_fault

    def _give_device_up(self, reason: str) -> None:
        """Something of the run lives on and nothing ends it: the job goes on elsewhere.

        One that is to be cancelled stays, with its lease, until nothing lives. Where this agent is stopped
        before, `recovery` goes on looking.
        """
        self._log.error("device_given_up", device=self._device.id, reason=reason)
        self._keeper.child = None
        try:
            self._writer.insist_on(lambda: self._set_aside(reason))
            if self._judge.leave_living(reason):
                return
            while not self._is_gone():
                self._keeper.check()
                if self._stopping.wait(self._settings.watch_seconds):
                    return
            self._judge.stop_as_wished(None)
        except LeaseLostError:
            self._log.warning("lease_lost")

    def _is_gone(self) -> bool:
        """Whether no process of the run is left, and the device has its memory back, or is itself gone."""
        try:
            if self._child is not None:
                self._child.end(0)
            await_device_memory(self._device, self._pids, seconds=0)
        except UnkillableError:
            return False
        except DeviceMissingError:
            return True
        return True

    def _work_guarded(self) -> None:
        """The edge of a run: what nobody foresaw is logged, and the job is tried again."""
        try:
            self._work()
        except (LeaseLostError, UnkillableError):
            raise
        except StorageUnavailableError as error:
            self._log.warning("storage_unavailable", reason=error.message)
            self._judge.requeue(Ending.UNAVAILABLE, error.message, ExitCode.UNAVAILABLE)
        except OSError as error:
            self._log.exception("run_broke_off")
            self._judge.end_by_error(error)
        except Exception as error:  # noqa: BLE001, the edge of a run
            self._log.exception("run_broke_off")
            self._judge.requeue(Ending.CRASHED, f"The worker failed: {type(error).__name__}", None)

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
            ended = self._run_child(command, EVENTS_NAME, _OFFLINE)
            self._keep_log()
            if ended.exit_code == ExitCode.DONE and ended.last is not None:
                self._finish(spec, ended.last)
            else:
                self._judge.end_early(ended)
        except JobFailure as failure:
            told = Failure(failure.code, failure.message, failure.param, failure.details)
            self._judge.fail(told, failure.exit_code)

    def _finish(self, spec: specs.AnySpec, last: events.RunEnded) -> None:
        self._writer.insist(self._start_finalizing)
        self._writer.insist_on(lambda: self._settle(spec, last))
        self._log.info("run_succeeded")

    def _settle(self, spec: specs.AnySpec, last: events.RunEnded) -> None:
        """Settle once; again where that failed, unless only the answer to the commit was lost."""
        if not self._writer.is_ended():
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
        try:
            if (token := self._hub_token()) is not None:
                environment["LUTHIER_HUB_TOKEN"] = token
        except SecretMissingError as error:
            self._judge.lack_secret(str(error))
            return False
        ended = self._run_child(module_command("luthier.fetcher", *arguments), _FETCH_EVENTS, environment)
        if ended.exit_code == ExitCode.DONE:
            self._writer.insist(
                lambda session: blocking.unblock_model(
                    session, model_id, now=clock(session), limit=_UNBLOCKED_AT_ONCE
                )
            )
            return True
        self._keep_log()
        self._judge.end_fetch(ended)
        return False

    def _hub_token(self) -> str | None:
        """The token of the job, of its project, or of the installation; raises SecretMissingError."""
        with self._database.reading() as session:
            own = project_secrets.hub_token(
                session, self._claim.job, installation_key=self._installation.installation_key
            )
        if own is not None or self._settings.hub_token is None:
            return own
        return self._settings.hub_token.get_secret_value()

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
            keep_open=[self._lock, self._folder_lock],
            max_log_bytes=self._settings.max_log_bytes,
            mark=run_mark(self._settings, self._claim.job.id, self._claim.lease.epoch),
        )
        self._keeper.child = self._child = child
        try:
            self._writer.insist(
                lambda session: runs.record_child(
                    session, self._claim.lease, pid=child.pid, boot_id=boot_id()
                )
            )
            return self._follow(child, events_name)
        finally:
            self._pids = {child.pid, *(member.pid for member in child.members())}
            child.end(self._settings.unkillable_seconds)
            self._keeper.child = None
            self._await_device_memory()

    def _follow(self, child: Child, events_name: str) -> Ended:
        reader = Reader(
            self._place.folder / events_name,
            self._database,
            self._claim,
            Publisher(self._place, self._claim),
        )
        follower = Follower(
            child,
            reader,
            folder=self._place.folder,
            keeper=self._keeper,
            writer=self._writer,
            settings=self._settings,
            stopping=self._stopping,
        )
        return follower.follow()

    def _await_device_memory(self) -> None:
        """Until the run has given back what it took of the device.

        Raises:
            UnkillableError: it does not, or the driver has lost the device.
        """
        try:
            await_device_memory(self._device, self._pids, seconds=self._settings.unkillable_seconds)
        except DeviceMissingError as error:
            raise UnkillableError(str(error)) from error

    def _start_finalizing(self, session: Session) -> None:
        endings.start_finalizing(session, self._claim.lease, now=clock(session))

    def _keep_log(self) -> None:
        """Keep what the child wrote; no run ends otherwise for want of its log."""
        text = full_log(self._place.folder)
        copy = self._place.folder / "log.full.txt"
        try:
            copy.write_bytes(text)
            self._storage.put(copy, f"{self._prefix}/{LOG_NAME}")
        except (OSError, StorageUnavailableError) as error:
            self._log.warning("log_not_kept", reason=str(error))
