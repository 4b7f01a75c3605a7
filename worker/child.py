"""One child process of a run: started in a session of its own, watched, and ended with all that it started.

The kernel kills it when the thread that started it dies, so start it from a main thread. Its output goes to
the run's log, which is capped: past half of the limit the log starts anew, the older half beside it. What the
log's disk has no room for is let go: a child never waits for it.
"""

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from luthier.processes import die_with_parent, import_path
from worker.process_tree import MARK, Process, end_members, members, send_signal

LOG_NAME = "log.txt"
_OLDER_LOG_NAME = "log.1.txt"
# What a child may inherit; everything else, secrets above all, stays with us.
_PASSED_ON = (
    "PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "CUDA_HOME",
    "CUDA_PATH", "NVIDIA_VISIBLE_DEVICES", "NVIDIA_DRIVER_CAPABILITIES", "PYTORCH_CUDA_ALLOC_CONF",
    "MKL_NUM_THREADS", "OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE", "LUTHIER_COMMIT",
)  # fmt: skip


class UnkillableError(Exception):
    """Processes of a run that SIGKILL does not end, or that keep memory of a GPU; `reason` says which."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Child:
    """A running child process.

    Args:
        command: argument list.
        folder: the run folder: working folder of the child, and where its log lies.
        environment: added to the few variables that are passed on, and to the import path.
        keep_open: descriptors that the child inherits (the locks of device and folder).
        max_log_bytes: kept of its output.
        mark: names the run; in the environment of the child and of all that it starts.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        folder: Path,
        environment: Mapping[str, str],
        keep_open: Sequence[int],
        max_log_bytes: int,
        mark: str,
    ) -> None:
        inherited = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
        self._mark = mark
        self._process = subprocess.Popen(
            list(command),
            cwd=folder,
            # Of a fatal signal, SIGABRT above all, Python tells where each thread stood.
            env={**inherited, **import_path(), "PYTHONFAULTHANDLER": "1", **environment, MARK: mark},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=tuple(keep_open),
            preexec_fn=die_with_parent(signal.SIGKILL),  # noqa: PLW1509, it calls the kernel and no more
        )
        output = self._process.stdout
        if output is None:
            raise RuntimeError("a child was started without a pipe for its output")
        self._pump = threading.Thread(target=_pump, args=(output, folder, max_log_bytes // 2), daemon=True)
        self._pump.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def poll(self) -> int | None:
        """The exit code (negative for a signal), or None while it runs."""
        return self._process.poll()

    def members(self) -> list[Process]:
        """The child and everything that it has started and that lives."""
        return members(self._mark, self._process.pid)

    def signal(self, number: signal.Signals) -> None:
        """A signal to the child alone; SIGTERM asks it to finish its step, save and exit."""
        if self._process.poll() is None:
            send_signal(self._process.pid, number)

    def kill(self) -> None:
        """SIGKILL to all that lives of it, without waiting."""
        for process in self.members():
            send_signal(process.pid, signal.SIGKILL)

    def end(self, seconds: float) -> None:
        """SIGKILL to the child and everything that it started, until nothing is left.

        Raises:
            UnkillableError: something is, after so many seconds.
        """
        if left := end_members(self._mark, self._process.pid, seconds=seconds):
            told = ", ".join(f"{process.pid} (state {process.state})" for process in left)
            raise UnkillableError(f"SIGKILL did not end process {told} within {seconds:.0f} s")
        self._process.wait()
        self._pump.join(timeout=5)


def full_log(folder: Path) -> bytes:
    """What is left of a run's output."""
    parts = [folder / _OLDER_LOG_NAME, folder / LOG_NAME]
    return b"".join(part.read_bytes() for part in parts if part.exists())


def _pump(output: IO[bytes], folder: Path, half_bytes: int) -> None:
    log = _Log(folder, half_bytes)
    with output:
        while chunk := os.read(output.fileno(), 1 << 16):
            # A full disk, or a folder that was removed, must not fill the pipe: the child would wait.
            with contextlib.suppress(OSError):
                log.write(chunk)
    log.close()


class _Log:
    """The newer half of a log that is being written, the older one beside it."""

    def __init__(self, folder: Path, half_bytes: int) -> None:
        self._folder, self._half_bytes = folder, half_bytes
        self._file: IO[bytes] | None = None

    def write(self, chunk: bytes) -> None:
        if self._file is not None and self._file.tell() + len(chunk) > self._half_bytes:
            self.close()
            (self._folder / LOG_NAME).rename(self._folder / _OLDER_LOG_NAME)
        if self._file is None:
            self._file = (self._folder / LOG_NAME).open("ab", buffering=0)
        self._file.write(chunk)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
