"""What the end of a child process means for its job."""

import pytest

from luthier.errors import ExitCode
from luthier.service.retries import Ending
from worker.outcomes import ending_of, signal_of


@pytest.mark.parametrize(
    ("exit_code", "ending"),
    [
        (0, None),
        (1, None),
        (ExitCode.BAD_SPEC, None),
        (ExitCode.BAD_DATA, None),
        (ExitCode.MISSING, None),
        (ExitCode.UNAVAILABLE, Ending.UNAVAILABLE),
        (ExitCode.TRY_LATER, Ending.UNAVAILABLE),
        (ExitCode.DISK_FULL, Ending.DISK_FULL),
        (ExitCode.IO_ERROR, Ending.IO_ERROR),
        (ExitCode.GPU_OUT_OF_MEMORY, None),
        (ExitCode.LOSS_NOT_FINITE, None),
        (ExitCode.GPU_FAULT, Ending.GPU_FAULT),
        (ExitCode.STOPPED, Ending.STOPPED),
        (-9, Ending.CRASHED),
        (-11, Ending.CRASHED),
        (134, Ending.CRASHED),
    ],
)
def test_an_exit_code_says_what_becomes_of_the_job(exit_code: int, ending: Ending | None) -> None:
    assert ending_of(exit_code) == ending


def test_what_the_supervisor_saw_goes_before_the_signal() -> None:
    assert ending_of(-9, host_memory_ran_out=True) == Ending.OUT_OF_HOST_MEMORY
    assert ending_of(-9, is_hung=True) == Ending.HUNG


def test_a_signal_is_told_by_a_shell_as_128_more() -> None:
    assert (signal_of(-11), signal_of(139)) == (11, 11)
