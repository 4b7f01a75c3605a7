"""Locks that tell who lives: of a device, and of a run's folder. The kernel lets go of them at a death.

A child inherits the descriptors, so a lock is held as long as anybody of its run is. A file that is left
means nothing, whoever owns it: only the lock on it counts, and any user of the host may take that.
"""

import contextlib
import fcntl
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_PROC = Path("/proc")
# Every user may write there, and finds the same folder, whatever TMPDIR says and however /tmp is shared out.
# The first also stays writable where a unit or a container has all the rest read-only.
_SHARED = (Path("/dev/shm"), Path("/run/lock"))  # noqa: S108, only empty lock files are made there


def device_lock_path(device_id: str) -> Path:
    """Where a GPU is locked, which is one for the whole host and all its users."""
    return next(filter(_is_shared, _SHARED), Path(tempfile.gettempdir())) / f"luthier-{device_id}.lock"


@contextmanager
def held_lock(path: Path) -> Iterator[int | None]:
    """A lock as a descriptor, or None where another process has it; the file stays."""
    descriptor = _open(path)
    try:
        yield descriptor if _take(descriptor) else None
    finally:
        os.close(descriptor)


@contextmanager
def held_folder(path: Path) -> Iterator[int]:
    """A folder that is made and locked, as a descriptor.

    Raises:
        BlockingIOError: somebody holds it.
    """
    while True:
        path.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        if not _take(descriptor):
            os.close(descriptor)
            raise BlockingIOError(f"{path} is in use by {holders(path)}")
        # Whoever clears up may have removed it before it was locked.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                break
        os.close(descriptor)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def unheld_folder(path: Path) -> Iterator[bool]:
    """Whether nobody holds a folder; while the block lasts, nobody can."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    except (FileNotFoundError, NotADirectoryError):
        yield False
        return
    try:
        yield _take(descriptor)
    finally:
        os.close(descriptor)


def holders(path: Path) -> str:
    """Who has a lock, for people: processes with their commands, and users where those are not ours."""
    try:
        wanted = path.stat()
    except OSError:
        return "nobody"
    told = [_describe(pid) for pid in _pids() if _has_open(pid, wanted)]
    return ", ".join(told) or f"a process of another user (fuser {path} tells root which)"


def _is_shared(folder: Path) -> bool:
    return folder.is_dir() and bool(folder.stat().st_mode & stat.S_IWOTH) and os.access(folder, os.W_OK)


def _open(path: Path) -> int:
    """The lock's file; reading is enough to lock one that another user has made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        try:
            # The kernel refuses O_CREAT on others' files in a folder that all may write to.
            return os.open(path, os.O_RDWR | os.O_NOFOLLOW)
        except PermissionError:
            return os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        except FileNotFoundError:
            with contextlib.suppress(FileExistsError):
                os.close(os.open(path, os.O_RDONLY | os.O_CREAT | os.O_EXCL, 0o644))
                path.chmod(0o644)


def _take(descriptor: int) -> bool:
    """Whether we have the lock now."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _pids() -> list[int]:
    own = os.getpid()
    return [int(path.name) for path in _PROC.iterdir() if path.name.isdigit() and int(path.name) != own]


def _has_open(pid: int, wanted: os.stat_result) -> bool:
    folder = _PROC / str(pid) / "fd"
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            with contextlib.suppress(OSError):
                if os.path.samestat(path.stat(), wanted):
                    return True
    return False


def _describe(pid: int) -> str:
    with contextlib.suppress(OSError):
        command = (_PROC / str(pid) / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        user = (_PROC / str(pid)).stat().st_uid
        whose = "" if user == os.getuid() else f" of user {user}"
        return f"process {pid}{whose} ({command.strip()[:80]})"
    return f"process {pid}"
