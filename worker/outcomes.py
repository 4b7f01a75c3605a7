"""What the end of a child process means for its job.

`ending_of` is the table of exit codes in docs/architecture.md as a function; what it does not know ends the
job for good.
"""

from luthier.errors import ExitCode
from luthier.service.retries import Ending

_ENDINGS = {
    ExitCode.UNAVAILABLE: Ending.UNAVAILABLE,
    ExitCode.TRY_LATER: Ending.UNAVAILABLE,
    ExitCode.DISK_FULL: Ending.DISK_FULL,
    ExitCode.IO_ERROR: Ending.IO_ERROR,
    ExitCode.GPU_FAULT: Ending.GPU_FAULT,
    ExitCode.STOPPED: Ending.STOPPED,
}


def ending_of(exit_code: int, *, is_hung: bool = False, host_memory_ran_out: bool = False) -> Ending | None:
    """How a run ended early; None where its child is done, or failed in a way that would come again.

    Args:
        exit_code: of the process; negative, or 128 and more, for a signal.
        is_hung: whether the process was ended because it made no progress.
        host_memory_ran_out: whether the kernel ended the process, or a limit did, for want of memory.
    """
    if is_hung:
        return Ending.HUNG
    if exit_code in list(ExitCode):
        return _ENDINGS.get(ExitCode(exit_code))
    if host_memory_ran_out:
        return Ending.OUT_OF_HOST_MEMORY
    return Ending.CRASHED if exit_code < 0 or exit_code >= 128 else None


def signal_of(exit_code: int) -> int:
    """The signal that ended a process."""
    return -exit_code if exit_code < 0 else exit_code - 128
