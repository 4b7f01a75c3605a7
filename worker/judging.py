"""What becomes of a job whose child ended early, and of the device that it ran on.

The exit code speaks (`outcomes`), unless the child was made to end: then the reason for that does. What its
owner wants goes before either, and is read in the transaction that ends the run.
"""

import random
from dataclasses import replace

import structlog
from sqlalchemy.orm import Session

from luthier.database import clock
from luthier.devices import Device
from luthier.errors import FAILURE_OF_EXIT, ExitCode, Failure
from luthier.service import endings, runs
from luthier.service.claims import Claim
from luthier.service.retries import Ending, Limits
from luthier.service.workers import fault_of_job
from luthier.settings import Settings
from luthier.status import BlockedOn
from worker.following import Ended
from worker.outcomes import ending_of, signal_of
from worker.publishing import is_disk_full
from worker.stopping import WISHES, Reason
from worker.writing import Writer

log = structlog.get_logger()
_TOLD = {
    Ending.STOPPED: "The worker made room; the job goes on from its checkpoint",
    Ending.UNAVAILABLE: "Something remote did not answer",
    Ending.IO_ERROR: "A disk of the worker failed",
    Ending.GPU_FAULT: "The GPU failed",
}
# GPU faults that a program can bring about: they say nothing against the GPU.
_PROGRAM_FAULTS = ("device-side assert", "illegal memory access", "misaligned address", "illegal instruction")
# Exit codes of the fetcher: the hub does not answer or has too much to do, or there is no room for the model.
_MODEL_MAY_COME = (ExitCode.UNAVAILABLE, ExitCode.TRY_LATER, ExitCode.DISK_FULL)
_DISK_FULL = "The disk of the worker is full; the job goes on from its checkpoint once there is room"


