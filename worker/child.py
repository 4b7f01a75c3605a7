"""One child process of a run: started in a session of its own, watched, and ended with all that it started.

The kernel kills it when the thread that started it dies, so start it from a main thread. Its output goes to
the run's log, which is capped: past half of the limit the log starts anew, the older half beside it.
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

LOG_NAME = "log.txt"
_OLDER_LOG_NAME = "log.1.txt"
# What a child may inherit; everything else, secrets above all, stays with us.
_PASSED_ON = (
    "PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "CUDA_HOME",
    "CUDA_PATH", "NVIDIA_VISIBLE_DEVICES", "NVIDIA_DRIVER_CAPABILITIES", "PYTORCH_CUDA_ALLOC_CONF",
    "MKL_NUM_THREADS", "OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE", "LUTHIER_COMMIT",
)  # fmt: skip


class Child:
    """A running child process.

    Args:
        command: argument list.
        folder: the run folder: working folder of the child, and where its log lies.
        environment: added to the few variables that are passed on, and to the import path.
        keep_open: descriptors that the child inherits (the device's lock).
        max_log_bytes: kept of its output.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        folder: Path,
        environment: Mapping[str, str],
        keep_open: Sequence[int],
        max_log_bytes: int,
    ) -> None:
        inherited = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
        self._process = subprocess.Popen(
            list(command),
            cwd=folder,
            env={**inherited, **import_path(), **environment},
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

    def ask_to_stop(self) -> None:
        """SIGTERM to the child alone: it finishes its step, saves and exits."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL to its whole session, and wait until it is gone."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._pump.join(timeout=5)


def full_log(folder: Path) -> bytes:
    """What is left of a run's output."""
    parts = [folder / _OLDER_LOG_NAME, folder / LOG_NAME]
    return b"".join(part.read_bytes() for part in parts if part.exists())


def _pump(output: IO[bytes], folder: Path, half_bytes: int) -> None:
    log = folder / LOG_NAME
    with output:
        file = log.open("ab", buffering=0)
        while chunk := os.read(output.fileno(), 1 << 16):
            if file.tell() + len(chunk) > half_bytes:
                file.close()
                log.rename(folder / _OLDER_LOG_NAME)
                file = log.open("ab", buffering=0)
            file.write(chunk)
        file.close()
