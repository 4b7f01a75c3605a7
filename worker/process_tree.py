"""The processes of a run, found in /proc however they hide: forked twice, in sessions of their own, orphaned.

Every child of a run carries a mark in its environment, which whatever it starts inherits. Processes are also
found as descendants, by the session, and, where `adopt_orphans` was called, as orphans that the kernel gave
to us. Only those of our own user are seen, which a child's are.
"""

import contextlib
import ctypes
import os
import signal
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

MARK = "LUTHIER_RUN"
_PR_SET_CHILD_SUBREAPER = 36
_LIBC = ctypes.CDLL(None, use_errno=True)
_PROC = Path("/proc")
_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGESIZE")
_LOOK_SECONDS = 0.02
# Fields of /proc/PID/stat behind the name, counted from the state: see proc_pid_stat(5).
_STATE, _PARENT, _SESSION, _USER, _SYSTEM, _THREADS, _STARTED, _PAGES = 0, 1, 3, 11, 12, 17, 19, 21

_adopts = False


@dataclass(frozen=True)
class Process:
    """One process as the kernel shows it at a moment; `started_at` (in ticks) tells a reused pid apart."""

    pid: int
    state: str
    parent: int
    session: int
    cpu_seconds: float
    thread_count: int
    started_at: int
    memory_bytes: int

    @property
    def is_gone(self) -> bool:
        """Dead in all its threads: what is left is an entry for its parent to read."""
        return self.state in "ZX" and self.thread_count <= 1


def adopt_orphans() -> None:
    """Have the kernel give orphans among our descendants to this process, so that none can slip away.

    For processes whose only children in other sessions are runs.
    """
    global _adopts  # noqa: PLW0603, a fact about the process
    _adopts = _LIBC.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0


def read_process(pid: int) -> Process | None:
    """A process, or None where there is none."""
    try:
        text = (_PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    # The name stands in brackets and may hold anything.
    fields = text.rpartition(")")[2].split()
    return Process(
        pid=pid,
        state=fields[_STATE],
        parent=int(fields[_PARENT]),
        session=int(fields[_SESSION]),
        cpu_seconds=(int(fields[_USER]) + int(fields[_SYSTEM])) / _TICKS,
        thread_count=int(fields[_THREADS]),
        started_at=int(fields[_STARTED]),
        memory_bytes=int(fields[_PAGES]) * _PAGE_BYTES,
    )


def members(mark: str, root: int | None = None) -> list[Process]:
    """The processes of a run that live: those that carry its mark, and those that descend from `root`.

    Args:
        mark: the value of `MARK` in the environment.
        root: pid and session of the run's child.
    """
    everybody = list(_everybody())
    found = {one.pid for one in everybody if root in (one.pid, one.session)}
    found |= {one.pid for one in everybody if _is_adopted(one) or _carries(one.pid, mark)}
    while more := {one.pid for one in everybody if one.parent in found} - found:
        found |= more
    found.discard(os.getpid())
    return [one for one in everybody if one.pid in found and not one.is_gone]


def end_members(mark: str, root: int | None, *, seconds: float) -> list[Process]:
    """SIGKILL to every process of a run until none is left; those that outlive it for `seconds`."""
    deadline = time.monotonic() + seconds
    while left := members(mark, root):
        for process in left:
            send_signal(process.pid, signal.SIGKILL)
        if time.monotonic() > deadline:
            return left
        time.sleep(_LOOK_SECONDS)
    _bury(root)
    return []


def send_signal(pid: int, number: signal.Signals) -> None:
    """A signal to a process that may be gone."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


def shared_out_bytes(processes: Collection[Process]) -> int:
    """Host memory of processes, pages that they share counted once (the kernel's proportional share)."""
    return sum(_proportional_bytes(process) for process in processes)


def killed_for_memory_count() -> int:
    """How many processes the kernel has killed on this machine, or in this container, for want of memory."""
    return next(_numbers(_PROC / "vmstat", "oom_kill "), 0)


def _everybody() -> Iterator[Process]:
    for path in _PROC.iterdir():
        if path.name.isdigit() and (process := read_process(int(path.name))) is not None:
            yield process


def _carries(pid: int, mark: str) -> bool:
    try:
        environment = (_PROC / str(pid) / "environ").read_bytes()
    except OSError:
        return False
    return f"{MARK}={mark}".encode() in environment.split(b"\0")


def _is_adopted(process: Process) -> bool:
    """Whether an orphan was given to us: nothing else that we start leaves our session."""
    return _adopts and process.parent == os.getpid() and process.session != os.getsid(0)


def _bury(root: int | None) -> None:
    """Take dead orphans off the kernel's table; the child itself is its starter's to wait for."""
    for process in _everybody():
        if process.state == "Z" and process.pid != root and _is_adopted(process):
            with contextlib.suppress(ChildProcessError):
                os.waitpid(process.pid, os.WNOHANG)


def _proportional_bytes(process: Process) -> int:
    kibibytes = next(_numbers(_PROC / str(process.pid) / "smaps_rollup", "Pss:"), None)
    return process.memory_bytes if kibibytes is None else kibibytes << 10


def _numbers(path: Path, name: str) -> Iterator[int]:
    """The numbers of the lines that start with `name`."""
    with contextlib.suppress(OSError):
        for line in path.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith(name):
                yield int(line.removeprefix(name).split()[0])