class Judge:
    """Ends one run that did not succeed.

    Attributes:
        device_fault: why the device must not be used any more; None where it may.
    """

    def __init__(self, claim: Claim, writer: Writer, settings: Settings, device: Device) -> None:
        self._claim, self._writer, self._settings, self._device = claim, writer, settings, device
        self._log = log.bind(job_id=claim.job.id, run=claim.number)
        self.device_fault: str | None = None

    def end_early(self, ended: Ended) -> None:
        """The child did not finish: stopped at a wish, to be tried again, blocked, or failed."""
        code, reason = ended.exit_code, ended.reason
        self._log.info("run_ended_early", exit_code=code, reason=reason)
        ending = _ending(ended)
        if reason in (Reason.CANCEL, Reason.PAUSE) and ending == Ending.STOPPED:
            self.stop_as_wished(code)
        elif ending == Ending.DISK_FULL:
            self._block(BlockedOn.DISK, (ended.last.message if ended.last else None) or _DISK_FULL, code)
        elif ending is not None:
            self.requeue(ending, self._message(ended, ending), code)
        else:
            self.fail(_failure(ended, self._claim.job.subject_job_id or self._claim.job.id), code)

    def end_fetch(self, ended: Ended) -> None:
        """The base model did not come: where it still may, the job waits for it and uses no budget.

        Of an errand somebody waits for the answer: it fails after some tries.
        """
        if ended.reason in (Reason.HUNG, Reason.SILENT):
            # What it waits for is far away: that is no death of the job's own.
            ended = replace(ended, exit_code=ExitCode.UNAVAILABLE, last=None, reason=None)
        may_come = ended.reason is None and ended.exit_code in _MODEL_MAY_COME
        if not may_come or self._claim.job.task is not None:
            self.end_early(ended)
            return
        why = (ended.last.message if ended.last else None) or _TOLD[Ending.UNAVAILABLE]
        self._block(
            BlockedOn.MODEL,
            f"The base model {self._claim.job.model} cannot be had now, and is tried again by itself: {why}",
            ended.exit_code,
        )

    def lack_secret(self, message: str) -> None:
        """The job's secret is not there, or does not open: the job waits for it, an errand fails."""
        if self._claim.job.task is not None:
            self.fail(Failure("model_load_failed", message, "model"), None)
            return
        self._block(BlockedOn.SECRET, message, None)

    def end_by_error(self, error: OSError) -> None:
        """A disk failed the supervisor itself."""
        if is_disk_full(error):
            self._block(BlockedOn.DISK, _DISK_FULL, None)
        else:
            self.requeue(Ending.IO_ERROR, f"A disk of the worker failed: {error.strerror or error}", None)

    def requeue(self, ending: Ending, message: str, exit_code: int | None) -> None:
        """Have the job tried again, or given up, by how its run ended."""
        if ending == Ending.GPU_FAULT and self._is_devices_fault(message):
            self.device_fault = fault_of_job(message, self._claim.job.id)
        self._writer.insist(
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

    def leave_living(self, reason: str) -> bool:
        """Have the job go on elsewhere though something of the run lives on here: its epoch fences that.

        Returns:
            False where the job is to be cancelled and so stays: `cancelled` says that nothing is left.
        """
        is_left: list[bool] = []

        def write(session: Session) -> None:
            is_left[:] = [
                endings.leave_living(
                    session,
                    self._claim.lease,
                    reason=reason,
                    limits=Limits.of(self._settings),
                    jitter=random.random(),
                    now=clock(session),
                )
            ]

        self._writer.insist(write)
        return is_left == [True]

    def fail(self, failure: Failure, exit_code: int | None) -> None:
        """End the job for good."""
        self._log.info("run_failed", code=failure.code)

        def write(session: Session) -> None:
            endings.fail_run(session, self._claim.lease, failure, exit_code=exit_code, now=clock(session))

        self._writer.insist(write)

    def stop_as_wished(self, exit_code: int | None) -> None:
        """Cancelled or paused; the wish is read again, as it may have been taken back."""

        def write(session: Session) -> None:
            endings.stop_run(session, self._claim.lease, exit_code=exit_code, now=clock(session))

        self._writer.insist(write)

    def _block(self, blocked_on: BlockedOn, message: str, exit_code: int | None) -> None:
        self._writer.insist(
            lambda session: endings.block_run(
                session,
                self._claim.lease,
                blocked_on=blocked_on,
                message=message,
                exit_code=exit_code,
                now=clock(session),
            )
        )

    def _is_devices_fault(self, message: str) -> bool:
        """Whether a GPU fault is put down to the GPU: a job that meets one on every GPU brings it along."""
        if not self._device.is_gpu or any(words in message for words in _PROGRAM_FAULTS):
            return False
        found: list[str | None] = []
        self._writer.insist(lambda session: found.append(runs.previous_outcome(session, self._claim.lease)))
        return found[-1:] != [Ending.GPU_FAULT]

    def _message(self, ended: Ended, ending: Ending) -> str:
        """What a child said of its early end, else what its exit code, or its end by us, says."""
        match ending:
            case Ending.HUNG if ended.reason == Reason.SILENT:
                seconds = self._settings.start_timeout_seconds
                return f"The process reported nothing within {seconds:.0f} s of its start and was ended"
            case Ending.HUNG:
                return "The process made no progress for too long and was ended; its log tells where it stood"
            case Ending.OUT_OF_HOST_MEMORY:
                return self._memory_message(ended)
            case Ending.CRASHED:
                return f"The process was ended by signal {signal_of(ended.exit_code)}"
            case _:
                return (ended.last.message if ended.last else None) or _TOLD[ending]

    def _memory_message(self, ended: Ended) -> str:
        less = "a smaller max_seq_length or batch_size, fewer or shorter rows"
        limit = self._settings.max_host_memory_bytes
        if ended.reason == Reason.HOST_MEMORY and limit is not None:
            return (
                f"The process took more than the {limit} bytes of host memory that "
                f"LUTHIER_MAX_HOST_MEMORY_BYTES allows: raise that on the worker, or use {less}"
            )
        return f"The kernel ended the process because the host's memory ran out: give it more, or use {less}"


def _ending(ended: Ended) -> Ending | None:
    """How the run ended; None where it failed for good."""
    code, reason = ended.exit_code, ended.reason
    was_ended = code == ExitCode.STOPPED or code < 0 or code >= 128
    if reason == Reason.DISK_FULL:
        return Ending.DISK_FULL
    if reason in WISHES and was_ended:
        # Also one that was killed at the end of its grace, or before it could hear.
        return Ending.STOPPED
    is_hung = reason in (Reason.HUNG, Reason.SILENT)
    ran_out = reason == Reason.HOST_MEMORY or ended.kernel_ran_out_of_memory
    return ending_of(code, is_hung=is_hung, host_memory_ran_out=ran_out)


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
