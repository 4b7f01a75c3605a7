"""Child processes that must not outlive us, and a group of them that is kept alive.

`luthier up` and `luthier worker` are such groups. A child that dies is started again after a growing pause;
SIGTERM or SIGINT ends all of them, gently first. The kernel ends children whose parent was killed.
"""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import FrameType

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True)
_POLL_SECONDS = 0.2
_FIRST_PAUSE_SECONDS = 1.0
_LONGEST_PAUSE_SECONDS = 30.0
_STEADY_SECONDS = 60.0


def module_command(module: str, *arguments: str) -> list[str]:
    """The command line of one of our modules; -P keeps the working folder off the import path."""
    return [sys.executable, "-P", "-m", module, *arguments]


def import_path() -> dict[str, str]:
    """PYTHONPATH for a child that works in another folder: what it means here, and never that folder."""
    entries = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    # Python takes an empty variable for none, but an empty entry for the working folder.
    return {"PYTHONPATH": os.pathsep.join(map(os.path.abspath, entries))}


def die_with_parent(death_signal: signal.Signals) -> Callable[[], None]:
    """A `preexec_fn` that has the kernel send `death_signal` when the starting thread ends."""
    parent = os.getpid()

    def prepare() -> None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, int(death_signal), 0, 0, 0)
        # The parent may have died before the line above.
        if os.getppid() != parent:
            os.kill(os.getpid(), death_signal)

    return prepare


@dataclass(frozen=True)
class ChildSpec:
    """A process to keep alive. `environment` is added to ours."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)


class ProcessGroup:
    """Children that are started together, started again when they die, and ended together.

    Args:
        specs: what to run.
        grace_seconds: from SIGTERM to SIGKILL.
        report: called with a line for people when something happens.
    """

    def __init__(
        self, specs: Sequence[ChildSpec], *, grace_seconds: float, report: Callable[[str], None]
    ) -> None:
        self._children = [_Child(spec) for spec in specs]
        self._grace_seconds, self._report = grace_seconds, report
        self._stopping = False

    def run(self, while_running: Callable[[], None] | None = None) -> None:
        """Run until SIGTERM or SIGINT; `while_running` is called a few times a second.

        Call it from the main thread: the kernel ties the children's lives to the thread that starts them.
        """
        previous = {
            number: signal.signal(number, self._on_signal) for number in (signal.SIGTERM, signal.SIGINT)
        }
        try:
            while not self._stopping:
                now = time.monotonic()
                for child in self._children:
                    if line := child.keep_alive(now):
                        self._report(line)
                if while_running is not None:
                    while_running()
                time.sleep(_POLL_SECONDS)
        finally:
            self._stop()
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self._stopping = True

    def _stop(self) -> None:
        for child in self._children:
            child.signal(signal.SIGTERM)
        deadline = time.monotonic() + self._grace_seconds
        while any(child.is_alive() for child in self._children) and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)
        for child in self._children:
            child.signal(signal.SIGKILL)


class _Child:
    def __init__(self, spec: ChildSpec) -> None:
        self._spec = spec
        self._process: subprocess.Popen[bytes] | None = None
        self._started_at = 0.0
        self._start_at = 0.0
        self._pause = _FIRST_PAUSE_SECONDS

    def keep_alive(self, now: float) -> str | None:
        """Start the child where it is not running and its pause is over; a line when it had died."""
        if self._process is None:
            if now >= self._start_at:
                self._start(now)
            return None
        code = self._process.poll()
        if code is None:
            return None
        self._process = None
        if now - self._started_at >= _STEADY_SECONDS:
            self._pause = _FIRST_PAUSE_SECONDS
        self._start_at = now + self._pause
        line = f"{self._spec.name} ended with {code}; starting it again in {self._pause:.0f} s"
        self._pause = min(2 * self._pause, _LONGEST_PAUSE_SECONDS)
        return line

    def is_alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def signal(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)

    def _start(self, now: float) -> None:
        self._process = subprocess.Popen(
            list(self._spec.command),
            env={**os.environ, **self._spec.environment},
            stdin=subprocess.DEVNULL,
            # A group of its own: Ctrl-C reaches us alone, and we end the children in order.
            process_group=0,
            preexec_fn=die_with_parent(signal.SIGTERM),  # noqa: PLW1509, it calls the kernel and no more
        )
        self._started_at = now
