"""How a training process hears, and shows that it lives."""

import os
import signal
import subprocess
import sys
import time

import pytest

from luthier.errors import ExitCode
from trainer.beat import Beat

_PROCESS = """
import sys, time
from trainer.stop_signal import StopSignal
stop = StopSignal()
stop.listen()
print("listens", flush=True)
while not stop():
    time.sleep(0.01)
print("heard", flush=True)
time.sleep(float(sys.argv[1]))
"""


def _start(seconds):
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", _PROCESS, str(seconds)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "listens\n"
    return process


def test_a_second_sigterm_ends_the_process_at_once_and_as_stopped():
    with _start(600) as process:
        process.send_signal(signal.SIGTERM)
        assert process.stdout.readline() == "heard\n"
        heard_at = time.monotonic()
        while process.poll() is None:
            assert time.monotonic() - heard_at < 20
            process.send_signal(signal.SIGTERM)
            time.sleep(0.05)
        assert process.returncode == ExitCode.STOPPED


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_what_a_terminal_tells_parent_and_child_alike_is_one_wish(second):
    with _start(1) as process:
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGTERM)
        process.send_signal(second)
        assert process.wait(20) == 0


def test_asking_whether_to_stop_leaves_a_sign_at_most_once_a_second(tmp_path):
    times = iter([0.0, 0.5, 1.0])
    beat = Beat(tmp_path, lambda: True, clock=lambda: next(times))
    assert beat()
    os.utime(tmp_path / "alive", (1, 1))
    assert beat()
    assert (tmp_path / "alive").stat().st_mtime == 1
    assert beat()
    assert (tmp_path / "alive").stat().st_mtime > 1
